"""Allowed disagreement of two witnesses: the data that `conf/validation` fills. Tolerances that are too lax are refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from npu.choices import check_choices, one_of, within
from npu.errors import TripathError

KINDS = ("count", "bound", "estimate", "fidelity", "reference")
"""Kinds of checks, by their claim; `discrepancy.Discrepancy` states the rule of each."""

MAXIMUM_TOLERANCE = {"count": 0.0, "bound": 0.0, "estimate": 0.15, "fidelity": 0.5, "reference": 0.25}
"""No configuration may be more forgiving than this (unit: that of the kind's tolerance)."""

IDEAL = {"token_agreement": 1.0, "logit_kl": 0.0, "argmax_agreement": 1.0, "transfer_set_overlap": 1.0}
"""The fidelity metrics, and their values for a decoder that equals the reference."""

FREE_RUNNING = "token_agreement"
"""The fidelity metric of whole generations: after the first other token everything may differ."""

ENERGY_REASON = "static energy follows the time, so it is off by no more than the estimate"
MEASURED_REASON = "a roofline leaves out what software adds; clocks and boards differ by a few percent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """The allowed distance between two witnesses.

    Attributes:
        value: The allowed distance, relative or, for fidelity, in the unit of the metric.
        reason: The reason for this distance, in a sentence.
    """

    value: float
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise TripathError("validation: a tolerance needs a written reason, got none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A figure measured elsewhere.

    Attributes:
        metric: A full name such as `cycle.makespan_cycles`.
        expected: The figure, in the unit of the metric.
        source: Where it is from.
        tolerance: Distance allowed, relative, at most 0.25.
        reason: Why so much.
        when: Configuration keys and the values for which it was measured; elsewhere it is left out.
    """

    metric: str
    expected: float
    source: str
    tolerance: float
    reason: str
    when: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "." not in self.metric:
            raise TripathError(f"validation.references: {self.metric!r} is no full name such as cycle.makespan_cycles")
        check_tolerance("reference", self.metric, self.tolerance)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSettings:
    """The phases to time on this CPU, and their sizes.

    Attributes:
        canvases: Sizes in tokens, for prefill and norm.
        blocks: Sizes in tokens, run against the largest canvas, for the other phases.
        repeats: Timings of each phase in a round.
        rounds: Number of rounds.
        shapes: Changes to `model`; each makes a model of its own with a `name`. Empty: `model` itself is timed.
    """

    canvases: Sequence[int] = field(metadata=within(1, 1 << 16))
    blocks: Sequence[int] = field(metadata=within(1, 1 << 16))
    repeats: int = field(metadata=within(1, 10_000))
    rounds: int = field(metadata=within(1, 10_000))
    shapes: Sequence[Mapping[str, str | int | float]] = ()

    def __post_init__(self) -> None:
        check_choices("validation.host", self)
        for name in ("canvases", "blocks"):
            if not getattr(self, name):
                raise TripathError(f"validation.host.{name}: needs at least one number, got none")
        if max(self.blocks) > max(self.canvases):
            raise TripathError(
                f"validation.host.blocks: {max(self.blocks)} exceeds the largest canvas {max(self.canvases)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Tolerances by check.

    Attributes:
        fail_on: Kinds whose failure fails the run.
        estimate: Of the analytical estimate, relative to the cycle path; at most 0.15.
        fidelity: Of each fidelity metric, absolute, from that of a decoder that equals the reference; at most 0.5.
        references: Figures measured elsewhere.
        energy: Of the joules, relative to the cycle path; at most 0.15.
        measured: Of measurements, relative; at most 0.25.
    """

    fail_on: Sequence[str] = field(metadata=one_of(KINDS))
    estimate: Tolerance
    fidelity: Mapping[str, Tolerance]
    references: Sequence[Reference] = field(default_factory=list)
    energy: Tolerance = field(default_factory=lambda: Tolerance(value=0.10, reason=ENERGY_REASON))
    measured: Tolerance = field(default_factory=lambda: Tolerance(value=0.15, reason=MEASURED_REASON))

    def __post_init__(self) -> None:
        check_choices("validation", self)
        check_tolerance("estimate", "validation.estimate", self.estimate.value)
        check_tolerance("estimate", "validation.energy", self.energy.value)
        check_tolerance("reference", "validation.measured", self.measured.value)
        for name, tolerance in self.fidelity.items():
            if name not in IDEAL:
                raise TripathError(f"validation.fidelity: unknown metric {name!r}, one of {', '.join(IDEAL)}")
            check_tolerance("fidelity", f"validation.fidelity.{name}", tolerance.value)

    def without_free_running(self) -> "Settings":
        """The settings that judge no whole generations: tokens of random weights part at the first near tie."""
        return replace(self, fidelity={name: each for name, each in self.fidelity.items() if name != FREE_RUNNING})


def check_tolerance(kind: str, subject: str, value: float) -> None:
    """Refuse a tolerance above the maximum of its kind.

    Raises:
        TripathError: it is negative, not a number, or too large.
    """
    limit = MAXIMUM_TOLERANCE[kind]
    if not math.isfinite(value) or not 0.0 <= value <= limit:
        raise TripathError(f"{subject}: tolerance {value} is outside of 0 to {limit}, the limit for kind {kind}")
