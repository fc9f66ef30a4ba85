"""The cycle path: when each instruction starts and ends, and what it waited for. It never sees a tensor value."""

import numpy as np

from cycle.machine import CAUSES, DEADLOCK, OK, TRACE_SHORT, Code, Facts, Statistics, run
from cycle.races import check_races
from tripath.errors import ProgramError, TripathError
from tripath.hardware import QUEUED_UNITS, HardwareConfig
from tripath.isa import TABLE, Unit
from tripath.isa.control import new_control
from tripath.metrics import UNITS, Result, Table
from tripath.program import Program
from tripath.tables import QUEUE_OF_UNIT, event_counts, tabulate
from tripath.trace import Trace

TIMELINE_EVENTS = 4096


def simulate(program: Program, *, hardware: HardwareConfig, trace: Trace, race_check: bool = True) -> Result:
    """Replay `program` on `hardware` with the loop exits of `trace`; first prove that it has no race, if asked to.

    Raises:
        TripathError: the program was compiled for other widths than the hardware has.
        ProgramError: the program deadlocks, or the trace does not belong to it.
    """
    for name in ("blen", "mlen", "vlen"):
        if program.geometry[name] != getattr(hardware, name):
            raise TripathError(
                f"hardware.{name}: the program was compiled for {program.geometry[name]}, the hardware has "
                f"{getattr(hardware, name)}"
            )
    if race_check:
        check_races(program)
    code, facts = _code(program, hardware), _facts(hardware)
    phases = program.phase_names
    statistics = _statistics(len(program.words), len(phases))
    timeline = np.zeros((TIMELINE_EVENTS, 4), np.int64)
    status, fault, events = run(code, facts, new_control(), np.array(trace.breaks, np.int64), statistics, timeline)
    if status != OK:
        name = program.instructions[fault].mnemonic
        reason = {DEADLOCK: "deadlock, it waits for ever", TRACE_SHORT: "the trace has no entry for this loop"}
        raise ProgramError(f"program: {reason.get(status, 'a semaphore overflows')} at instruction {fault} ({name})")
    return _result(program, hardware, trace, statistics, phases, timeline[:events])


def _code(program: Program, hardware: HardwareConfig) -> Code:
    tables = tabulate(program)
    interval, latency = np.zeros(len(program.words), np.int64), np.zeros(len(program.words), np.int64)
    for opcode in np.unique(tables.opcode):
        spec = TABLE[int(opcode)]
        if spec.unit in (Unit.MATRIX, Unit.VECTOR, Unit.SCALAR):
            interval[tables.opcode == opcode] = hardware.interval_cycles(spec.mnemonic)
            latency[tables.opcode == opcode] = hardware.latency_cycles(spec.mnemonic)
    return Code(
        tables.opcode, tables.unit, QUEUE_OF_UNIT[tables.unit], tables.operands, tables.waits, tables.signals,
        tables.accesses, interval, latency, program.phase_of(),
    )  # fmt: skip


def _facts(hardware: HardwareConfig) -> Facts:
    hbm, frontend = hardware.hbm, hardware.frontend
    return Facts(
        hardware.execution == "serial", np.array([hardware.queue_depth[name] for name in QUEUED_UNITS], np.int64),
        hardware.dma_outstanding, frontend["issue_cycles"], frontend["loop_cycles"], frontend["next_cycles"],
        hbm.bytes_per_cycle, hbm.burst_bytes, hbm.read_latency_cycles, hbm.write_latency_cycles, hardware.vlen,
    )  # fmt: skip


def _statistics(instructions: int, phases: int) -> Statistics:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    units = len(UNITS)
    return Statistics(
        zeros(instructions), zeros(units), zeros(units, len(CAUSES)), zeros(phases), zeros(phases, units), zeros(2),
        zeros(2), zeros(1),
    )  # fmt: skip


def _result(
    program: Program, hardware: HardwareConfig, trace: Trace, statistics: Statistics, phases: list[str],
    timeline: np.ndarray,
) -> Result:  # fmt: skip
    makespan = int(statistics.makespan[0])
    seconds = makespan / hardware.clock_hz
    counts = event_counts(program, statistics.retired)
    counts |= {"hbm_read_bytes": int(statistics.bytes[0]), "hbm_write_bytes": int(statistics.bytes[1])}
    tokens = program.layout["batch"] * program.layout["generation_length"]
    moved = int(statistics.bytes.sum())
    metrics: dict[str, float] = {
        "makespan_cycles": makespan, "seconds": seconds, "tokens_per_second": tokens / seconds,
        "instructions": counts["instructions"],
        "macs_per_cycle": counts["macs"] / makespan,
        "matrix_utilisation": counts["macs"] / makespan / (hardware.blen * hardware.mlen),
        "hbm_utilisation": moved / makespan / hardware.hbm.bytes_per_cycle,
        "hbm_bursts": int(statistics.bursts.sum()),
        "sampling_share": _share(statistics, phases, ("lm_head", "sampling", "commit"), makespan),
    }  # fmt: skip
    for number, unit in enumerate(UNITS):
        metrics[f"busy_cycles.{unit}"] = int(statistics.busy[number])
        for column, cause in enumerate(CAUSES):
            if statistics.stall[number, column]:
                metrics[f"stall_cycles.{unit}.{cause}"] = int(statistics.stall[number, column])
    for number, phase in enumerate(phases):
        metrics[f"phase_cycles.{phase}"] = int(statistics.phase_cycles[number])
    units = [
        [unit, int(busy), *map(int, stall)]
        for unit, busy, stall in zip(UNITS, statistics.busy, statistics.stall, strict=True)
    ]
    by_phase = [
        [phase, int(cycles), *map(int, busy)]
        for phase, cycles, busy in zip(phases, statistics.phase_cycles, statistics.phase_busy, strict=True)
    ]
    rows = [[program.instructions[pc].mnemonic, UNITS[unit], int(start), int(end)] for pc, unit, start, end in timeline]
    return Result(
        simulator="cycle", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics, counts=counts,
        tables={
            "units": Table(columns=["unit", "busy", *CAUSES], rows=units),
            "phases": Table(columns=["phase", "cycles", *(f"busy {unit}" for unit in UNITS)], rows=by_phase),
            "timeline": Table(columns=["instruction", "unit", "start", "end"], rows=rows),
        },
    )  # fmt: skip


def _share(statistics: Statistics, phases: list[str], wanted: tuple[str, ...], makespan: int) -> float:
    return sum(int(statistics.phase_cycles[phases.index(name)]) for name in wanted if name in phases) / makespan
