"""The timing of the machine, event by event, compiled.

Time depends on queues, semaphores, interlocks and the memory alone, so it is a max-plus system: each instruction starts
at the latest of a few known times. Matrix and vector heads can be committed as soon as the tokens they wait for are
known; only the two DMA queues compete (for HBM), so they are committed in order of time, when nothing else can move.
docs/timing.md states every rule; `fastforward` skips iterations that would repeat what was seen.
"""

import numpy as np
from numba import njit

from cycle.code import (
    BANDWIDTH,
    BEHIND,
    BUSY,
    COMPUTE_QUEUES,
    DMA_QUEUES,
    DRAINED,
    FRONTEND,
    HOST,
    LATENCY,
    NEITHER,
    OPERAND,
    QUEUE_FULL,
    REFRESH,
    ROW,
    SERIAL,
    SHARED_QUEUE,
    UNIT_FRONTEND,
    UNIT_OF_QUEUE,
    UNIT_SCALAR,
    UNIT_VECTOR,
    VECTOR,
    WRITE_OUT,
)
from cycle.fastforward import at_loop_end, at_stop, enter_loop, is_due
from cycle.memory import line_of
from cycle.state import LOG
from cycle.transfers import absolute_refresh
from cycle.transitions import BREAKS, COUNTS, cells_of, note_gap
from npu.isa.control import address_of, c_break_if, c_next, control_step, set_count
from npu.isa.spec import ControlKind
from npu.unowned import unowned

OK, DEADLOCK, TRACE_SHORT, OUT_OF_RANGE, UNKNOWN, NO_BODY = range(6)
LOOP, NEXT, BREAK, COUNT = (
    int(kind) for kind in (ControlKind.LOOP, ControlKind.NEXT, ControlKind.BREAK, ControlKind.COUNT)
)


@njit(cache=True)
def run(code, operands, hardware, costs, control, breaks, counts, state, statistics, timeline, snapshots):
    """Replay the program to its end. Returns (status, instruction at fault).

    UNKNOWN means that the line `missing` of the table of `costs` must be filled before the next call goes on.
    `timeline` receives the instructions that start in the recorded window.
    """
    code, operands, costs = unowned(code), unowned(operands), unowned(costs)
    breaks, counts = unowned(breaks), unowned(counts)
    control, state, statistics = unowned(control), unowned(state), unowned(statistics)
    timeline, snapshots = unowned(timeline), unowned(snapshots)
    facts, machine, queue = hardware[0], state.machine[0], state.queue
    while True:
        moved = _front_end(
            code, operands, facts, costs, control, breaks, counts, state, statistics, timeline, snapshots
        )
        if moved < 0:
            return -moved, control.pc[0]
        for q in COMPUTE_QUEUES:
            waiting = state.unit[q].waiting
            while waiting.count > 0 and _has_tokens(code[queue[q, waiting.first].entry], state.semaphore):
                if not _commit(q, code, facts, costs, state, statistics, timeline):
                    return OUT_OF_RANGE, queue[q, waiting.first].entry
                moved = 1
        if moved > 0:
            continue
        q = _earliest_descriptor(code, state)
        if q < 0:
            stuck = control.pc[0]
            for other in range(state.unit.size):
                waiting = state.unit[other].waiting
                if waiting.count > 0:
                    stuck = queue[other, waiting.first].entry
            if stuck < 0:
                break
            return DEADLOCK, stuck
        place = queue[q, state.unit[q].waiting.first]
        row = code[place.entry]
        if row.moves:
            machine.missing = line_of(costs, row, place, facts)
            if not costs[machine.missing].known:
                return UNKNOWN, place.entry
        if not _commit(q, code, facts, costs, state, statistics, timeline):
            return OUT_OF_RANGE, place.entry
    if machine.now > machine.frontier:
        statistics.advanced[0] += machine.now - machine.frontier
        statistics.phase[0].critical[UNIT_FRONTEND, BUSY] += machine.now - machine.frontier
        machine.frontier = machine.now
    _drain(state, statistics.phase)
    return OK, 0


@njit(cache=True)
def _front_end(code, operands, facts, costs, control, breaks, counts, state, statistics, timeline, snapshots):
    """Dispatch until a queue is full, a flag is awaited, an instruction is pending (serial), or the program ends.

    Returns 1 if anything was processed, 0 if not, or minus the status of a fault.
    """
    machine, used = state.machine[0], statistics.used
    moved = 0
    while control.pc[0] >= 0:
        pc = control.pc[0]
        row = code[pc]
        counters = statistics.phase[row.phase]
        if machine.pending >= 0:
            unit = state.unit[machine.pending]
            if unit.waiting.count > 0:
                return moved
            machine.pending = -1
            _stand(machine, counters, unit.retire + facts.dispatch, SERIAL)
        if row.stop and _has_tokens(row, state.semaphore):
            at_stop(code, operands, facts, control, counts, state, statistics, snapshots)
            pc = control.pc[0]
            row = code[pc]
            counters = statistics.phase[row.phase]
        if row.control:
            cost, level = row.cost, row.level
            if row.control == NEXT:
                c_next(control, level)
                if control.pc[0] > pc:
                    cost = row.exit_cost
            else:
                if not _has_tokens(row, state.semaphore):
                    return moved
                for wait in range(2):
                    if row.wait[wait]:
                        _stand(machine, counters, _take(state, row.wait[wait]), row.wait_cause[wait])
                if row.control == LOOP:
                    enter_loop(level, machine.now, snapshots.level)
                    statistics.entered[level] += 1
                if row.control == BREAK and control.index[level] + 1 == control.trips[level]:
                    c_break_if(control, level, 0)
                    statistics.left[statistics.opened[level]] = machine.now
                elif row.control == BREAK:
                    control.pc[0] += 1
                elif not control_step(control, row.opcode, operands[pc]):
                    return -NO_BODY
                if row.exits:  # the trace says in which trip it is left
                    if used[BREAKS] >= breaks.size or breaks[used[BREAKS]] >= control.trips[level]:
                        control.pc[0] = pc
                        return -TRACE_SHORT
                    control.trips[level] = breaks[used[BREAKS]] + 1
                    statistics.opened[level] = used[BREAKS]
                    used[BREAKS] += 1
                elif row.control == COUNT:
                    if used[COUNTS] >= counts.size:
                        control.pc[0] = pc
                        return -TRACE_SHORT
                    set_count(control, operands[pc, 0], counts[used[COUNTS]], operands[pc, 2])
                    used[COUNTS] += 1
            statistics.retired[pc] += 1
            machine.now += cost
            counters.busy[UNIT_FRONTEND] += cost
            counters.address_cycles += row.address_cost
            if row.host_cost:
                _hand_over(pc, row, state, statistics)
            moved = 1
            if row.period > 0 and control.pc[0] <= pc and is_due(level, control.index[level], snapshots.level):
                at_loop_end(code, facts, control, breaks, counts, state, statistics, pc, snapshots)
            continue
        q = row.queue
        waiting = state.unit[q].waiting
        if waiting.count == waiting.size:
            return moved
        place = state.queue[q, slot_of(waiting, waiting.count)]
        _stand(machine, counters, place.free, QUEUE_FULL)
        machine.now += row.cost
        counters.busy[UNIT_FRONTEND] += row.cost
        place.entry, place.arrival = pc, machine.now + facts.dispatch
        for k in range(row.addresses):
            place.address[k] = address_of(control, row.register[k])
        if row.moves:
            place.row_stride = control.row_stride[row.register[0]]
        waiting.count += 1
        control.pc[0] += 1
        moved = 1
        if facts.serial:
            machine.pending = q
        if (
            row.direction == NEITHER and waiting.count == 1 and _has_tokens(row, state.semaphore)
            and not _commit(q, code, facts, costs, state, statistics, timeline)
        ):  # fmt: skip
            return -OUT_OF_RANGE
    return moved


@njit(cache=True)
def _stand(machine, counters, until, cause):
    """The front end stands still for a cause, if the time that it waits for is yet to come."""
    wait = until - machine.now
    if wait > 0:
        counters.stall[UNIT_FRONTEND, cause] += wait
        machine.now += wait


@njit(cache=True)
def _hand_over(pc, row, state, statistics):
    """Stand still while the host samples; a unit that has nothing to do by then waits for the host as well."""
    machine, counters = state.machine[0], statistics.phase[row.phase]
    began = machine.now
    machine.now += row.host_cost
    counters.stall[UNIT_FRONTEND, HOST] += row.host_cost
    for q in range(state.unit.size):
        unit = state.unit[q]
        if unit.waiting.count == 0 and unit.free < machine.now:
            note_gap(unit, row.phase, UNIT_OF_QUEUE[q], FRONTEND)
            counters.stall[UNIT_OF_QUEUE[q], FRONTEND] += max(began - unit.free, 0)
            counters.stall[UNIT_OF_QUEUE[q], HOST] += machine.now - max(unit.free, began)
            unit.free = machine.now
    for direction in range(2):
        counters.traffic_bytes[direction] += row.host_bytes[direction]
    if machine.now > machine.frontier:
        counters.critical[UNIT_FRONTEND, BEHIND + HOST] += machine.now - machine.frontier
        statistics.advanced[pc] += machine.now - machine.frontier
        machine.frontier = machine.now


@njit(cache=True)
def slot_of(ring, number):
    """The place of a ring's element, counted from its oldest."""
    slot = ring.first + number
    return slot - ring.size if slot >= ring.size else slot


@njit(cache=True)
def _has_tokens(row, semaphore):
    """True if every token that an instruction waits for is known (a semaphore named twice needs two)."""
    first, second = row.wait[0], row.wait[1]
    if first and semaphore[first].count < (2 if first == second else 1):
        return False
    return not (second and semaphore[second].count == 0)


@njit(cache=True)
def _take(state, number):
    """Take a token of a semaphore: when it was given."""
    ring = state.semaphore[number]
    given = state.token[number, ring.first]
    ring.first, ring.count = slot_of(ring, 1), ring.count - 1
    return given


@njit(cache=True)
def _earliest_descriptor(code, state):
    """The DMA queue whose head can issue first (reads first among equals), or -1."""
    chosen, earliest = -1, np.int64(0)
    for q in DMA_QUEUES:
        unit = state.unit[q]
        place = state.queue[q, unit.waiting.first]
        row = code[place.entry]
        if unit.waiting.count == 0 or not _has_tokens(row, state.semaphore):
            continue
        start = max(place.arrival, unit.issued + 1)
        if row.moves:
            start = max(start, state.flight[q, unit.flight.first])
        for wait in range(2):
            number = row.wait[wait]
            if number:
                ahead = wait if row.wait[0] == row.wait[1] else 0
                start = max(start, state.token[number, slot_of(state.semaphore[number], ahead)])
        if chosen < 0 or start < earliest:
            chosen, earliest = q, start
    return chosen


@njit(cache=True)
def _commit(q, code, facts, costs, state, statistics, timeline):
    """Give the head of a queue its start and end; false if a semaphore holds more tokens than it can."""
    machine, unit = state.machine[0], state.unit[q]
    place = state.queue[q, unit.waiting.first]
    pc = place.entry
    row = code[pc]
    counters = statistics.phase[row.phase]
    start, cause = max(unit.free, place.arrival), FRONTEND
    awaited = np.int64(0)
    for wait in range(2):
        if row.wait[wait]:
            given = _take(state, row.wait[wait])
            awaited = max(awaited, given)
            if given > start:
                start, cause = given, row.wait_cause[wait]
    size, bandwidth = np.int64(0), np.int64(0)
    if row.direction == NEITHER:
        ready = _operands_ready(row, place, state.ready)
        if ready > start:
            start, cause = ready, OPERAND
        if row.port_cycles:
            if machine.port_free > start:
                start, cause = machine.port_free, WRITE_OUT
            machine.port_free = start + row.port_cycles
        occupied, end = row.interval_cycles, start + row.latency_cycles
        if facts.serial:
            occupied = end - start
        counters.busy[row.unit] += occupied
        place.free = start + facts.dispatch
    else:
        issue = max(unit.issued + 1, awaited, place.arrival)
        if row.moves:
            window_free = state.flight[q, unit.flight.first]
            if window_free > start:
                start, cause = window_free, LATENCY
            bus_free = machine.bus_free
            if bus_free and row.direction != machine.bus_writes:
                bus_free += facts.turnaround[row.direction]
            issue = max(issue, window_free)
            asked = max(start, issue)
            start = max(issue, bus_free)
            bandwidth = max(start - asked, 0)
            size = row.hbm_rows * row.hbm_bytes
            cost = costs[line_of(costs, row, place, facts)]
            data, refresh = cost.data, cost.refreshes
            if facts.refresh_every:
                refresh = absolute_refresh(start, data + cost.row_changes, facts.refresh_for, facts.refresh_every)
            occupied = data + cost.row_changes + refresh
            end = start + occupied + cost.tail
            machine.bus_free, machine.bus_writes = start + occupied, row.direction
            state.flight[q, unit.flight.first] = end
            unit.flight.first = slot_of(unit.flight, 1)
            counters.traffic_bytes[row.direction] += size
            counters.traffic_bursts[row.direction] += cost.bursts
            if facts.serial:
                data, occupied = end - start - cost.row_changes - refresh, end - start
            counters.busy[row.unit] += data
            counters.stall[row.unit, ROW] += cost.row_changes
            counters.stall[row.unit, REFRESH] += refresh
        else:  # a sync takes no memory: it may pass while the transfer before it still runs
            start, end = issue, issue + 1
            occupied = facts.serial
            counters.busy[row.unit] += occupied
        unit.issued = issue
        place.free = issue + facts.dispatch
    gap = start - unit.free
    if gap > 0:
        standing = UNIT_VECTOR if row.unit == UNIT_SCALAR else row.unit
        note_gap(unit, row.phase, standing, cause)
        counters.stall[standing, cause] += gap - bandwidth
        counters.stall[standing, BANDWIDTH] += bandwidth
    unit.free = max(unit.free, start + occupied)
    unit.retire = max(unit.retire, end)
    if q == VECTOR:
        _record(row, place, end, unit.retire, state)
    for signal in range(2):
        number = row.signal[signal]
        if number:
            ring = state.semaphore[number]
            if ring.count == ring.size:
                return False
            state.token[number, slot_of(ring, ring.count)] = unit.retire
            ring.count += 1
    statistics.retired[pc] += 1
    if end > machine.frontier:
        last = BUSY if gap <= 0 else BEHIND + (BANDWIDTH if bandwidth > 0 else cause)
        counters.critical[row.unit, last] += end - machine.frontier
        statistics.advanced[pc] += end - machine.frontier
        machine.frontier = end
    if machine.window_from <= start < machine.window_to and machine.events < timeline.size:
        event = timeline[machine.events]
        event.instruction, event.unit, event.dispatched = pc, row.unit, place.arrival
        event.start, event.end, event.bytes = start, end, size
        machine.events += 1
    unit.waiting.first, unit.waiting.count = slot_of(unit.waiting, 1), unit.waiting.count - 1
    return True


@njit(cache=True)
def _operands_ready(row, place, ready):
    """Latest completion of earlier instructions of the unit that wrote what this one reads or writes."""
    latest = np.int64(0)
    for k in range(row.locks):
        first, last = cells_of(row.lock[k], place.address[k])
        for cell in range(first, last + 1):
            latest = max(latest, ready[cell])
    return latest


@njit(cache=True)
def _record(row, place, end, retire, state):
    """Note when what a vector or scalar instruction writes will be there, in the scoreboard and in the log."""
    machine = state.machine[0]
    result = state.log[0, machine.logged % LOG]
    machine.logged += 1
    result.entry, result.end, result.retire = place.entry, end, retire
    for k in range(row.locks):
        result.address[k] = place.address[k]
        if row.lock[k].write:
            first, last = cells_of(row.lock[k], place.address[k])
            for cell in range(first, last + 1):
                state.ready[cell] = max(state.ready[cell], end)


@njit(cache=True)
def _drain(state, phases):
    """Add the stalls of units after their last instruction, and of vector and scalar while the other has the queue."""
    makespan, last = state.machine[0].frontier, phases[-1]
    for q in range(state.unit.size):
        last.stall[UNIT_OF_QUEUE[q], DRAINED] += makespan - state.unit[q].free
    last.stall[UNIT_FRONTEND, DRAINED] += makespan - state.machine[0].now
    for phase in phases:
        for cause in range(DRAINED + 1):
            phase.stall[UNIT_SCALAR, cause] = phase.stall[UNIT_VECTOR, cause]
        phase.stall[UNIT_SCALAR, SHARED_QUEUE] = phase.busy[UNIT_VECTOR]
        phase.stall[UNIT_VECTOR, SHARED_QUEUE] = phase.busy[UNIT_SCALAR]
