"""The analytical path: exact counts, a lower bound that no schedule beats, an estimate, and what bounds each phase."""

import numpy as np

from analytical.chains import values_of
from analytical.facts import Costs, costs_of, queues
from analytical.overlap import bound_cycles, estimate_cycles, lines_of, score_of
from analytical.tree import retirements, trip_counts
from npu.energy import Technology, account
from npu.hardware import QUEUED_UNITS, HardwareConfig
from npu.isa import Unit
from npu.metrics import UNITS, Result, Table
from npu.program import Program, fact_of_program
from npu.program.tables import event_counts, tabulate
from npu.program.trace import Trace


def simulate(
    program: Program, *, hardware: HardwareConfig, trace: Trace, technology: Technology | None = None
) -> Result:
    """Closed forms of `program` on `hardware` with the loop exits of `trace`; energy and area where `technology` is given.

    Raises:
        ProgramError: the trace does not belong to the program, or its loops are of a kind that is not analysed.
    """
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
    moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
    front_end = float((retired * costs.front_end).sum())
    bounds = {
        "matrix": busy["matrix"], "vector": busy["vector"] + busy["scalar"], "frontend": front_end,
        "memory": moved / hardware.peak_bytes_per_cycle,
    }  # fmt: skip
    if serial:
        between = 2 * hardware.frontend.dispatch_cycles  # to the queue, and back when all is over
        estimate = front_end + float((retired * (costs.latency + between))[units != Unit.FRONTEND].sum())
        bound = sum(busy.values()) + bounds["memory"]
    else:
        depths = [hardware.queue_depth[name] for name in QUEUED_UNITS]
        score = score_of(program, trip_counts(program, trace), lines_of(depths))
        values, depth = values_of(program, costs, hardware), np.array(depths)
        estimate = estimate_cycles(score, values, depth, hardware.frontend.dispatch_cycles)
        bound = max(bound_cycles(score, values, depth), *bounds.values())
    return _result(program, hardware, trace, technology, retired, counts, costs, busy, bounds, bound, estimate)


def _result(
    program: Program, hardware: HardwareConfig, trace: Trace, technology: Technology | None, retired: np.ndarray,
    counts: dict[str, int], costs: Costs, busy: dict[str, float], bounds: dict[str, float], bound: float, estimate: float,
) -> Result:  # fmt: skip
    tokens = program.layout["batch"] * program.layout["generation_length"]
    moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
    table, phase_bounds = _phases(program, retired, costs)
    whole = sum(phase_bounds.values())
    share = sum(phase_bounds.get(name, 0.0) for name in ("lm_head", "sampling", "commit")) / whole
    metrics: dict[str, float] = {
        "lower_bound_cycles": int(np.floor(bound)), "estimated_cycles": round(estimate),
        "seconds": estimate / hardware.clock_hz, "tokens_per_second": tokens * hardware.clock_hz / estimate,
        "arithmetic_intensity": counts["macs"] / moved, "sampling_share": share,
        "matrix_utilisation": counts["macs"] / estimate / (hardware.blen * hardware.mlen),
    }  # fmt: skip
    metrics |= {f"bound_cycles.{name}": value for name, value in bounds.items()}
    metrics |= {f"busy_cycles.{unit}": value for unit, value in busy.items()}
    tables = {"phases": table}
    if technology is not None:  # the estimate is not by phase: each takes the share that its bound has
        seconds = np.array(list(phase_bounds.values())) / whole * estimate / hardware.clock_hz
        energy = account(program, retired, hardware=hardware, technology=technology, phase_seconds=seconds)
        metrics |= energy.metrics
        tables |= energy.tables
    return Result(
        simulator="analytical", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics,
        counts=counts, tables=tables,
    )  # fmt: skip


def _phases(program: Program, retired: np.ndarray, costs: Costs) -> tuple[Table, dict[str, float]]:
    """Occupied cycles per queue and phase with what bounds each phase; and the bound of each phase in cycles."""
    work = retired * costs.ideal
    rows, bounds = [], {}
    for name, members in zip(program.phase_names, _members(program), strict=True):
        loads = {resource: float(work[numbers].sum()) for resource, numbers in members.items()}
        bounds[name] = max(loads.values())
        rows.append([name, *map(round, loads.values()), max(loads, key=lambda key: loads[key])])
    columns = ["phase", "matrix cycles", "vector cycles", "memory cycles", "bound by"]
    return Table(columns=columns, rows=rows), bounds


@fact_of_program
def _members(program: Program) -> list[dict[str, np.ndarray]]:
    """Of each phase, the instructions that load each resource."""
    phases, queue = program.phase_of(), queues(program)
    of_queue = {"matrix": queue == 0, "vector": queue == 1, "memory": queue >= 2}
    return [
        {resource: np.flatnonzero((phases == number) & inside) for resource, inside in of_queue.items()}
        for number in range(len(program.phase_names))
    ]
