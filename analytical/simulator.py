"""The analytical path: exact counts, a lower bound that no schedule beats, an estimate, and what bounds each phase."""

from collections.abc import Mapping, Sequence

import numpy as np

from analytical.chains import values_of
from analytical.facts import Costs, costs_of, queues
from analytical.overlap import bound_cycles, estimate_cycles, lines_of, score_of
from analytical.traffic import traffic_of
from analytical.tree import retirements, trip_counts
from npu.collector import collector_paused
from npu.energy import Technology, account
from npu.hardware import HardwareConfig
from npu.isa import Memory, Unit
from npu.metrics import SAMPLING_PHASES, UNITS, Result, Table
from npu.program import Program, fact_of_program
from npu.program.exits import generated_tokens
from npu.program.host import host_turns
from npu.program.options import check_options
from npu.program.steps import places_of
from npu.program.tables import bytes_per_instruction, event_counts, tabulate
from npu.program.trace import Trace


@collector_paused()
def simulate(
    program: Program, *, hardware: HardwareConfig, trace: Trace, technology: Technology | None = None
) -> Result:
    """Closed forms of `program` on `hardware` with the loop exits of `trace`; energy and area where `technology` is given.

    Raises:
        ProgramError: the trace does not belong to the program, or its loops are of a kind that is not analysed.
    """
    check_options(program, hardware)
    retired = retirements(program, trace)
    costs, counts = costs_of(program, hardware), event_counts(program, retired)
    serial = hardware.execution == "serial"
    occupied = costs.latency if serial else costs.interval
    units = tabulate(program).unit
    busy = {
        unit: float((retired * occupied)[units == number].sum())
        for number, unit in enumerate(UNITS)
        if unit in ("matrix", "vector", "scalar")
    }
    moved = float((retired * bytes_per_instruction(program, Memory.HBM))[units != Unit.FRONTEND].sum())
    front_end, host = (float((retired * each).sum()) for each in (costs.front_end, costs.host))
    bounds = {
        "matrix": max(busy["matrix"], float((retired * costs.port).sum())), "vector": busy["vector"] + busy["scalar"],
        "frontend": front_end - host, "memory": moved / hardware.peak_bytes_per_cycle,
    }  # fmt: skip
    bounds |= {"host": host} if host else {}
    if serial:
        between = 2 * hardware.frontend.dispatch_cycles  # to the queue, and back when all is over
        estimate = front_end + float((retired * (costs.latency + between))[units != Unit.FRONTEND].sum())
        bound = sum(busy.values()) + bounds["memory"] + host
    else:
        score = score_of(program, trip_counts(program, trace), lines_of(hardware))
        values = values_of(program, costs, hardware)
        estimate = estimate_cycles(score, values, hardware)
        # Where data decide how often loops go round, the score is of typical numbers, which bound nothing.
        bound = max(*bounds.values(), *([] if trace.counts else [bound_cycles(score, values, hardware, costs.host)]))
    return _result(program, hardware, trace, technology, retired, counts, costs, busy, bounds, bound, estimate)


def _result(
    program: Program, hardware: HardwareConfig, trace: Trace, technology: Technology | None, retired: np.ndarray,
    counts: dict[str, int], costs: Costs, busy: dict[str, float], bounds: dict[str, float], bound: float, estimate: float,
) -> Result:  # fmt: skip
    tokens = generated_tokens(program, trace.breaks)
    moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
    table, phase_bounds = _phases(program, retired, costs)
    whole = sum(phase_bounds.values())
    share = sum(phase_bounds.get(name, 0.0) for name in SAMPLING_PHASES) / whole
    metrics: dict[str, float] = {
        "lower_bound_cycles": int(np.floor(bound)), "estimated_cycles": round(estimate),
        "seconds": estimate / hardware.clock_hz, "tokens_per_second": tokens * hardware.clock_hz / estimate,
        "arithmetic_intensity": counts["macs"] / moved, "sampling_share": share,
        "matrix_utilisation": counts["macs"] / estimate / (hardware.blen * hardware.mlen),
    }  # fmt: skip
    metrics |= {f"bound_cycles.{name}": value for name, value in bounds.items()}
    metrics |= {f"busy_cycles.{unit}": value for unit, value in busy.items()}
    tables = {"phases": table, "steps": _steps(program, retired, costs), "traffic": traffic_of(program, retired)}
    if technology is not None:  # the estimate is not by phase: each takes the share that its bound has
        seconds = np.array(list(phase_bounds.values())) / whole * estimate / hardware.clock_hz
        energy = account(
            program, retired, hardware=hardware, technology=technology, phase_seconds=seconds, tokens=tokens
        )
        metrics |= energy.metrics
        tables |= energy.tables
    return Result(
        simulator="analytical", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics,
        counts=counts, tables=tables,
    )  # fmt: skip


def _phases(program: Program, retired: np.ndarray, costs: Costs) -> tuple[Table, dict[str, float]]:
    """Occupied cycles per queue and phase with what bounds each phase; and the bound of each phase in cycles."""
    names, members = program.phase_names, _members(program)
    loads = _loads(members, retired, costs)
    bounds = {name: max(own.values()) for name, own in zip(names, loads, strict=True)}
    return _loaded(["phase"], [[name] for name in names], loads), bounds


def _steps(program: Program, retired: np.ndarray, costs: Costs) -> Table:
    """The same by kind of step, group of layers and phase."""
    places, _ = places_of(program)
    names = [[place.step, place.group, place.phase] for place in places]
    loads = _loads(_members_of_places(program), retired, costs)
    return _loaded(["step", "group", "phase"], names, loads)


def _loads(members: Sequence[Mapping[str, np.ndarray]], retired: np.ndarray, costs: Costs) -> list[dict[str, float]]:
    """Of each part the cycles that a resource is busy at least: the array and its write-out port work side by side."""
    kinds = [retired * each for each in (costs.ideal, costs.port, costs.host)]
    return [
        {resource: float(max(work[numbers].sum() for work in kinds)) for resource, numbers in own.items()}
        for own in members
    ]


def _loaded(columns: Sequence[str], names: Sequence[Sequence[object]], loads: Sequence[Mapping[str, float]]) -> Table:
    """Cycles of each resource by name, and the resource that has most."""
    rows = [
        [*name, *map(round, own.values()), max(own, key=lambda key: own[key])]
        for name, own in zip(names, loads, strict=True)
    ]
    resources = list(loads[0]) if loads else []
    return Table(columns=[*columns, *(f"{resource} cycles" for resource in resources), "bound by"], rows=rows)


@fact_of_program
def _members(program: Program) -> list[dict[str, np.ndarray]]:
    """Of each phase, the instructions that load each resource."""
    return _by_resource(program, program.phase_of(), len(program.phase_names))


@fact_of_program
def _members_of_places(program: Program) -> list[dict[str, np.ndarray]]:
    """The same of each place."""
    places, place_of = places_of(program)
    return _by_resource(program, place_of, len(places))


def _by_resource(program: Program, part_of: np.ndarray, parts: int) -> list[dict[str, np.ndarray]]:
    queue = queues(program)
    of_queue = {"matrix": queue == 0, "vector": queue == 1, "memory": queue >= 2}
    if turns := host_turns(program):
        of_queue["host"] = np.isin(np.arange(len(queue)), list(turns))
    return [
        {resource: np.flatnonzero((part_of == number) & inside) for resource, inside in of_queue.items()}
        for number in range(parts)
    ]
