"""The timing of the machine, event by event, compiled.

Time depends on queues, semaphores, interlocks and the memory alone, so it is a max-plus system: each instruction starts
at the latest of a few known times. Matrix and vector heads can be committed as soon as the tokens they wait for are
known; only the two DMA queues compete (for HBM), so they are committed in order of time, when nothing else can move.
docs/timing.md states every rule.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from tripath.isa import BY_MNEMONIC
from tripath.isa.control import (
    a_base,
    a_next,
    a_ring,
    a_rows,
    a_step,
    c_affine,
    c_break_if,
    c_end,
    c_loop,
    c_loop_r,
    c_next,
)

MATRIX, VECTOR, DMA_IN, DMA_OUT = range(4)
CAUSES = ("frontend", "semaphore", "operand", "memory", "queue_full", "serial", "shared_queue", "drained")
FRONTEND, SEMAPHORE, OPERAND, MEMORY, QUEUE_FULL, SERIAL, SHARED_QUEUE, DRAINED = range(len(CAUSES))
OK, DEADLOCK, TRACE_SHORT, OUT_OF_RANGE = range(4)
TOKENS = 4096
"""Tokens that one semaphore can hold."""
QUEUED = 0x10
UNIT_SCALAR = 3

OP_LOOP, OP_LOOP_R, OP_NEXT, OP_BREAK, OP_AFFINE, OP_END, OP_BASE, OP_STEP, OP_ROWS, OP_RING, OP_ADVANCE = (
    BY_MNEMONIC[name].opcode
    for name in ("C_LOOP", "C_LOOP_R", "C_NEXT", "C_BREAK_IF", "C_AFFINE", "C_END", "A_BASE", "A_STEP", "A_ROWS",
                 "A_RING", "A_NEXT")
)  # fmt: skip

Facts = namedtuple(
    "Facts",
    "serial depth outstanding issue_cycles loop_cycles next_cycles bytes_per_cycle burst_bytes read_latency write_latency vlen",
)
"""Hardware facts in integers; `depth` [4] per queue."""

Code = namedtuple("Code", "opcode unit queue operands waits signals accesses interval latency phase")
"""The program: see `tables.Tables`; `interval` and `latency` [n] in cycles (0 for DMA), `phase` [n]."""

Statistics = namedtuple("Statistics", "retired busy stall phase_cycles phase_busy bytes bursts makespan")
"""What is counted: `retired` [n]; `busy` [6], `stall` [6, causes] per unit; `phase_cycles` [phases], `phase_busy`
[phases, 6]; per direction `bytes`, `bursts` [2]; `makespan` [1]."""


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
def burst_count(address, stride, rows, size, burst):
    """Bursts of `rows` runs of `size` bytes; runs that follow each other without a gap are one run."""
    if stride == size:
        size, rows = rows * size, 1
    total = 0
    for row in range(rows):
        first = (address + row * stride) // burst
        last = (address + row * stride + size - 1) // burst
        total += last - first + 1
    return total


@njit(cache=True)
def moves_data(code, pc):
    """Whether a DMA instruction is a descriptor (and not only a sync)."""
    return code.accesses[pc, 0, 0] >= 0


@njit(cache=True)
def traffic(accesses, place, burst):
    """Bytes and bursts in HBM of a descriptor."""
    size, bursts = np.int64(0), np.int64(0)
    for access in range(5):
        if accesses[access, 0] == 0:
            rows, length = accesses[access, 3], accesses[access, 4]
            size += rows * length
            bursts += burst_count(place[access, 0], place[access, 1], rows, length, burst)
    return size, bursts


@njit(cache=True)
def run(code, facts, control, breaks, statistics, timeline):
    """Replay the program. Returns (status, instruction at fault, events written to the timeline).

    `timeline` [events, 4] receives (instruction, unit, start, end) of the first instructions to start.
    """
    unit_of_queue = np.array([1, 2, 4, 5])
    capacity = facts.depth.max()
    entry = np.zeros((4, capacity), np.int64)
    arrival = np.zeros((4, capacity), np.int64)
    place = np.zeros((4, capacity, 5, 2), np.int64)
    slot_free = np.zeros((4, capacity), np.int64)
    head, count, pushed = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    free, retire, issued = np.zeros(4, np.int64), np.zeros(4, np.int64), np.full(4, -1, np.int64)
    flight = np.zeros((4, facts.outstanding), np.int64)
    flights = np.zeros(4, np.int64)
    token = np.zeros((64, TOKENS), np.int64)
    given, taken = np.zeros(64, np.int64), np.zeros(64, np.int64)
    vector_ready = np.zeros(1 << 16, np.int64)
    fp_ready = np.zeros(1 << 16, np.int64)
    integer_ready = np.zeros(1 << 16, np.int64)
    bus_free, frontier, events = 0, 0, 0
    now, entered = 0, 0
    serial_pending = False
    while True:
        moved = False
        # Front end: dispatch until a queue is full, a flag is awaited, or the program ends.
        while control.pc[0] >= 0 and not serial_pending:
            pc = control.pc[0]
            op = code.opcode[pc]
            if op < QUEUED:
                if op == OP_BREAK:
                    semaphore = code.waits[pc, 0]
                    if semaphore:
                        if taken[semaphore] == given[semaphore]:
                            break
                        at = token[semaphore, taken[semaphore] % TOKENS]
                        taken[semaphore] += 1
                        if at > now:
                            statistics.stall[0, SEMAPHORE] += at - now
                            now = at
                    if entered >= breaks.size:
                        return TRACE_SHORT, pc, events
                    statistics.retired[pc] += 1
                    level = code.operands[pc, 0]
                    if control.index[level] == breaks[entered]:
                        entered += 1
                        c_break_if(control, level, 0)
                    else:
                        control.pc[0] += 1
                    cost = facts.issue_cycles
                else:
                    statistics.retired[pc] += 1
                    control_step(op, code.operands[pc], control)
                    cost = facts.issue_cycles
                    if op == OP_NEXT:
                        cost = facts.next_cycles
                    elif op == OP_LOOP or op == OP_LOOP_R:
                        cost = facts.loop_cycles
                now += cost
                statistics.busy[0] += cost
                statistics.phase_busy[code.phase[pc], 0] += cost
                moved = True
                continue
            q = code.queue[pc]
            if count[q] == facts.depth[q]:
                break
            slot = pushed[q] % facts.depth[q]
            if slot_free[q, slot] > now:
                statistics.stall[0, QUEUE_FULL] += slot_free[q, slot] - now
                now = slot_free[q, slot]
            entry[q, slot], arrival[q, slot] = pc, now + facts.issue_cycles
            for access in range(5):
                if code.accesses[pc, access, 0] >= 0:
                    register = code.accesses[pc, access, 2]
                    place[q, slot, access, 0] = control.address[register]
                    place[q, slot, access, 1] = control.row_stride[register]
            pushed[q] += 1
            count[q] += 1
            now += facts.issue_cycles
            statistics.busy[0] += facts.issue_cycles
            statistics.phase_busy[code.phase[pc], 0] += facts.issue_cycles
            control.pc[0] += 1
            serial_pending = facts.serial
            moved = True
        # Units: matrix and vector as far as their tokens reach; a DMA queue only when nothing else moves.
        chosen = -1
        for q in (MATRIX, VECTOR):
            if count[q] > 0 and has_tokens(code, entry[q, head[q]], given, taken):
                chosen = q
                break
        if chosen < 0:
            if moved:
                continue
            earliest = np.int64(0)
            for q in (DMA_IN, DMA_OUT):
                if count[q] > 0 and has_tokens(code, entry[q, head[q]], given, taken):
                    slot = head[q]
                    start = max(arrival[q, slot], issued[q] + 1)
                    if moves_data(code, entry[q, slot]):
                        start = max(start, flight[q, flights[q] % facts.outstanding])
                    for wait in range(2):
                        semaphore = code.waits[entry[q, slot], wait]
                        if semaphore:
                            start = max(start, token[semaphore, taken[semaphore] % TOKENS])
                    if chosen < 0 or start < earliest:
                        chosen, earliest = q, start
        if chosen < 0:
            if control.pc[0] < 0 and count.sum() == 0:
                break
            stuck = control.pc[0]
            for q in range(4):
                if count[q] > 0:
                    stuck = entry[q, head[q]]
            return DEADLOCK, stuck, events
        q, slot = chosen, head[chosen]
        pc = entry[q, slot]
        unit = code.unit[pc]
        awaited = np.int64(0)
        for wait in range(2):
            semaphore = code.waits[pc, wait]
            if semaphore:
                awaited = max(awaited, token[semaphore, taken[semaphore] % TOKENS])
                taken[semaphore] += 1
        start = max(free[q], arrival[q, slot])
        cause = FRONTEND
        if awaited > start:
            start, cause = awaited, SEMAPHORE
        if q >= DMA_IN:
            issue = max(issued[q] + 1, awaited, arrival[q, slot])
            if moves_data(code, pc):
                issue = max(issue, flight[q, flights[q] % facts.outstanding])
                begin = max(issue, bus_free)
                if begin > start:
                    start, cause = begin, MEMORY
                size, bursts = traffic(code.accesses[pc], place[q, slot], facts.burst_bytes)
                occupied = -(-bursts * facts.burst_bytes // facts.bytes_per_cycle)
                end = start + occupied + (facts.read_latency if q == DMA_IN else facts.write_latency)
                bus_free = start + occupied
                statistics.bytes[q - DMA_IN] += size
                statistics.bursts[q - DMA_IN] += bursts
                flight[q, flights[q] % facts.outstanding] = end
                flights[q] += 1
            else:  # a sync takes no memory: it may pass while the transfer before it still runs
                start, occupied, end = issue, np.int64(0), issue + 1
            issued[q] = issue
            slot_free[q, slot] = issue
        else:
            if q == VECTOR:
                ready = operands_ready(
                    code.accesses[pc], place[q, slot], facts.vlen, vector_ready, fp_ready, integer_ready
                )
                if ready > start:
                    start, cause = ready, OPERAND
            occupied = code.interval[pc]
            end = start + code.latency[pc]
            slot_free[q, slot] = start
        if facts.serial:
            occupied = end - start
        gap = start - free[q]
        if gap > 0:
            statistics.stall[unit_of_queue[q], cause] += gap
        free[q] = max(free[q], start + occupied)
        retire[q] = max(retire[q], end)
        if q == VECTOR:
            mark_ready(code.accesses[pc], place[q, slot], facts.vlen, end, vector_ready, fp_ready, integer_ready)
        for signal in range(2):
            semaphore = code.signals[pc, signal]
            if semaphore:
                if given[semaphore] - taken[semaphore] >= TOKENS:
                    return OUT_OF_RANGE, pc, events
                token[semaphore, given[semaphore] % TOKENS] = retire[q]
                given[semaphore] += 1
        statistics.retired[pc] += 1
        statistics.busy[unit] += occupied
        phase = code.phase[pc]
        statistics.phase_busy[phase, unit] += occupied
        if end > frontier:
            statistics.phase_cycles[phase] += end - frontier
            frontier = end
        if events < timeline.shape[0]:
            timeline[events, 0], timeline[events, 1] = pc, unit
            timeline[events, 2], timeline[events, 3] = start, end
            events += 1
        head[q] = (slot + 1) % facts.depth[q]
        count[q] -= 1
        if serial_pending:
            statistics.stall[0, SERIAL] += max(0, end - now)
            now = max(now, end)
            serial_pending = False
    if now > frontier:
        statistics.phase_cycles[0] += now - frontier
        frontier = now
    statistics.makespan[0] = frontier
    for q in range(4):
        statistics.stall[unit_of_queue[q], DRAINED] += frontier - free[q]
    statistics.stall[0, DRAINED] += frontier - now
    # Vector and scalar instructions share a queue: what one is busy with, the other waits for.
    for cause in range(statistics.stall.shape[1]):
        statistics.stall[UNIT_SCALAR, cause] = statistics.stall[2, cause]
    statistics.stall[UNIT_SCALAR, SHARED_QUEUE] = statistics.busy[2]
    statistics.stall[2, SHARED_QUEUE] = statistics.busy[UNIT_SCALAR]
    return OK, 0, events


@njit(cache=True)
def has_tokens(code, pc, given, taken):
    """Whether every token that an instruction waits for is known (a semaphore named twice needs two)."""
    first, second = code.waits[pc, 0], code.waits[pc, 1]
    if first and given[first] - taken[first] < (2 if first == second else 1):
        return False
    return not (second and given[second] == taken[second])


@njit(cache=True)
def operands_ready(accesses, place, vlen, vector_ready, fp_ready, integer_ready):
    """Latest completion of earlier instructions of the unit that wrote what this one reads or writes."""
    ready = np.int64(0)
    for access in range(5):
        memory = accesses[access, 0]
        if memory < 2:
            continue
        first, size = place[access, 0], accesses[access, 4]
        if memory == 2:
            for row in range(first // vlen, (first + size - 1) // vlen + 1):
                ready = max(ready, vector_ready[row])
        else:
            table = fp_ready if memory == 3 else integer_ready
            for number in range(first, first + size):
                ready = max(ready, table[number])
    return ready


@njit(cache=True)
def mark_ready(accesses, place, vlen, end, vector_ready, fp_ready, integer_ready):
    """Record when what this instruction writes will be there."""
    for access in range(5):
        memory = accesses[access, 0]
        if memory < 2 or not accesses[access, 1]:
            continue
        first, size = place[access, 0], accesses[access, 4]
        if memory == 2:
            for row in range(first // vlen, (first + size - 1) // vlen + 1):
                vector_ready[row] = max(vector_ready[row], end)
        else:
            table = fp_ready if memory == 3 else integer_ready
            for number in range(first, first + size):
                table[number] = max(table[number], end)
