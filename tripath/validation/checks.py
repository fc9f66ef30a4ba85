"""The checks: what must be equal, what must bound what, what must be near what."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tripath.errors import TripathError
from tripath.metrics import Result
from tripath.validation.discrepancy import KINDS, Discrepancy

IDEAL = {"token_agreement": 1.0, "logit_kl": 0.0, "argmax_agreement": 1.0, "transfer_set_overlap": 1.0}
"""Values of the fidelity metrics of a decoder that equals the reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far apart two witnesses may be, with the written reason."""

    value: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Tolerances by check; `fail_on` lists the kinds that make a run fail; `references` are figures measured elsewhere."""

    fail_on: Sequence[str]
    estimate: Tolerance
    fidelity: Mapping[str, Tolerance]
    references: Sequence[Mapping[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.fail_on if kind not in KINDS]
        if unknown:
            raise TripathError(f"validation.fail_on: unknown kind {unknown[0]!r}, one of {', '.join(KINDS)}")
        unknown = [name for name in self.fidelity if name not in IDEAL]
        if unknown:
            raise TripathError(f"validation.fidelity: unknown metric {unknown[0]!r}, one of {', '.join(IDEAL)}")


Results = Mapping[str, Result]


def validate(results: Results, settings: Settings) -> list[Discrepancy]:
    """All discrepancies between the results of one program.

    Raises:
        TripathError: the results belong to different programs or traces and must not be compared.
    """
    digests = {(result.program_digest, result.trace_digest) for result in results.values()}
    if len(digests) > 1:
        raise TripathError(
            f"validation: results of different programs or traces are not comparable ({', '.join(sorted(results))})"
        )
    checks = (
        check_counts(results), check_busy_cycles(results), check_bound(results), check_estimate(results, settings),
        check_fidelity(results, settings), check_references(results, settings),
    )  # fmt: skip
    return list(itertools.chain.from_iterable(checks))


def check_counts(results: Results) -> Iterator[Discrepancy]:
    """Event counts are equal between every two paths, exactly."""
    for (first, one), (second, other) in itertools.combinations(sorted(results.items()), 2):
        for name in sorted({*one.counts, *other.counts}):
            yield Discrepancy(
                metric=name, scope="program", kind="count", expected=one.counts.get(name, 0), expected_source=first,
                observed=other.counts.get(name, 0), observed_source=second, tolerance=0.0,
                reason="both count the same program",
            )  # fmt: skip


def check_busy_cycles(results: Results) -> Iterator[Discrepancy]:
    """Cycles in which a unit is occupied follow from counts and the hardware's intervals, so they are counts too."""
    if not {"analytical", "cycle"} <= set(results):
        return
    analytical, cycle = results["analytical"].metrics, results["cycle"].metrics
    for name in sorted(set(analytical) & set(cycle)):
        if name.startswith("busy_cycles."):
            yield Discrepancy(
                metric=name, scope="program", kind="count", expected=analytical[name], expected_source="analytical",
                observed=cycle[name], observed_source="cycle", tolerance=0.0,
                reason="retired instructions times their intervals",
            )  # fmt: skip


def check_bound(results: Results) -> Iterator[Discrepancy]:
    """No schedule beats the analytical lower bound."""
    if {"analytical", "cycle"} <= set(results):
        yield Discrepancy(
            metric="makespan_cycles", scope="program", kind="bound",
            expected=results["analytical"].metrics["lower_bound_cycles"], expected_source="analytical.lower_bound_cycles",
            observed=results["cycle"].metrics["makespan_cycles"], observed_source="cycle", tolerance=0.0,
            reason="no schedule beats the lower bound",
        )  # fmt: skip


def check_estimate(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """The analytical estimate is near the cycle path's makespan."""
    if {"analytical", "cycle"} <= set(results):
        yield Discrepancy(
            metric="makespan_cycles", scope="program", kind="estimate",
            expected=results["cycle"].metrics["makespan_cycles"], expected_source="cycle",
            observed=results["analytical"].metrics["estimated_cycles"], observed_source="analytical.estimated_cycles",
            tolerance=settings.estimate.value, reason=settings.estimate.reason,
        )  # fmt: skip


def check_fidelity(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """The executor stays near the unquantised reference."""
    if "accuracy" not in results:
        return
    for name, tolerance in settings.fidelity.items():
        yield Discrepancy(
            metric=name, scope="generation", kind="fidelity", expected=IDEAL[name], expected_source="reference in float32",
            observed=results["accuracy"].metrics[name], observed_source="accuracy", tolerance=tolerance.value,
            reason=tolerance.reason,
        )  # fmt: skip


def check_references(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """Metrics against figures measured elsewhere; a metric is named with its path, e.g. `cycle.makespan_cycles`."""
    for row in settings.references:
        try:
            metric, expected, source, tolerance, reason = (
                row[key] for key in ("metric", "expected", "source", "tolerance", "reason")
            )
            path, name = str(metric).split(".", 1)
            observed = results[path].metrics[name]
        except (KeyError, ValueError):
            raise TripathError(f"validation.references: no such metric or incomplete entry {dict(row)}") from None
        yield Discrepancy(
            metric=name, scope="program", kind="reference", expected=float(str(expected)), expected_source=str(source),
            observed=observed, observed_source=path, tolerance=float(str(tolerance)), reason=str(reason),
        )  # fmt: skip
