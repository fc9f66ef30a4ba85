"""The analytical path: exact counts, a lower bound that no schedule beats, an estimate, and what bounds each phase."""

import numpy as np

from analytical.facts import costs_of
from analytical.overlap import Overlap
from analytical.tree import indexed_loop, loop_tree, retirements, trip_counts
from tripath.energy import Technology, account
from tripath.hardware import HardwareConfig
from tripath.isa import Unit
from tripath.metrics import UNITS, Result, Table
from tripath.program import Program
from tripath.tables import event_counts, tabulate
from tripath.trace import Trace


def simulate(
    program: Program, *, hardware: HardwareConfig, trace: Trace, technology: Technology | None = None
) -> Result:
    """Closed forms of `program` on `hardware` with the loop exits of `trace`; energy and area where `technology` is given.

    Raises:
        ProgramError: the trace does not belong to the program, or its loops are of a kind that is not analysed.
    """
    retired = retirements(program, trace)
    costs, counts = costs_of(program, hardware), event_counts(program, retired)
    root, outer, trips = loop_tree(program), indexed_loop(program), trip_counts(program, trace)
    serial = hardware.execution == "serial"
    occupied = np.array(costs.latency if serial else costs.interval)
    units = np.array(tabulate(program).unit)
    busy = {
        unit: float((retired * occupied)[units == number].sum())
        for number, unit in enumerate(UNITS)
        if unit in ("matrix", "vector", "scalar")
    }
    moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
    front_end = float((retired * np.array(costs.front_end)).sum())
    bounds = {
        "matrix": busy["matrix"], "vector": busy["vector"] + busy["scalar"], "frontend": front_end,
        "memory": moved / hardware.peak_bytes_per_cycle,
    }  # fmt: skip
    if serial:
        estimate = front_end + float((retired * np.array(costs.latency))[units != Unit.FRONTEND].sum())
        bound = sum(busy.values()) + bounds["memory"]
    else:
        estimate = Overlap(costs=costs, trips=trips, outer=outer, bound=False).makespan(root)
        bound = Overlap(costs=costs, trips=trips, outer=outer, bound=True).makespan(root)
        bound = max(bound, *bounds.values())
    return _result(program, hardware, trace, technology, retired, counts, costs, busy, bounds, bound, estimate)


def _result(
    program: Program, hardware: HardwareConfig, trace: Trace, technology: Technology | None, retired: np.ndarray,
    counts: dict[str, int], costs, busy: dict[str, float], bounds: dict[str, float], bound: float, estimate: float,
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


def _phases(program: Program, retired: np.ndarray, costs) -> tuple[Table, dict[str, float]]:
    """Occupied cycles per queue and phase with what bounds each phase; and the bound of each phase in cycles."""
    phases, queue = program.phase_of(), np.array(costs.queue)
    work = retired * np.array(costs.ideal)
    rows, bounds = [], {}
    for number, name in enumerate(program.phase_names):
        inside = phases == number
        matrix, vector = (float(work[inside & (queue == q)].sum()) for q in (0, 1))
        memory = float(work[inside & (queue >= 2)].sum())
        loads = {"matrix": matrix, "vector": vector, "memory": memory}
        bounds[name] = max(loads.values())
        rows.append([name, *map(round, loads.values()), max(loads, key=lambda key: loads[key])])
    columns = ["phase", "matrix cycles", "vector cycles", "memory cycles", "bound by"]
    return Table(columns=columns, rows=rows), bounds
