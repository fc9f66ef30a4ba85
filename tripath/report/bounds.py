"""Where the cycles of a run go and what bounds them, by phase and by kind of step: the paths side by side.

A phase's cycles are those by which its instructions prolong the run, so the phases add up to it, and the shares of the
units and causes add up to a phase. The waits of one unit (table `stalls`) add up to the run over all phases, not within one:
while a unit waits for the next work of a phase, other phases run.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dllm.model import ModelSpec
from npu.metrics import Result, Table
from npu.units import format_seconds
from tripath.experiment import Experiment, Outcome
from tripath.paths import Fact, gives
from tripath.report.page import bar

CAUSES = {
    "busy": "its pace", "frontend": "the front end", "semaphore_matrix": "matrix", "semaphore_vector": "vector",
    "semaphore_dma_in": "loads", "semaphore_dma_out": "stores", "operand": "the result before",
    "dram_bandwidth": "HBM's bandwidth", "dram_latency": "HBM's latency", "dram_row": "HBM's rows",
    "dram_refresh": "HBM's refresh", "host": "the host",
}  # fmt: skip
"""Causes that delayed the start of the instruction that completes last, in words."""
PHASES = (
    "Cycles are those by which a phase prolongs the run, so they add up to it. Prolonged by: the unit whose instructions "
    "complete last in most of these cycles, and what they waited for before they started; its pace: for nothing, the unit was "
    "busy until then. At least: what the busiest resource needs if nothing ever waits."
)
STEPS = (
    "The same by kind of step. Warm: a block's first step, which forwards more than the block; refine: its other steps; "
    "a pass is one such step."
)
STALLS = (
    "Each unit's own time: what it does, or waits to do, for the instructions of a phase. The rows of a unit add up to the run; "
    "those of a phase do not add up to its cycles, since a wait for the next work of a phase lasts while other phases run."
)


class Adds(NamedTuple):
    """Cycles that something adds to the run, by (unit, cause)."""

    cycles: int
    by: Mapping[tuple[str, str], int]


def paths_of(results: Mapping[str, Result]) -> tuple[Result | None, Result | None]:
    """The result that has times, and the one that has an estimate."""
    exact = next((result for name, result in results.items() if Fact.TIMES in gives(name)), None)
    return exact, next((result for name, result in results.items() if Fact.ESTIMATE in gives(name)), None)


def by_phase(results: Mapping[str, Result]) -> Table | None:
    """A row for each phase: its share of the run, what prolongs the run there, and what each path says bounds it."""
    exact, estimate = paths_of(results)
    bounds = {} if estimate is None else {str(row[0]): row for row in estimate.tables["phases"].rows}
    if exact is None:
        columns = ["phase", "at least", "bound by"]
        return Table(columns=columns, rows=[[name, *_bound(row)] for name, row in bounds.items()]) if bounds else None
    adds, makespan = _adds(exact), exact.metrics["makespan_cycles"]
    rows = [
        [
            name, f"{own.cycles / makespan:.1%}", bar(own.cycles / makespan), own.cycles, _prolonged(own),
            *(_bound(bounds[name]) if bounds else ()),
        ]
        for name, own in adds.items()
    ]  # fmt: skip
    beside = ["at least", "bound by"] if bounds else []
    return Table(columns=["phase", "share", "", "cycles", "prolonged by", *beside], rows=rows)


def _named(layers: Sequence[int]) -> str:
    """Numbers of layers in words; those of a group that comes again and again are listed."""
    if len(layers) == layers[-1] - layers[0] + 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def by_step(results: Mapping[str, Result], model: ModelSpec) -> Table | None:
    """By kind of step all of its cycles, then a row for each group of layers and phase; None without the path of times."""
    exact, estimate = paths_of(results)
    if exact is None:
        return None
    makespan, units = exact.metrics["makespan_cycles"], exact.tables["steps"].columns[5:]
    layers = [_named(each) for _, each in model.network.numbered()]
    bounds = {} if estimate is None else {tuple(row[:3]): _bound(row[2:]) for row in estimate.tables["steps"].rows}
    steps: dict[tuple[str, int], list[tuple[str, str, Adds, Sequence[object]]]] = {}
    for step, times, group, phase, _, *own in exact.tables["steps"].rows:
        by = {(name, ""): int(str(cycles)) for name, cycles in zip(units, own, strict=True)}
        named = layers[int(str(group))] if 0 <= int(str(group)) < len(layers) else ""
        part = named, str(phase), Adds(sum(by.values()), by), bounds.get((step, group, phase), ())
        steps.setdefault((str(step), int(str(times))), []).append(part)
    rows = []
    for (step, times), parts in steps.items():
        by = {key: sum(adds.by[key] for _, _, adds, _ in parts) for key in parts[0][2].by}
        whole = "", "all", Adds(sum(by.values()), by), ("", "") if bounds else ()
        for named, phase, adds, bound in (whole, *parts) if len(parts) > 1 else parts:
            share = adds.cycles / makespan
            rows.append([step, times, named, phase, f"{share:.1%}", bar(share), adds.cycles,
                         round(adds.cycles / max(1, times)), _prolonged(adds), *bound])  # fmt: skip
    beside = ["at least", "bound by"] if bounds else []
    return Table(
        columns=["step", "passes", "layers", "phase", "share", "", "cycles", "a pass", "prolonged by", *beside],
        rows=rows,
    )


def first_block(experiment: Experiment, outcome: Outcome) -> str:
    """When the first block is done, in a sentence; empty where no path says so."""
    exact, _ = paths_of(outcome.results)
    cycles = None if exact is None else exact.metrics.get("first_block_cycles")
    if cycles is None:
        return ""
    return (
        f"The first block is done after {format_seconds(cycles / experiment.hardware.clock_hz)} ({cycles:,.0f} cycles)."
    )


def _adds(exact: Result) -> dict[str, Adds]:
    """By phase what its cycles are, of the table `critical`."""
    table, found = exact.tables["critical"], dict[str, dict[tuple[str, str], int]]()
    causes = table.columns[2:]
    for phase, unit, *cells in table.rows:
        own = found.setdefault(str(phase), {})
        own |= {(str(unit), cause): int(str(cell)) for cause, cell in zip(causes, cells, strict=True)}
    return {phase: Adds(sum(by.values()), by) for phase, by in found.items()}


def _prolonged(adds: Adds) -> str:
    """The unit and cause that add most, with their share."""
    unit, cause = max(adds.by, key=lambda key: adds.by[key])
    return f"{unit} {adds.by[unit, cause] / adds.cycles:.0%}" + f", {CAUSES.get(cause, cause)}" * bool(cause)


def _bound(row: Sequence[object]) -> tuple[int, str]:
    """Cycles of the busiest resource, and which it is; `row` ends with those of all resources and its name."""
    *cycles, name = row[1:]
    return max(int(str(value)) for value in cycles), str(name)
