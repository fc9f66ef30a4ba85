"""The paths of an experiment, each after those that it needs: run, or taken from the cache of results.

Nothing here knows where it runs: `tripath.cluster.launch` spreads it out.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from npu.choices import TYPE_NAMES, is_a
from npu.errors import TripathError
from npu.metrics import Result, Table
from npu.program import Program
from npu.program.trace import Trace
from npu.sources import digest_of_sources
from tripath.experiment import Experiment
from tripath.paths import INPUTS, PATHS, Fact, Path, cycles_of, in_order
from tripath.run.comparison import Findings, comparisons
from tripath.run.results import Cache, digest_of, folder_digest, library_versions
from tripath.validation import Discrepancy

INPUT_ERRORS = (TripathError, OSError)
"""Errors that a user can act on; all others are defects."""
LIBRARIES = ("numpy", "numba", "tokenizers")
"""Libraries that every path may compute with."""
WORKED_OUT = Fact.BITS | Fact.TIMES
"""Facts too large to keep: whoever needs them works them out anew, and depends on the sources of who gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathRun:
    """The run of one path: its result or findings, its trace, the seconds it took to compute, and whether it was cached.

    A path that simulates has a `result`; a comparison has `findings`. Only paths that execute have `token_ids` (per
    sequence), `trip_counts` (denoising steps per block) and `commit_steps` (per sequence).
    """

    result: Result | None
    trace: Trace | None
    wall_seconds: float
    cached: bool = False
    token_ids: Sequence[Sequence[int]] | None = None
    trip_counts: Sequence[int] | None = None
    commit_steps: Sequence[Sequence[int]] | None = None
    findings: Findings = field(default_factory=Findings)


def rows_of(experiment: Experiment) -> list[Path]:
    """All rows of an experiment that are kept and may run in a task, each after those that it needs."""
    return in_order([row for row in (*experiment.rows, *comparisons(experiment)) if not row.here])


def run_path(
    name: str,
    program: Program | None,
    experiment: Experiment,
    prompts: Sequence[Sequence[int]],
    trace: Trace | None,
    cache: Cache,
) -> PathRun:
    """Run one path, or take what the cache has. `trace` is replayed by who needs one; some give another.

    Raises:
        TripathError: an option that the path lacks, or it refuses its input.
    """
    row = next(row for row in rows_of(experiment) if row.name == name)
    trace = experiment.with_load(program, trace)
    arguments, digest = _inputs(row, program, experiment, prompts, trace)
    known = _known(row, program, cache, digest)
    if known is not None:
        return known
    began = time.perf_counter()
    found = (row.run or row.simulate)(**arguments)
    seconds = time.perf_counter() - began
    if isinstance(found, Findings):
        run = PathRun(result=None, trace=None, wall_seconds=seconds, findings=found)
    else:
        run = _of_simulator(found, trace, seconds)
        if Fact.CYCLES in row.gives and (run.result is None or cycles_of(run.result.metrics) is None):
            raise TripathError(f"simulator.{name}: its metrics need makespan_cycles or estimated_cycles")
    cache.put(digest, {field.name: getattr(run, field.name) for field in fields(run)})
    return run


def _of_simulator(found: Any, trace: Trace | None, seconds: float) -> PathRun:  # noqa: ANN401  a result, or an outcome with one
    generated: dict[str, Any] = {
        name: getattr(found, name, None) for name in ("token_ids", "trip_counts", "commit_steps")
    }
    result = found if isinstance(found, Result) else found.result
    return PathRun(result=result, trace=getattr(found, "trace", trace), wall_seconds=seconds, **generated)


def known_runs(
    program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], cache: Cache
) -> dict[str, PathRun] | None:
    """All paths of an experiment as the cache has them; None if it lacks one."""
    for row in rows_of(experiment):
        _inputs(row, program, experiment, prompts, experiment.schedule(prompts, program))  # refused before any starts

    def known(row: Path, trace: Trace | None) -> PathRun | None:
        loaded = experiment.with_load(program, trace)
        return _known(row, program, cache, _inputs(row, program, experiment, prompts, loaded)[1])

    return _each(program, experiment, prompts, known)


def run_paths(
    program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], cache: Cache
) -> dict[str, PathRun]:
    """All paths of an experiment one after the other, each after those that it needs."""
    runs = _each(
        program, experiment, prompts, lambda row, trace: run_path(row.name, program, experiment, prompts, trace, cache)
    )
    assert runs is not None
    return runs


def _each(
    program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]],
    take: Callable[[Path, Trace | None], PathRun | None],
) -> dict[str, PathRun] | None:  # fmt: skip
    """Call `take` for each row in order, with the trace that the row replays; None if `take` returns None for a row."""
    runs: dict[str, PathRun] = {}
    trace: Trace | None = experiment.schedule(prompts, program)
    for row in rows_of(experiment):
        found = take(row, trace)
        if found is None:
            return None
        runs[row.name] = found
        trace = found.trace if row.name == experiment.trace_giver else trace
    return runs


def _inputs(
    row: Path, program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], trace: Trace | None
) -> tuple[dict[str, Any], str]:
    """The arguments of a path, and a digest of them, of the path's sources and of library versions.

    Raises:
        TripathError: an option that the path lacks, or one of the wrong type.
    """
    model = experiment.model
    facts: dict[Fact, Any] = {
        Fact.PROGRAM: program, Fact.HARDWARE: experiment.hardware, Fact.MODEL: model, Fact.WORKLOAD: experiment.workload,
        Fact.NUMERICS: experiment.shown_numerics, Fact.PROMPTS: prompts, Fact.TECHNOLOGY: experiment.technology,
        Fact.TRACE: trace,
    }  # fmt: skip
    inputs = {fact.argument: facts[fact] for fact in row.needs & INPUTS}
    content = dict(inputs)
    if Fact.MODEL in row.needs:
        folders = [None if folder is None else folder_digest(folder) for folder in (model.checkpoint, model.adapter)]
        content |= {"model": replace(model, checkpoint=None, adapter=None), "weights": folders}
    options = _options(row, experiment)
    content |= {name: folder_digest(str(options[name])) for name in row.files if options.get(name)}
    if Fact.PROGRAM in row.needs:
        assert program is not None
        content["program"] = program.digest, program.phases
    witnesses = [other.module for other in PATHS.values() if other.gives & row.needs & WORKED_OUT]
    named = [str(options[name]) for name in row.modules if options.get(name)]
    sources = digest_of_sources(row.module, *witnesses, *named)
    versions = library_versions(*LIBRARIES, *([row.library] if row.library else []))
    return {**inputs, **options}, digest_of(row.name, content, options, row.content, sources, versions)


def _options(row: Path, experiment: Experiment) -> dict[str, object]:
    """The options of a path that the experiment gives.

    Raises:
        TripathError: the path lacks one, or it is of another type than its default.
    """
    options = dict(experiment.options.get(row.name) or {})
    if row.name not in PATHS:
        options.pop("module", None)
    if not options:
        return {}
    known, handed = inspect.signature(row.simulate).parameters, [fact.argument for fact in row.needs]
    possible = [key for key, each in known.items() if key not in handed and each.default is not each.empty]
    for option, value in options.items():
        if option not in possible:
            raise TripathError(
                f"simulator.{row.name}: unknown option {option!r}, one of {', '.join(possible) or 'none'}"
            )
        kind = type(known[option].default)
        if kind in TYPE_NAMES and not is_a(value, kind):
            raise TripathError(f"simulator.{row.name}.{option}: must be {TYPE_NAMES[kind]}, got {value!r}")
    return options


def _known(row: Path, program: Program | None, cache: Cache, digest: str) -> PathRun | None:
    """The run in the cache under `digest`; None if there is none of this path and program."""
    content = cache.get(digest)
    if content is None:
        return None
    try:
        run = PathRun(**{
            **content, "cached": True, "result": _result(content["result"]), "trace": _trace(content["trace"]),
            "findings": _findings(content["findings"]),
        })  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    if Fact.CHECKS in row.gives:
        return run if run.result is None else None
    if run.result is None or run.trace is None:
        return None
    of_program = program.digest if program is not None and Fact.PROGRAM in row.needs else ""
    whole = run.result.simulator == row.name and run.result.program_digest == of_program
    return run if whole and run.result.trace_digest == run.trace.digest else None


def _result(content: Mapping[str, Any] | None) -> Result | None:
    if content is None:
        return None
    if not all(isinstance(value, int | float) for value in content["metrics"].values()):
        raise TypeError("a metric is no number")
    return Result(**{**content, "tables": {name: Table(**table) for name, table in content["tables"].items()}})


def _trace(content: Mapping[str, Any] | None) -> Trace | None:
    return None if content is None else Trace(**{name: tuple(stream) for name, stream in content.items()})


def _findings(content: Mapping[str, Any]) -> Findings:
    tables = {name: Table(**table) for name, table in content["tables"].items()}
    return Findings(**{**content, "checks": [Discrepancy(**row) for row in content["checks"]], "tables": tables})
