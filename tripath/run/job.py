"""One job: an experiment's program is compiled, its paths run on it, and what they found is compared.

A result that the cache has is not computed again. Nothing here knows where it runs: `tripath.cluster.launch` spreads it out.
"""

import importlib
import inspect
import math
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npu.errors import TripathError
from npu.metrics import Result, Table
from npu.program import Program
from npu.program.trace import Trace
from npu.sources import digest_of_sources
from npu_compiler import compile_program, schedule, target
from tripath.experiment import Experiment, Generated, Outcome, Prompts
from tripath.experiment.inputs import PATHS, QUALITY, TRACE_GIVERS
from tripath.experiment.prompts import read_prompts
from tripath.report.run_report import write_files
from tripath.run.comparison import Show, with_other_hardware
from tripath.run.results import Cache, digest_of, folder_digest
from tripath.validation import check_streams, validate

if TYPE_CHECKING:
    from cycle.streams import Stream

INPUT_ERRORS = (TripathError, OSError)
"""What a user can act on; other errors are defects."""
MODULES = {QUALITY: "accuracy.quality"}
"""Where a path lives that is no package of its own name."""
LIGHT = ["analytical"]
"""Paths that take milliseconds."""
EXECUTING = ("accuracy", "rtl")
"""Paths that execute a program and so generate something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathRun:
    """What one path found, on which trace, in how many seconds when it was computed, and whether the cache had it.

    `token_ids` (per sequence) and `trip_counts` (denoising steps per block) are of the paths that execute, `commit_steps`
    (per sequence) of accuracy.
    """

    result: Result
    trace: Trace
    wall_seconds: float
    cached: bool = False
    token_ids: Sequence[Sequence[int]] | None = None
    trip_counts: Sequence[int] | None = None
    commit_steps: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A compiled program and the prompts that it is for; None and none for an experiment that runs no program."""

    program: Program | None
    prompts: Prompts | None

    @property
    def token_ids(self) -> list[list[int]]:
        """Token ids, one list per sequence."""
        return self.prompts.token_ids if self.prompts else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job of a sweep. `name` says what is its own; `configuration` and `command` are kept with what it leaves, which is
    a row of the sweep's table alone where `row_only`."""

    number: int
    name: str
    folder: Path
    experiment: Experiment
    default_prompt: str | None
    configuration: str
    command: str
    row_only: bool = False

    @property
    def light(self) -> bool:
        """Whether it takes milliseconds and leaves no files, so that a task of its own would cost more."""
        return self.row_only and self.experiment.paths == LIGHT


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """What a worker hands back of a job: verdict, metrics by full name, wall seconds, cached paths, its files, notes."""

    status: str
    failures: Sequence[str]
    metrics: Mapping[str, float]
    wall_seconds: Mapping[str, float]
    cached: Sequence[str]
    files: Mapping[str, bytes]
    unknown_words: Sequence[str]


def prepare(experiment: Experiment, default_prompt: str | None) -> Prepared:
    """Read the prompts and compile the program.

    Raises:
        TripathError: the prompts or the combination are not possible.
    """
    if not experiment.runs_program:
        return Prepared(program=None, prompts=None)
    prompts = read_prompts(experiment, default_prompt)
    lengths = [len(tokens) for tokens in prompts.token_ids]
    program = compile_program(experiment.model, experiment.workload, experiment.hardware, experiment.numerics, lengths)
    return Prepared(program=program, prompts=prompts)


def compile_key(experiment: Experiment, default_prompt: str | None) -> str:
    """Digest of what `prepare` depends on: jobs with the same share one program."""
    e = experiment
    return digest_of(e.model, e.workload, target(e.hardware), e.numerics, default_prompt, e.runs_program)


def run_path(
    name: str,
    program: Program | None,
    experiment: Experiment,
    prompts: Sequence[Sequence[int]],
    trace: Trace | None,
    cache: Cache,
) -> PathRun:
    """Run one path, or take what the cache has. `trace` is replayed by a timing path; the others give one.

    Raises:
        TripathError: an option that the simulator lacks, or it refuses its input.
    """
    inputs, digest = _inputs(name, program, experiment, prompts, trace)
    known = _known(name, program, cache, digest)
    if known is not None:
        return known
    began = time.perf_counter()
    if name == "rtl":
        assert program is not None
        inputs = _with_witnesses(program, experiment, inputs)
    found = importlib.import_module(module_of(name, experiment)).simulate(**inputs)
    seconds = time.perf_counter() - began
    if name == QUALITY:
        run = PathRun(result=found.result, trace=found.trace, wall_seconds=seconds)
    elif name in EXECUTING:
        run = PathRun(result=found.result, trace=found.trace, wall_seconds=seconds, token_ids=found.token_ids,
                      trip_counts=found.trip_counts, commit_steps=getattr(found, "commit_steps", None))  # fmt: skip
    else:
        assert trace is not None
        run = PathRun(result=found, trace=trace, wall_seconds=seconds)
    cache.put(digest, {field.name: getattr(run, field.name) for field in fields(run)})
    return run


def module_of(name: str, experiment: Experiment) -> str:
    """The module in which a path lives: its own, or the one that the options of a path of the user's own name."""
    options = experiment.options.get(name) or {}
    return MODULES.get(name, name) if name in PATHS else str(options["module"])


def known_runs(
    program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], cache: Cache
) -> dict[str, PathRun] | None:
    """All paths of an experiment as the cache has them; None if it lacks one."""
    runs: dict[str, PathRun] = {}
    trace = schedule(experiment.workload)
    for name in experiment.paths:
        _inputs(name, program, experiment, prompts, trace)  # what a path refuses is refused before any starts
    for name in in_order(experiment.paths):
        found = _known(name, program, cache, _inputs(name, program, experiment, prompts, trace)[1])
        if found is None:
            return None
        runs[name] = found
        trace = found.trace if name == experiment.trace_giver else trace
    return runs


def run_paths(
    program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], cache: Cache
) -> dict[str, PathRun]:
    """All paths of an experiment one after the other, those first whose trace the timing paths replay."""
    runs: dict[str, PathRun] = {}
    trace = schedule(experiment.workload)
    for name in in_order(experiment.paths):
        runs[name] = run_path(name, program, experiment, prompts, trace, cache)
        trace = runs[name].trace if name == experiment.trace_giver else trace
    return runs


def in_order(paths: Sequence[str]) -> list[str]:
    """The paths, those first that give a trace."""
    return sorted(paths, key=lambda name: name not in TRACE_GIVERS)


def outcome_of(
    experiment: Experiment, prepared: Prepared, runs: Mapping[str, PathRun], show: Show = lambda _: None
) -> Outcome:
    """What came out of an experiment: results compared with each other, with theory, with what was measured elsewhere."""
    settings = experiment.settings
    streams = read_measured(experiment)
    results = {name: runs[name].result for name in experiment.paths}
    outcome = Outcome(
        program=prepared.program, results=results, discrepancies=validate(results, settings), fail_on=settings.fail_on,
        wall_seconds={name: runs[name].wall_seconds for name in experiment.paths},
        generated=_generated(experiment, prepared.prompts, runs.get("accuracy")),
        cached=[name for name in experiment.paths if runs[name].cached], reference_only=experiment.reference_only,
    )  # fmt: skip
    checks = check_streams(streams) if streams else []
    outcome = replace(outcome, discrepancies=[*outcome.discrepancies, *checks])
    return with_other_hardware(experiment, outcome, show)


def read_measured(experiment: Experiment) -> "list[Stream]":
    """The memory streams that the experiment names, none where it names no file.

    Raises:
        TripathError: the file cannot be read, or is not one of streams.
    """
    if experiment.settings.streams is None:
        return []
    from cycle.streams import read_streams

    return read_streams(experiment.settings.streams, experiment.hardware.hbm)


def run_job(prepared: Prepared, job: Job, cache: Cache) -> JobOutcome:
    """Run one job of a sweep in a worker. Its files are handed back: the worker's disk may not be the driver's.

    Raises:
        TripathError: a simulator refuses its input.
    """
    runs = run_paths(prepared.program, job.experiment, prepared.token_ids, cache)
    outcome = outcome_of(job.experiment, prepared, runs)
    files: dict[str, bytes] = {}
    if not job.row_only:
        with tempfile.TemporaryDirectory() as place:
            written = write_files(
                Path(place),
                job.experiment,
                outcome,
                configuration=job.configuration,
                command=job.command,
                name=job.name,
            )
            files = {file.name: file.read_bytes() for file in written}
    metrics = {
        f"{name}.{key}": value
        for name, result in outcome.results.items()
        for key, value in result.metrics.items()
        if math.isfinite(value)
    }
    failures = [f"{row.metric} ({row.kind})" for row in outcome.failures]
    return JobOutcome(
        status=outcome.status, failures=failures, metrics=metrics, wall_seconds=outcome.wall_seconds,
        cached=outcome.cached, files=files, unknown_words=prepared.prompts.unknown_words if prepared.prompts else [],
    )  # fmt: skip


def run_light_jobs(jobs: Sequence[Job], cache: Cache) -> list[JobOutcome | Exception]:
    """Outcome or error of each job, one run after the other; those of one program that stand together share it."""
    found: list[JobOutcome | Exception] = []
    key, prepared = None, None
    for job in jobs:
        inputs = job.experiment, job.default_prompt
        try:
            if prepared is None or compile_key(*inputs) != key:
                key, prepared = compile_key(*inputs), prepare(*inputs)
            found.append(run_job(prepared, job, cache))
        except INPUT_ERRORS as error:
            found.append(error)
        except Exception:  # noqa: BLE001  the others go on
            found.append(RuntimeError(traceback.format_exc()))
    return found


def _generated(experiment: Experiment, prompts: Prompts | None, run: PathRun | None) -> Generated | None:
    if run is None or prompts is None or prompts.tokenizer is None:
        return None
    assert run.token_ids is not None
    assert run.trip_counts is not None
    assert run.commit_steps is not None
    decode, model = prompts.tokenizer.decode, experiment.model
    special = {model.mask_id: "[mask]", model.eos_id: "[end]"}
    return Generated(
        prompts=prompts.texts, texts=[decode(list(ids)) for ids in run.token_ids], token_ids=run.token_ids,
        tokens=[[special.get(token) or decode([token]) or f"[{token}]" for token in ids] for ids in run.token_ids],
        commit_steps=run.commit_steps, trip_counts=run.trip_counts,
    )  # fmt: skip


def _with_witnesses(program: Program, experiment: Experiment, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the RTL starts from, and what it must agree with: the executor's memories, the cycle path's times."""
    accuracy, cycle, rtl = (importlib.import_module(name) for name in ("accuracy", "cycle", "rtl"))
    image, machine = accuracy.final_state(
        program, model=experiment.model, workload=experiment.workload, prompts=inputs["prompts"]
    )
    times = cycle.instruction_times(
        program, hardware=experiment.hardware, trace=inputs["trace"], most_events=int(machine.retired.sum())
    )
    own = {name: value for name, value in inputs.items() if name != "prompts"}
    names = [field.name for field in fields(rtl.Memories)]
    return {
        **own,
        "image": image,
        "expected": rtl.Memories(**{name: getattr(machine, name) for name in names}),
        "times": times,
    }


def _inputs(
    name: str, program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], trace: Trace | None
) -> tuple[dict[str, Any], str]:
    """What a simulator is given, and the digest of all of it and of its sources."""
    module, model, workload = module_of(name, experiment), experiment.model, experiment.workload
    if name == QUALITY:
        inputs: dict[str, Any] = {"model": model, "workload": workload, "numerics": experiment.numerics}
    elif name == "accuracy":
        inputs = {"model": model, "workload": workload, "prompts": prompts}
    elif name == "rtl":
        inputs = {"hardware": experiment.hardware, "trace": trace, "prompts": prompts}
    else:
        inputs = {"hardware": experiment.hardware, "trace": trace, "technology": experiment.technology}
    content: dict[str, object] = dict(inputs)
    if name in (QUALITY, *EXECUTING):
        weights = None if model.checkpoint is None else folder_digest(model.checkpoint)
        content |= {"model": replace(model, checkpoint=None), "weights": weights}
    if name == "rtl":
        content |= {"workload": workload, "witnesses": digest_of_sources("accuracy", "cycle")}
    if name != QUALITY:
        assert program is not None
        inputs["program"] = program
        content["program"] = program.digest, program.phases
    options = dict(experiment.options.get(name) or {})
    try:
        known = inspect.signature(importlib.import_module(module).simulate).parameters
    except (ImportError, AttributeError) as error:
        raise TripathError(f"simulator.{name}.module: no function simulate in {module} ({error})") from None
    if name not in PATHS:  # it takes of the inputs what it needs
        del options["module"]
        inputs = {key: value for key, value in inputs.items() if key in known}
    possible = [key for key, each in known.items() if key not in inputs and each.default is not each.empty]
    for option in options:
        if option not in possible:
            raise TripathError(f"simulator.{name}: unknown option {option!r}, one of {', '.join(possible) or 'none'}")
    sources = digest_of_sources(module)
    return {**inputs, **options}, digest_of(name, content, options, sources)


def _known(name: str, program: Program | None, cache: Cache, digest: str) -> PathRun | None:
    """What the cache has under `digest`, if it is of this path and program."""
    content = cache.get(digest)
    if content is None:
        return None
    try:
        result, trace = content["result"], content["trace"]
        tables = {title: Table(**table) for title, table in result["tables"].items()}
        run = PathRun(**{
            **content, "cached": True, "result": Result(**{**result, "tables": tables}),
            "trace": Trace(breaks=tuple(trace["breaks"]), gathers=tuple(trace["gathers"])),
        })  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        return None
    of_program = "" if name == QUALITY or program is None else program.digest
    whole = run.result.simulator == name and run.result.program_digest == of_program
    return run if whole and run.result.trace_digest == run.trace.digest else None
