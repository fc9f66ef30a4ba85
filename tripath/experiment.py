"""One experiment: everything that is compiled, simulated, compared and tracked in one run, and what came out of it."""

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tripath.devices import Device
from tripath.energy import Technology
from tripath.errors import TripathError
from tripath.hardware import HardwareConfig
from tripath.metrics import Result, Table
from tripath.model import ModelSpec
from tripath.program import Program
from tripath.units import format_seconds
from tripath.validation import Discrepancy, Settings
from tripath.validation.measurements import Measurement
from tripath.workload import Numerics, Workload, reference_only

QUALITY = "quality"
"""The path that runs no program: held-out problems on the reference path."""
TRACE_GIVERS = ("accuracy", QUALITY)
"""Paths whose trace the timing paths replay, the first that runs; none: the workload's schedule."""
PATHS = ("analytical", "cycle", *TRACE_GIVERS, "rtl")
WHOLE_RUN = ("program", "generation")
"""Scopes of which a run has one; others are named beside the metric."""

FIRST_SYNTHETIC_TOKEN = 3
TYPE_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The inputs of a run. `options` holds the options of each simulator by name; without `technology` there is no energy.

    Without `paths` no program is compiled: the run consists of checks that need none, of streams and of other hardware.
    `quality` needs none either. A simulator with the option `module` is a path of the user's own, which lives in that module.
    `devices` are models of other hardware, `measurements` what someone timed, `models` what these and published figures name.
    """

    model: ModelSpec
    workload: Workload
    hardware: HardwareConfig
    numerics: Numerics
    paths: Sequence[str]
    options: Mapping[str, Mapping[str, object] | None]
    settings: Settings
    technology: Technology | None = None
    devices: Mapping[str, Device] = dataclasses.field(default_factory=dict)
    models: Mapping[str, ModelSpec] = dataclasses.field(default_factory=dict)
    measurements: Sequence[Measurement] = ()

    def __post_init__(self) -> None:
        for name, options in self.options.items():
            if options is not None and not isinstance(options, Mapping):
                raise TripathError(f"simulator.{name}: needs a mapping, got {options!r}")
        paths = (*PATHS, *(name for name, options in self.options.items() if (options or {}).get("module")))
        unknown = [path for path in self.paths if path not in paths]
        settings = self.settings
        asked = (
            settings.streams,
            settings.host,
            self.measurements or None,
            settings.published or None,
            settings.devices or None,
        )
        nothing = not self.paths and all(what is None for what in asked)
        if unknown:
            raise TripathError(f"paths: unknown {unknown[0]!r}, one of {', '.join(paths)}")
        if nothing or len(set(self.paths)) != len(self.paths):
            raise TripathError(f"paths: must be a choice of {', '.join(paths)}, got {list(self.paths)}")
        for name in settings.devices:
            if name not in self.devices:
                raise TripathError(f"validation.devices: no device {name!r}, one of {', '.join(self.devices)}")
        if settings.devices and self.workload.prompt_length is None:
            raise TripathError("validation.devices: needs workload.prompt_length, the tokens of a prompt")
        for name in self.options:
            if name not in paths:
                raise TripathError(
                    f"simulator.{name}: no such simulator, one of {', '.join(paths)}; your own needs module"
                )
        if "rtl" in self.paths and "accuracy" not in self.paths:
            raise TripathError("paths: rtl needs accuracy beside it, whose trace and bits it is compared with")
        if self.trace_giver and self.model.checkpoint is None:
            raise TripathError(
                f"paths: model {self.model.name} has no checkpoint to execute; use paths=[analytical,cycle] or give "
                "model.checkpoint"
            )

    @property
    def trace_giver(self) -> str | None:
        """The path whose trace the timing paths replay; None: they take the workload's schedule."""
        return next((name for name in TRACE_GIVERS if name in self.paths), None)

    @property
    def runs_program(self) -> bool:
        """Whether a path runs a program."""
        return any(name != QUALITY for name in self.paths)

    @property
    def reference_only(self) -> str:
        """The choice for which `quality` alone runs, as no program carries it out; empty where there is none."""
        return reference_only(self.workload, self.numerics) if list(self.paths) == [QUALITY] else ""


class Tokenizer(Protocol):
    """Text to token ids and back (accuracy.checkpoint.TextTokenizer)."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """Words that the vocabulary lacks."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Token ids and texts, one per sequence; the tokenizer (None: the model has none), and words it does not know."""

    token_ids: list[list[int]]
    texts: list[str]
    tokenizer: Tokenizer | None
    unknown_words: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """What the accuracy path generated: per sequence the prompt and text, and of each token its id, text, and the denoising
    step of its block (from 1; 0: none) that committed it; denoising steps per block."""

    prompts: Sequence[str]
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    tokens: Sequence[Sequence[str]]
    commit_steps: Sequence[Sequence[int]]
    trip_counts: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outputs of a run. `program` None: no path ran one, at most `quality`. `cached` paths were not run anew.
    `reference_only`: why, where no program carries out what was asked for.

    `devices`: metrics of other hardware by name; `tables` and `files` (name, text) are what such a comparison leaves.
    """

    program: Program | None
    results: Mapping[str, Result]
    wall_seconds: Mapping[str, float]
    discrepancies: Sequence[Discrepancy]
    generated: Generated | None
    fail_on: Sequence[str]
    devices: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cached: Sequence[str] = ()
    reference_only: str = ""

    @property
    def trace_digest(self) -> str:
        """Digest of the trace that the paths of the program share; empty where there is no program."""
        return next((result.trace_digest for result in self.results.values() if result.program_digest), "")

    @property
    def failures(self) -> list[Discrepancy]:
        """Discrepancies that make the run fail."""
        return [row for row in self.discrepancies if not row.passed and row.kind in self.fail_on]

    @property
    def status(self) -> str:
        """`passed` or `failed`."""
        return "failed" if self.failures else "passed"


def read_prompts(experiment: Experiment, default_prompt: str | None) -> Prompts:
    """The prompts of an experiment; where only a length is given, that many tokens, counted up, without mask and EOS.

    Raises:
        TripathError: no prompt, an unreadable file, an empty prompt, or a number of prompts other than the batch.
    """
    workload, model = experiment.workload, experiment.model
    tokenizer = None
    if model.checkpoint is not None:
        from accuracy.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(model.checkpoint)
    if workload.prompt_length is not None:
        plain = [i % model.vocab for i in range(FIRST_SYNTHETIC_TOKEN, FIRST_SYNTHETIC_TOKEN + workload.prompt_length)]
        special = (model.mask_id, model.eos_id)
        tokens = [min(set(range(3)) - set(special)) if token in special else token for token in plain]
        texts = [f"{workload.prompt_length} tokens"] * workload.batch
        return Prompts(token_ids=[tokens] * workload.batch, texts=texts, tokenizer=tokenizer, unknown_words=[])
    if tokenizer is None:
        raise TripathError(
            f"workload.prompt_length: model {model.name} has no tokenizer, give the prompt's length in tokens"
        )
    texts = _texts(workload, default_prompt)
    token_ids = [tokenizer.encode(text) for text in texts]
    if not all(token_ids):
        raise TripathError("workload.prompt: the prompt is empty")
    unknown = sorted({word for text in texts for word in tokenizer.unknown_words(text)})
    return Prompts(token_ids=token_ids, texts=texts, tokenizer=tokenizer, unknown_words=unknown)


def read_prompts_file(name: str) -> list[str]:
    """The prompts of a file, one a line, blank lines left out.

    Raises:
        TripathError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise TripathError(f"workload.prompts_file: cannot read {name} ({error})") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise TripathError(f"workload.prompts_file: no prompt in {name}")
    return texts


def _texts(workload: Workload, default_prompt: str | None) -> list[str]:
    if workload.prompts_file is not None:
        texts = read_prompts_file(workload.prompts_file)
        if len(texts) != workload.batch:
            counted = f"{workload.prompts_file} has {len(texts)} prompts"
            raise TripathError(f"workload.batch: {workload.batch}, but {counted}")
        return texts
    text = workload.prompt if workload.prompt is not None else default_prompt
    if text is None:
        raise TripathError("workload.prompt: no prompt is given")
    return [text] * workload.batch


def headline(experiment: Experiment, outcome: Outcome) -> Table:
    """One row per timing path, as text: what a reader looks at first."""
    rows = []
    for name, result in outcome.results.items():
        if name in TRACE_GIVERS:
            continue
        metrics = result.metrics
        cycles = metrics["estimated_cycles" if "estimated_cycles" in metrics else "makespan_cycles"]
        row = [name, f"{cycles:,.0f}", format_seconds(cycles / experiment.hardware.clock_hz)]
        row.append(_number(metrics["tokens_per_second"]) if "tokens_per_second" in metrics else "")
        if "sampling_share" in metrics:
            row += [_bound_by(metrics, cycles), f"{metrics['matrix_utilisation']:.1%}", f"{metrics['sampling_share']:.1%}",
                    _number(metrics["tokens_per_joule"]) if "tokens_per_joule" in metrics else ""]  # fmt: skip
        rows.append([*row, *[""] * (8 - len(row))])
    columns = ["path", "cycles", "time", "tokens/s", "bound by", "array use", "sampling", "tokens/J"]
    return Table(columns=columns, rows=rows)


def energy_line(outcome: Outcome) -> str:
    """Energy, power and area of the run in one line, by the cycle path where it ran; empty without a technology."""
    timed = [outcome.results[name].metrics for name in ("cycle", "analytical") if name in outcome.results]
    if not timed or "energy_joules" not in timed[0]:
        return ""
    metrics, prefix = timed[0], "block_energy_joules."
    blocks = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    largest = sorted(blocks, key=lambda name: -blocks[name])[:3]
    shares = ", ".join(f"{name} {blocks[name] / metrics['energy_joules']:.0%}" for name in largest)
    return (
        f"energy {metrics['energy_joules']:.3g} J ({shares}), {metrics['average_power_watts']:.3g} W of at most "
        f"{metrics['peak_power_watts']:.3g} W, {metrics['area_mm2']:.3g} mm2; "
        f"{metrics['energy_assumed_share']:.0%} of the energy rests on assumed numbers"
    )


def verdicts(outcome: Outcome) -> Table:
    """The checks as text: equal counts in one row, everything else singly; a failure names its two witnesses."""
    rows: list[list[str]] = []
    equal = sum(row.kind == "count" and row.passed for row in outcome.discrepancies)
    if equal:
        rows.append([f"{equal} counts equal", "count", "", "", "", "0", "passed"])
    rows += [
        [
            _subject(row) if row.passed else f"{_subject(row)}: {row.observed_source} vs {row.expected_source}", row.kind,
            _number(row.expected), _number(row.observed), _error(row.kind, row.relative_error),
            _tolerance(row.kind, row.tolerance), row.verdict,
        ]
        for row in outcome.discrepancies
        if row.kind != "count" or not row.passed
    ]  # fmt: skip
    return Table(columns=["check", "kind", "expected", "observed", "error", "tolerance", "verdict"], rows=rows)


def _subject(row: Discrepancy) -> str:
    return row.metric if row.scope in WHOLE_RUN else f"{row.metric} {row.scope}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.5g}"


def _error(kind: str, error: float) -> str:
    return f"{error:+.4f}" if kind == "fidelity" else f"{error:+.2%}"


def _tolerance(kind: str, tolerance: float) -> str:
    if kind == "bound":
        return ">="
    return f"{tolerance:g}" if kind == "fidelity" or tolerance < 1e-3 else f"{tolerance:.0%}"


def _bound_by(metrics: Mapping[str, float], cycles: float) -> str:
    """The busiest resource, with its share of the time."""
    kind = "bound_cycles." if any(name.startswith("bound_cycles.") for name in metrics) else "busy_cycles."
    loads = {name.removeprefix(kind): value for name, value in metrics.items() if name.startswith(kind)}
    busiest = max(loads, key=lambda name: loads[name])
    return f"{busiest} {loads[busiest] / cycles:.0%}"


def check_values(key: str, values: object) -> None:
    """Check the configuration of an object, a mapping with `_target_`, against the fields of its dataclass.

    Raises:
        TripathError: an unknown or missing key, or a value of the wrong type; the message names the full key.
    """
    if not isinstance(values, Mapping) or "_target_" not in values:
        file = f"; a file is chosen by {key.replace('.', '/')}={values}" if isinstance(values, str) else ""
        raise TripathError(f"{key}: needs a mapping with _target_, got {values!r}{file}")
    module, _, name = str(values["_target_"]).rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError, TypeError):
        raise TripathError(f"{key}._target_: no class {values['_target_']}") from None
    if not dataclasses.is_dataclass(target):
        return
    types_of = typing.get_type_hints(target)
    for name, value in values.items():
        if name not in types_of and not str(name).startswith("_"):
            raise TripathError(f"{key}.{name}: no such key, one of {', '.join(types_of)}")
        if name in types_of:
            _check_value(f"{key}.{name}", value, types_of[name])
    for field in dataclasses.fields(target):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise TripathError(f"{key}.{field.name}: is missing")


def _check_value(key: str, value: object, kind: typing.Any) -> None:  # noqa: ANN401  a type or a generic alias
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return
        plain = [argument for argument in arguments if argument is not type(None)]
        if any(_is_a(value, argument) for argument in plain):
            return
        kind = plain[0]
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Sequence and isinstance(value, list):
        for number, item in enumerate(value):
            _check_value(f"{key}[{number}]", item, arguments[0])
    elif origin is Mapping and isinstance(value, Mapping):
        for name, item in value.items():
            _check_value(f"{key}.{name}", item, arguments[1])
    elif dataclasses.is_dataclass(kind):
        check_values(key, value)
    elif not _is_a(value, origin or kind):
        raise TripathError(f"{key}: must be {TYPE_NAMES.get(kind, 'a list or mapping')}, got {value!r}")


def _is_a(value: object, kind: object) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (str, bool) else False
