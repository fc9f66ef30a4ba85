"""The timing of the machine, event by event, compiled.

Time depends on queues, semaphores, interlocks and the memory alone, so it is a max-plus system: each instruction starts
at the latest of a few known times. Matrix and vector heads can be committed as soon as the tokens they wait for are
known; only the two DMA queues compete (for HBM), so they are committed in order of time, when nothing else can move.
docs/timing.md states every rule; `fastforward` skips iterations that would repeat what was seen.
"""

import numpy as np
from numba import njit

from cycle.fastforward import Snapshots, at_loop_end, cells_of, enter_loop, is_due
from cycle.memory import BURSTS, DATA, KNOWN, REFRESHES, ROW_CHANGES, TAIL, line_of
from cycle.state import (
    ADDRESS,
    ADDRESS_COST,
    ARRIVAL,
    BANDWIDTH,
    BUS_FREE,
    BUS_WRITES,
    BUSY,
    COST,
    COUNT,
    CYCLES,
    DEPTH,
    DISPATCH,
    DMA_IN,
    DMA_OUT,
    DRAINED,
    ENTERED,
    ENTRY,
    EVENTS,
    EXIT_COST,
    FLIGHT,
    FLIGHTS,
    FREE,
    FRONTEND,
    FRONTIER,
    GIVEN,
    HBM,
    HBM_BYTES,
    HBM_ROWS,
    HEAD,
    INTERVAL_CYCLES,
    ISSUED,
    LATENCY,
    LATENCY_CYCLES,
    LEVEL,
    LOCK,
    LOCK_COLUMNS,
    LOCK_COUNT,
    LOCK_REGISTER,
    LOCK_WRITE,
    LOG,
    LOG_END,
    LOG_PC,
    LOG_PLACE,
    LOG_RETIRE,
    LOGGED,
    MATRIX,
    MISSING,
    MOVES,
    N_CAUSES,
    NOW,
    OPCODE,
    OPERAND,
    OUTSTANDING,
    PENDING,
    PERIOD,
    PHASE,
    PLACE,
    QUEUE,
    QUEUE_FULL,
    REFRESH,
    REFRESH_EVERY,
    REFRESH_FOR,
    RETIRE,
    ROW,
    SERIAL,
    SERIAL_MODE,
    SHARED_QUEUE,
    SIGNAL,
    SLOT_FREE,
    STALL,
    TAKEN,
    TOKEN,
    TOKENS,
    TRAFFIC_BURSTS,
    TRAFFIC_BYTES,
    TURN_TO_READ,
    TURN_TO_WRITE,
    UNIT,
    UNIT_DMA_IN,
    UNIT_DMA_OUT,
    UNIT_MATRIX,
    UNIT_SCALAR,
    UNIT_VECTOR,
    VECTOR,
    WAIT,
    WAIT_CAUSE,
    WINDOW_FROM,
    WINDOW_TO,
    State,
    Statistics,
)
from cycle.transfers import absolute_refresh
from cycle.unowned import unowned
from npu.isa import BY_MNEMONIC
from npu.isa.control import (
    Control,
    a_base,
    a_next,
    a_ring,
    a_rows,
    a_step,
    address_of,
    c_affine,
    c_break_if,
    c_end,
    c_loop,
    c_loop_r,
    c_next,
)

OK, DEADLOCK, TRACE_SHORT, OUT_OF_RANGE, UNKNOWN = range(5)
QUEUED = 0x10

OP_LOOP, OP_LOOP_R, OP_NEXT, OP_BREAK, OP_AFFINE, OP_END, OP_BASE, OP_STEP, OP_ROWS, OP_RING, OP_ADVANCE = (
    BY_MNEMONIC[name].opcode
    for name in ("C_LOOP", "C_LOOP_R", "C_NEXT", "C_BREAK_IF", "C_AFFINE", "C_END", "A_BASE", "A_STEP", "A_ROWS",
                 "A_RING", "A_NEXT")
)  # fmt: skip


@njit(cache=True)
def control_step(opcode, o, control):
    """Run a control instruction other than C_BREAK_IF."""
    if opcode == OP_NEXT:
        c_next(control, o[0])
    elif opcode == OP_LOOP:
        c_loop(control, o[0], o[1], o[2])
    elif opcode == OP_LOOP_R:
        c_loop_r(control, o[0], o[1], o[2])
    elif opcode == OP_ADVANCE:
        a_next(control, o[0])
    elif opcode == OP_AFFINE:
        c_affine(control, o[0], o[1], o[2], o[3])
    elif opcode == OP_BASE:
        a_base(control, o[0], o[1])
    elif opcode == OP_STEP:
        a_step(control, o[0], o[1], o[2])
    elif opcode == OP_ROWS:
        a_rows(control, o[0], o[1])
    elif opcode == OP_RING:
        a_ring(control, o[0], o[1], o[2], o[3])
    elif opcode == OP_END:
        c_end(control)


@njit(cache=True)
def run(code, operands, facts, costs, control, breaks, state, statistics, timeline, snapshots):
    """Replay the program to its end. Returns (status, instruction at fault).

    UNKNOWN means that line MISSING of the table of memory `costs` must be filled before the next call goes on.
    `timeline` [events, 6] receives the instructions that start in the recorded window.
    """
    code, operands, facts, breaks = unowned(code), unowned(operands), unowned(facts), unowned(breaks)
    timeline, costs = unowned(timeline), unowned(costs)
    control = Control(
        unowned(control.pc), unowned(control.index), unowned(control.trips), unowned(control.start),
        unowned(control.stop), unowned(control.register), unowned(control.base), unowned(control.row_stride),
        unowned(control.stride), unowned(control.ring), unowned(control.ring_stride), unowned(control.ring_length),
        unowned(control.ring_position),
    )  # fmt: skip
    state = State(
        unowned(state.scalars), unowned(state.unit), unowned(state.queue), unowned(state.semaphore), unowned(state.log),
        unowned(state.ready),
    )  # fmt: skip
    statistics = Statistics(unowned(statistics.retired), unowned(statistics.phase))
    snapshots = Snapshots(
        unowned(snapshots.loop), unowned(snapshots.head), unowned(snapshots.strict), unowned(snapshots.clipped),
        unowned(snapshots.exact), unowned(snapshots.place), unowned(snapshots.register), unowned(snapshots.retired),
        unowned(snapshots.phase),
    )  # fmt: skip
    scalars, unit, queue = state.scalars, state.unit, state.queue
    while True:
        moved = _front_end(code, operands, facts, costs, control, breaks, state, statistics, timeline, snapshots)
        if moved < 0:
            return -moved, control.pc[0]
        for q in (MATRIX, VECTOR):
            while unit[q, COUNT] > 0 and _has_tokens(code[queue[q, unit[q, HEAD], ENTRY]], state.semaphore):
                if not _commit(q, code, facts, costs, state, statistics, timeline):
                    return OUT_OF_RANGE, queue[q, unit[q, HEAD], ENTRY]
                moved = 1
        if moved > 0:
            continue
        q = _earliest_descriptor(code, state)
        if q < 0:
            if control.pc[0] < 0 and unit[:, COUNT].sum() == 0:
                break
            stuck = control.pc[0]
            for other in range(4):
                if unit[other, COUNT] > 0:
                    stuck = queue[other, unit[other, HEAD], ENTRY]
            return DEADLOCK, stuck
        place = queue[q, unit[q, HEAD]]
        if code[place[ENTRY], MOVES]:
            scalars[MISSING] = line_of(costs, code[place[ENTRY]], place, facts)
            if not costs[scalars[MISSING], KNOWN]:
                return UNKNOWN, place[ENTRY]
        if not _commit(q, code, facts, costs, state, statistics, timeline):
            return OUT_OF_RANGE, queue[q, unit[q, HEAD], ENTRY]
    if scalars[NOW] > scalars[FRONTIER]:
        statistics.phase[0, CYCLES] += scalars[NOW] - scalars[FRONTIER]
        scalars[FRONTIER] = scalars[NOW]
    _drain(state, statistics.phase)
    return OK, 0


@njit(cache=True)
def _front_end(code, operands, facts, costs, control, breaks, state, statistics, timeline, snapshots):
    """Dispatch until a queue is full, a flag is awaited, an instruction is pending (serial), or the program ends.

    Returns 1 if anything was processed, 0 if not, or minus the status of a fault.
    """
    scalars, unit, semaphore = state.scalars, state.unit, state.semaphore
    moved = 0
    while control.pc[0] >= 0:
        pc = control.pc[0]
        row, counters = code[pc], statistics.phase[code[pc, PHASE]]
        if scalars[PENDING] >= 0:
            q = scalars[PENDING]
            if unit[q, COUNT] > 0:
                return moved
            scalars[PENDING] = -1
            wait = unit[q, RETIRE] + facts[DISPATCH] - scalars[NOW]
            if wait > 0:
                counters[STALL + SERIAL] += wait
                scalars[NOW] += wait
        op = row[OPCODE]
        if op < QUEUED:
            cost, level = row[COST], row[LEVEL]
            if op == OP_NEXT:
                c_next(control, level)
                if control.pc[0] > pc:
                    cost = row[EXIT_COST]
            elif op == OP_BREAK:
                awaited = row[WAIT]
                if awaited:
                    if semaphore[awaited, TAKEN] == semaphore[awaited, GIVEN]:
                        return moved
                    wait = semaphore[awaited, TOKEN + semaphore[awaited, TAKEN] % TOKENS] - scalars[NOW]
                    semaphore[awaited, TAKEN] += 1
                    if wait > 0:
                        counters[STALL + row[WAIT_CAUSE]] += wait
                        scalars[NOW] += wait
                if scalars[ENTERED] >= breaks.size:
                    return -TRACE_SHORT
                if control.index[level] == breaks[scalars[ENTERED]]:
                    scalars[ENTERED] += 1
                    c_break_if(control, level, 0)
                else:
                    control.pc[0] += 1
            else:
                if op == OP_LOOP or op == OP_LOOP_R:
                    enter_loop(level, scalars[NOW], snapshots.loop)
                control_step(op, operands[pc], control)
            statistics.retired[pc] += 1
            scalars[NOW] += cost
            counters[BUSY] += cost
            counters[ADDRESS] += row[ADDRESS_COST]
            moved = 1
            if row[PERIOD] > 0 and control.pc[0] <= pc and is_due(level, control.index[level], snapshots.loop):
                at_loop_end(code, facts, control, breaks, state, statistics, pc, snapshots)
            continue
        q = row[QUEUE]
        if unit[q, COUNT] == facts[DEPTH + q]:
            return moved
        slot = unit[q, HEAD] + unit[q, COUNT]
        if slot >= facts[DEPTH + q]:
            slot -= facts[DEPTH + q]
        place = state.queue[q, slot]
        wait = place[SLOT_FREE] - scalars[NOW]
        if wait > 0:
            counters[STALL + QUEUE_FULL] += wait
            scalars[NOW] += wait
        scalars[NOW] += row[COST]
        counters[BUSY] += row[COST]
        place[ENTRY], place[ARRIVAL] = pc, scalars[NOW] + facts[DISPATCH]
        if q == VECTOR:
            for lock in range(row[LOCK_COUNT]):
                place[PLACE + lock] = address_of(control, row[LOCK + lock * LOCK_COLUMNS + LOCK_REGISTER])
        elif row[HBM] >= 0:
            place[PLACE] = address_of(control, row[HBM])
            place[PLACE + 1] = control.row_stride[row[HBM]]
        unit[q, COUNT] += 1
        control.pc[0] += 1
        moved = 1
        if facts[SERIAL_MODE]:
            scalars[PENDING] = q
        if (
            q <= VECTOR and unit[q, COUNT] == 1 and _has_tokens(row, semaphore)
            and not _commit(q, code, facts, costs, state, statistics, timeline)
        ):  # fmt: skip
            return -OUT_OF_RANGE
    return moved


@njit(cache=True)
def _has_tokens(row, semaphore):
    """Whether every token that an instruction waits for is known (a semaphore named twice needs two)."""
    first, second = row[WAIT], row[WAIT + 1]
    if first and semaphore[first, GIVEN] - semaphore[first, TAKEN] < (2 if first == second else 1):
        return False
    return not (second and semaphore[second, GIVEN] == semaphore[second, TAKEN])


@njit(cache=True)
def _earliest_descriptor(code, state):
    """The DMA queue whose head can issue first (reads first among equals), or -1."""
    chosen, earliest = -1, np.int64(0)
    for q in (DMA_IN, DMA_OUT):
        unit = state.unit[q]
        place = state.queue[q, unit[HEAD]]
        row = code[place[ENTRY]]
        if unit[COUNT] == 0 or not _has_tokens(row, state.semaphore):
            continue
        start = max(place[ARRIVAL], unit[ISSUED] + 1)
        if row[MOVES]:
            start = max(start, unit[FLIGHT + unit[FLIGHTS]])
        for wait in range(2):
            awaited = row[WAIT + wait]
            if awaited:
                ahead = wait if row[WAIT] == row[WAIT + 1] else 0
                start = max(start, state.semaphore[awaited, TOKEN + (state.semaphore[awaited, TAKEN] + ahead) % TOKENS])
        if chosen < 0 or start < earliest:
            chosen, earliest = q, start
    return chosen


@njit(cache=True)
def _commit(q, code, facts, costs, state, statistics, timeline):
    """Give the head of a queue its start and end; false if a semaphore holds more tokens than it can."""
    scalars, unit, semaphore = state.scalars, state.unit[q], state.semaphore
    place = state.queue[q, unit[HEAD]]
    pc = place[ENTRY]
    row, counters = code[pc], statistics.phase[code[pc, PHASE]]
    start, cause = max(unit[FREE], place[ARRIVAL]), FRONTEND
    awaited = np.int64(0)
    for wait in range(2):
        number = row[WAIT + wait]
        if number:
            at = semaphore[number, TOKEN + semaphore[number, TAKEN] % TOKENS]
            semaphore[number, TAKEN] += 1
            awaited = max(awaited, at)
            if at > start:
                start, cause = at, row[WAIT_CAUSE + wait]
    size = np.int64(0)
    if q <= VECTOR:
        if q == VECTOR:
            ready = _operands_ready(row, place, state.ready)
            if ready > start:
                start, cause = ready, OPERAND
        occupied, end = row[INTERVAL_CYCLES], start + row[LATENCY_CYCLES]
        if facts[SERIAL_MODE]:
            occupied = end - start
        counters[BUSY + row[UNIT]] += occupied
        place[SLOT_FREE] = start + facts[DISPATCH]
    else:
        issue = max(unit[ISSUED] + 1, awaited, place[ARRIVAL])
        if row[MOVES]:
            window_free = unit[FLIGHT + unit[FLIGHTS]]
            if window_free > start:
                start, cause = window_free, LATENCY
            bus_free, writes = scalars[BUS_FREE], np.int64(q == DMA_OUT)
            if bus_free and writes != scalars[BUS_WRITES]:
                bus_free += facts[TURN_TO_WRITE if writes else TURN_TO_READ]
            if bus_free > start:
                cause = BANDWIDTH
            issue = max(issue, window_free)
            start = max(issue, bus_free)
            size = row[HBM_ROWS] * row[HBM_BYTES]
            cost = costs[line_of(costs, row, place, facts)]
            data, row_cycles, refresh = cost[DATA], cost[ROW_CHANGES], cost[REFRESHES]
            if facts[REFRESH_EVERY]:
                refresh = absolute_refresh(start, data + row_cycles, facts[REFRESH_FOR], facts[REFRESH_EVERY])
            occupied = data + row_cycles + refresh
            end = start + occupied + cost[TAIL]
            scalars[BUS_FREE], scalars[BUS_WRITES] = start + occupied, writes
            unit[FLIGHT + unit[FLIGHTS]] = end
            unit[FLIGHTS] = (unit[FLIGHTS] + 1) % facts[OUTSTANDING]
            counters[TRAFFIC_BYTES + q - DMA_IN] += size
            counters[TRAFFIC_BURSTS + q - DMA_IN] += cost[BURSTS]
            if facts[SERIAL_MODE]:
                data, occupied = end - start - row_cycles - refresh, end - start
            counters[BUSY + row[UNIT]] += data
            counters[STALL + row[UNIT] * N_CAUSES + ROW] += row_cycles
            counters[STALL + row[UNIT] * N_CAUSES + REFRESH] += refresh
        else:  # a sync takes no memory: it may pass while the transfer before it still runs
            start, end = issue, issue + 1
            occupied = facts[SERIAL_MODE]
            counters[BUSY + row[UNIT]] += occupied
        unit[ISSUED] = issue
        place[SLOT_FREE] = issue + facts[DISPATCH]
    gap = start - unit[FREE]
    if gap > 0:
        standing = UNIT_VECTOR if row[UNIT] == UNIT_SCALAR else row[UNIT]
        counters[STALL + standing * N_CAUSES + cause] += gap
    unit[FREE] = max(unit[FREE], start + occupied)
    unit[RETIRE] = max(unit[RETIRE], end)
    if q == VECTOR:
        _record(row, place, end, unit[RETIRE], state)
    for signal in range(2):
        number = row[SIGNAL + signal]
        if number:
            if semaphore[number, GIVEN] - semaphore[number, TAKEN] >= TOKENS:
                return False
            semaphore[number, TOKEN + semaphore[number, GIVEN] % TOKENS] = unit[RETIRE]
            semaphore[number, GIVEN] += 1
    statistics.retired[pc] += 1
    if end > scalars[FRONTIER]:
        counters[CYCLES] += end - scalars[FRONTIER]
        scalars[FRONTIER] = end
    if scalars[WINDOW_FROM] <= start < scalars[WINDOW_TO] and scalars[EVENTS] < timeline.shape[0]:
        event = timeline[scalars[EVENTS]]
        event[0], event[1], event[2] = pc, row[UNIT], place[ARRIVAL]
        event[3], event[4], event[5] = start, end, size
        scalars[EVENTS] += 1
    unit[HEAD] += 1
    if unit[HEAD] == facts[DEPTH + q]:
        unit[HEAD] = 0
    unit[COUNT] -= 1
    return True


@njit(cache=True)
def _operands_ready(row, place, ready):
    """Latest completion of earlier instructions of the unit that wrote what this one reads or writes."""
    latest = np.int64(0)
    for lock in range(row[LOCK_COUNT]):
        first, last = cells_of(row, lock, place[PLACE + lock])
        for cell in range(first, last + 1):
            latest = max(latest, ready[cell])
    return latest


@njit(cache=True)
def _record(row, place, end, retire, state):
    """Note when what a vector or scalar instruction writes will be there, in the scoreboard and in the log."""
    entry = state.log[state.scalars[LOGGED] % LOG]
    state.scalars[LOGGED] += 1
    entry[LOG_PC], entry[LOG_END], entry[LOG_RETIRE] = place[ENTRY], end, retire
    for lock in range(row[LOCK_COUNT]):
        entry[LOG_PLACE + lock] = place[PLACE + lock]
        if row[LOCK + lock * LOCK_COLUMNS + LOCK_WRITE]:
            first, last = cells_of(row, lock, place[PLACE + lock])
            for cell in range(first, last + 1):
                state.ready[cell] = max(state.ready[cell], end)


@njit(cache=True)
def _drain(state, phase):
    """What units wait for after their last instruction, and what vector and scalar do while the other has the queue."""
    makespan = state.scalars[FRONTIER]
    for q, unit in ((MATRIX, UNIT_MATRIX), (VECTOR, UNIT_VECTOR), (DMA_IN, UNIT_DMA_IN), (DMA_OUT, UNIT_DMA_OUT)):
        phase[-1, STALL + unit * N_CAUSES + DRAINED] += makespan - state.unit[q, FREE]
    phase[-1, STALL + DRAINED] += makespan - state.scalars[NOW]
    vector, scalar = STALL + UNIT_VECTOR * N_CAUSES, STALL + UNIT_SCALAR * N_CAUSES
    phase[:, scalar : scalar + N_CAUSES] = phase[:, vector : vector + N_CAUSES]
    phase[:, scalar + SHARED_QUEUE] = phase[:, BUSY + UNIT_VECTOR]
    phase[:, vector + SHARED_QUEUE] = phase[:, BUSY + UNIT_SCALAR]
