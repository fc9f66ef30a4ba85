"""The cycle path: when each instruction starts and ends, and what it waited for. It never sees a tensor value."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cycle.code import CAUSES, code_of, facts_of
from cycle.fastforward import new_snapshots
from cycle.machine import DEADLOCK, NO_BODY, OK, OUT_OF_RANGE, TRACE_SHORT, UNKNOWN, run
from cycle.memory import DescriptorCosts
from cycle.periods import mark_loops
from cycle.state import EVENT, State, Statistics, new_state
from cycle.stops import NO_STOPS, mark_stops
from cycle.verdicts import prove
from npu.energy import Technology, account
from npu.errors import ProgramError, TripathError
from npu.hardware import HardwareConfig
from npu.metrics import SAMPLING_PHASES, UNITS, Result, Table
from npu.program import Program, loop_tree
from npu.program.exits import denoising_loops, exits_of, generated_tokens, loops_of_a_block, steps_of_blocks
from npu.program.options import check_options
from npu.program.steps import passes, places_of
from npu.program.tables import event_counts, tabulate
from npu.program.trace import Trace

MAXIMUM_EVENTS = 100_000
FAULTS = {
    DEADLOCK: "deadlock, it waits for ever", TRACE_SHORT: "the trace has no entry that fits",
    OUT_OF_RANGE: "a semaphore overflows", NO_BODY: "the cycle path cannot run what stands",
}  # fmt: skip
"""The fault that each status of the machine means."""


def simulate(
    program: Program, *, hardware: HardwareConfig, trace: Trace, race_check: bool = True, fast_forward: bool = True,
    trace_window: Sequence[int] = (0, 20_000), technology: Technology | None = None,
) -> Result:  # fmt: skip
    """Replay `program` on `hardware` with the loop exits of `trace`; first prove that it has no race, if asked to.

    Args:
        program: The program to replay, compiled for these widths.
        hardware: The facts of the machine.
        trace: Where loops were left.
        race_check: Prove first that semaphores order every access (docs/timing.md).
        fast_forward: Skip loop iterations that would repeat exactly what was seen; the result is the same without.
        trace_window: Cycles [from, to) whose instructions go into the table `timeline`, at most MAXIMUM_EVENTS.
        technology: Report energy and area.

    Raises:
        TripathError: the program was compiled for other widths than the hardware has, or an option breaks a rule.
        ProgramError: the program deadlocks, or the trace does not belong to it.
    """
    window = _window(trace_window)
    state, statistics, events = _replay(
        program, hardware, trace, window=window, race_check=race_check, fast_forward=fast_forward,
        most_events=MAXIMUM_EVENTS + 1,
    )  # fmt: skip
    makespan, skipped = int(state.machine["frontier"][0]), int(state.machine["skipped"][0])
    check_attribution(statistics, makespan)
    result = _result(program, hardware, trace, statistics, makespan, skipped, events)
    if technology is None:
        return result
    energy = account(
        program, statistics.retired, hardware=hardware, technology=technology,
        phase_seconds=_phase_cycles(statistics) / hardware.clock_hz,
        hbm_bytes=statistics.phase["traffic_bytes"].sum(axis=1), tokens=generated_tokens(program, trace.breaks),
    )  # fmt: skip
    return replace(result, metrics={**result.metrics, **energy.metrics}, tables={**result.tables, **energy.tables})


def instruction_times(program: Program, *, hardware: HardwareConfig, trace: Trace, most_events: int) -> np.ndarray:
    """Every queued instruction's number, start and end: int64 [events, 3] in no particular order.

    `most_events` is the number of instructions that the run retires, or more.

    Raises:
        TripathError, ProgramError: as `simulate`.
    """
    _, _, events = _replay(
        program, hardware, trace, window=(0, 1 << 62), race_check=False, fast_forward=False, most_events=most_events
    )
    return np.stack([events["instruction"], events["start"], events["end"]], axis=1)


def _replay(
    program: Program, hardware: HardwareConfig, trace: Trace, *, window: tuple[int, int], race_check: bool,
    fast_forward: bool, most_events: int,
) -> tuple[State, Statistics, np.ndarray]:  # fmt: skip
    """Run the machine; its state, what it counted, and the instructions that start in the window."""
    for name in ("blen", "mlen", "vlen"):
        if program.geometry[name] != getattr(hardware, name):
            raise TripathError(
                f"hardware.{name}: the program was compiled for {program.geometry[name]}, the hardware has "
                f"{getattr(hardware, name)}"
            )
    check_options(program, hardware)
    if race_check:
        prove(program)
    costs = DescriptorCosts(hardware)
    code, facts = code_of(program, hardware), facts_of(hardware, costs)
    stops = NO_STOPS
    if fast_forward:
        mark_loops(program, code, hardware.hbm.burst_bytes)
        stops = mark_stops(program, code, costs, hardware.hbm.burst_bytes)
    code["exits"][[loop.head for loop in loop_tree(program).loops if loop.leaves_early]] = 1
    state, control, statistics, watch = new_state(program, hardware, facts[0], window, len(trace.breaks))
    timeline = np.zeros(most_events, EVENT)
    streams = np.array(trace.breaks, np.int64), trace.numbers
    inputs = code, tabulate(program).operands, facts, costs.table, control, *streams
    outputs = state, statistics, timeline, new_snapshots(state, watch, stops)
    status, fault = UNKNOWN, 0
    while status == UNKNOWN:
        status, fault = run(*inputs, *outputs)  # pyright: ignore[reportGeneralTypeIssues]  its return is compiled away
        if status == UNKNOWN:
            costs.fill(int(state.machine["missing"][0]))
    if status != OK:
        name = program.instructions[fault].mnemonic
        raise ProgramError(f"program: {FAULTS[status]} at instruction {fault} ({name})")
    return state, statistics, timeline[: int(state.machine["events"][0])]


def check_attribution(statistics: Statistics, makespan: int) -> None:
    """Every cycle of the makespan is explained once: by unit (busy or a cause), by phase, and by instruction.

    Raises:
        AssertionError: a defect of the machine.
    """
    for number, unit in enumerate(UNITS):
        explained = int(statistics.phase["busy"][:, number].sum() + statistics.phase["stall"][:, number].sum())
        if explained != makespan:
            raise AssertionError(f"cycle: {explained} of {makespan} cycles of {unit} are explained")
    if not int(_phase_cycles(statistics).sum()) == int(statistics.advanced.sum()) == makespan:
        raise AssertionError("cycle: the phases do not add up to the makespan")


def _phase_cycles(statistics: Statistics) -> np.ndarray:
    """The cycles that each phase adds to the run: int64 [phases]."""
    return statistics.phase["critical"].sum(axis=(1, 2))


def _window(trace_window: Sequence[int]) -> tuple[int, int]:
    whole = all(isinstance(cycle, int) and not isinstance(cycle, bool) for cycle in trace_window)
    if len(trace_window) != 2 or not whole or not 0 <= trace_window[0] <= trace_window[1]:
        raise TripathError(f"simulator.cycle.trace_window: must be [from, to] in cycles, got {list(trace_window)}")
    return trace_window[0], trace_window[1]


def _result(
    program: Program, hardware: HardwareConfig, trace: Trace, statistics: Statistics, makespan: int, skipped: int,
    events: np.ndarray,
) -> Result:  # fmt: skip
    phases = program.phase_names
    seconds = makespan / hardware.clock_hz
    counts = event_counts(program, statistics.retired)
    moved = statistics.phase["traffic_bytes"].sum(axis=0)
    counts |= {"hbm_read_bytes": int(moved[0]), "hbm_write_bytes": int(moved[1])}
    tokens = generated_tokens(program, trace.breaks)
    cycles, busy, stall = _phase_cycles(statistics), statistics.phase["busy"], statistics.phase["stall"]
    address = int(statistics.phase["address_cycles"].sum())
    by_unit, by_cause = busy.sum(axis=0), stall.sum(axis=0)
    sampling = sum(int(cycles[phases.index(name)]) for name in SAMPLING_PHASES if name in phases)
    metrics: dict[str, float] = {
        "makespan_cycles": makespan, "seconds": seconds, "tokens_per_second": tokens / seconds,
        "instructions": counts["instructions"], "executed_instructions": counts["instructions"] - skipped,
        "skipped_instructions": skipped, "macs_per_cycle": counts["macs"] / makespan,
        "matrix_utilisation": counts["macs"] / makespan / (hardware.blen * hardware.mlen),
        "hbm_utilisation": int(moved.sum()) / makespan / hardware.peak_bytes_per_cycle,
        "hbm_bursts": int(statistics.phase["traffic_bursts"].sum()), "sampling_share": sampling / makespan,
    }  # fmt: skip
    for number, unit in enumerate(UNITS):
        metrics[f"busy_cycles.{unit}"] = int(by_unit[number])
        for column, cause in enumerate(CAUSES):
            if by_cause[number, column]:
                metrics[f"stall_cycles.{unit}.{cause}"] = int(by_cause[number, column])
    components = {
        "matrix": by_unit[1], "vector": by_unit[2], "scalar": by_unit[3] + address, "memory": by_unit[4] + by_unit[5],
        "control": by_unit[0] - address,
    }  # fmt: skip
    metrics |= {f"component_cycles.{name}": int(value) for name, value in components.items()}
    for number, phase in enumerate(phases):
        metrics[f"phase_cycles.{phase}"] = int(cycles[number])
    if len(events) > MAXIMUM_EVENTS:
        events = events[:MAXIMUM_EVENTS]
        metrics["recorded_until_cycle"] = int(events["start"].max())
    if ends := _ends(program, trace, statistics):
        metrics["first_block_cycles"] = ends[0]
    by_phase = [
        [phase, unit, int(busy[p, u]), *map(int, stall[p, u])]
        for p, phase in enumerate(phases)
        for u, unit in enumerate(UNITS)
        if busy[p, u] or stall[p, u].any()
    ]
    numbers = program.phase_of()
    macs = [event_counts(program, np.where(numbers == p, statistics.retired, 0))["macs"] for p in range(len(phases))]
    rows = [
        [program.instructions[pc].mnemonic, phases[numbers[pc]], UNITS[unit], *map(int, rest)]
        for pc, unit, *rest in events.tolist()
    ]
    return Result(
        simulator="cycle", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics, counts=counts,
        tables={
            "units": Table(
                columns=["unit", "busy", *CAUSES],
                rows=[[unit, int(by_unit[u]), *map(int, by_cause[u])] for u, unit in enumerate(UNITS)],
            ),
            "phases": Table(
                columns=["phase", "cycles", *(f"busy {unit}" for unit in UNITS), "macs", "hbm bytes"],
                rows=[
                    [phase, int(cycles[p]), *map(int, busy[p]), macs[p], int(statistics.phase["traffic_bytes"][p].sum())]
                    for p, phase in enumerate(phases)
                ],
            ),
            "stalls": Table(columns=["phase", "unit", "busy", *CAUSES], rows=by_phase),
            "critical": _critical(phases, statistics),
            "steps": _steps(program, statistics),
            "blocks": _blocks(program, trace, statistics),
            "timeline": Table(columns=["instruction", "phase", *(EVENT.names or ())[1:]], rows=rows),
        },
    )  # fmt: skip


def _critical(phases: Sequence[str], statistics: Statistics) -> Table:
    """The cycles of the run by the instruction that adds them, the last one to complete: its phase, its unit, and whether it
    started as soon as its unit was free (`busy`) or after a wait, by cause. The rows of a phase add up to its cycles."""
    rows = [
        [phase, unit, *map(int, cells)]
        for phase, added in zip(phases, statistics.phase["critical"], strict=True)
        for unit, cells in zip(UNITS, added, strict=True)
        if cells.any()
    ]
    return Table(columns=["phase", "unit", "busy", *CAUSES], rows=rows)


def _steps(program: Program, statistics: Statistics) -> Table:
    """Cycles by kind of step, group of layers and phase, and by the unit that adds them."""
    places, place_of = places_of(program)
    times, units = passes(program, statistics.retired), tabulate(program).unit
    cells = np.zeros((len(places), len(UNITS)), np.int64)
    np.add.at(cells, (place_of, units), statistics.advanced)
    rows = [
        [place.step, times.get(place.step, 1), place.group, place.phase, int(own.sum()), *map(int, own)]
        for place, own in zip(places, cells, strict=True)
        if own.any()
    ]
    return Table(columns=["step", "passes", "group", "phase", "cycles", *UNITS], rows=rows)


def _ends(program: Program, trace: Trace, statistics: Statistics) -> list[int]:
    """When the last loop over the steps of each block was left."""
    inner, loops = {loop.head for loop in denoising_loops(program)}, loops_of_a_block(program)
    exits = exits_of(program, trace.breaks)
    left = [int(left) for each, left in zip(exits, statistics.left, strict=False) if each.loop.head in inner]
    return left[loops - 1 :: loops]


def _blocks(program: Program, trace: Trace, statistics: Statistics) -> Table:
    """When the front end knows that nothing is masked in a block, and the cycles since it knew so of the one before."""
    ends, steps = _ends(program, trace, statistics), steps_of_blocks(program, trace.breaks)
    rows = zip(range(len(ends)), steps, ends, np.diff(ends, prepend=0).tolist(), strict=True)
    return Table(columns=["block", "steps", "done at cycle", "cycles"], rows=[list(row) for row in rows])
