"""Exact loop fast-forward: when the machine's state at a loop boundary repeats, whole periods are added in closed form.

At the end of an iteration everything that can still influence time is compared with a snapshot of an earlier iteration:
what waits in the queues, times relative to now (those that no later instruction can notice count as equal), tokens,
results in flight. Every further iteration then repeats what lies between the two, moved in time, as long as

- addresses move so that they meet alike: the column PERIOD is the number of iterations after which every address of the
  body has moved by whole rows of Vector SRAM and whole periods of HBM; loops in which two interlocked accesses move at
  different speeds over the same place are never skipped;
- the exits that the trace holds repeat.

So the result is the one that running every iteration gives; where nothing repeats, every iteration is run.
"""

import math
from collections import namedtuple

import numpy as np
from numba import njit

from cycle.state import (
    ARRIVAL,
    BUS_FREE,
    BUS_WRITES,
    COUNT,
    DEPTH,
    DISPATCH,
    DMA_IN,
    ENTERED,
    ENTRY,
    EXITS,
    FLIGHT,
    FLIGHTS,
    FREE,
    FRONTIER,
    GIVEN,
    HBM,
    HEAD,
    ISSUED,
    LEVEL,
    LOCK,
    LOCK_CELL,
    LOCK_COLUMNS,
    LOCK_COUNT,
    LOCK_REGISTER,
    LOCK_SIZE,
    LOCK_WIDTH,
    LOCK_WRITE,
    LOCKS,
    LOG,
    LOG_END,
    LOG_PC,
    LOG_PLACE,
    LOG_RETIRE,
    LOGGED,
    NOW,
    OUTSTANDING,
    PENDING,
    PERIOD,
    PLACE,
    REFRESH_EVERY,
    RETIRE,
    SKIPPED,
    SLOT_FREE,
    TAKEN,
    TOKEN,
    TOKENS,
    TURN_TO_READ,
    TURN_TO_WRITE,
    VECTOR,
    WINDOW_FROM,
    WINDOW_TO,
    Statistics,
)
from npu.isa.spec import LOOP_LEVELS
from npu.program import Program
from npu.program.structure import LOOPS
from npu.program.tables import Register, address_registers

WORTH_CYCLES = 64
"""An iteration shorter than this is run: comparing would take as long."""

CAPACITY = 4096
MARGIN = 128
"""Room that one entry cannot fill."""

SCRATCH = LOOP_LEVELS
"""The snapshot that holds the present; the others belong to the loop levels."""

TAKEN_AT, DUE, BEGAN = range(3)
"""Columns of a loop level: the iteration its snapshot was taken in (-1: none), the one in which the next is due, when the
loop began."""

NOW_THEN, FLOOR_THEN, ENTERED_THEN, STRICT, CLIPPED, EXACT, PLACES, HEADS = range(8)
"""Columns of a snapshot's head: the front end's time, the time that nothing later can look behind, trace entries used;
and how many there are of times that must repeat, times that need not where nothing can notice them, values that must be
equal, addresses (and the registers they came through)."""

Snapshots = namedtuple("Snapshots", "loop head strict clipped exact place register retired phase")
"""One row a loop level, and the last (SCRATCH) for the present; and the statistics at the snapshot."""


def new_snapshots(statistics: Statistics) -> Snapshots:
    """No snapshot taken."""
    rows = LOOP_LEVELS + 1

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((rows, *shape), np.int64)

    return Snapshots(
        zeros(3), zeros(HEADS), *(zeros(CAPACITY) for _ in range(5)), *(zeros(*counter.shape) for counter in statistics)
    )


# ---------------------------------------------------------------------------------------------- which loops may skip


def mark_loops(program: Program, code: np.ndarray, hbm_period_bytes: int) -> None:
    """Fill the columns PERIOD (iterations after which addresses repeat; 0: never skip) and EXITS (a C_BREAK_IF of its own
    may leave the loop) of each C_NEXT."""
    registers = _Registers.of(program)
    if registers is None:
        return
    for start, end in program.loop_ends().items():
        level = program.instructions[start].operands["level"]
        body = range(start + 1, end)
        exits = [
            program.instructions[i].operands["level"] for i in body if program.instructions[i].mnemonic == "C_BREAK_IF"
        ]
        code[end, EXITS] = level in exits
        mixed = level in exits and len(exits) > 1  # the trace's entries of two nested exits would mix
        code[end, PERIOD] = 0 if mixed else _period(program, code, registers, level, body, hbm_period_bytes)


_UNSET = Register(base=0, strides={})


class _Registers:
    """Where address registers can point, and the most trips of each loop."""

    def __init__(self, program: Program) -> None:
        self.registers = address_registers(program)
        self.enclosing: list[list[int]] = []
        self.trips: dict[int, int] = {}
        integer: dict[int, int] = {}
        stack: list[int] = []
        for number, instruction in enumerate(program.instructions):
            o = instruction.operands
            match instruction.mnemonic:
                case "C_AFFINE":
                    inner = [loop for loop in stack if program.instructions[loop].operands["level"] == o["level"]]
                    last = self.trips[inner[-1]] - 1 if inner else 0
                    most = max(o["base"], o["base"] + o["factor"] * last)
                    integer[o["register"]] = max(integer.get(o["register"], 0), most)
                case "C_NEXT":
                    stack.pop()
            if instruction.mnemonic in LOOPS:
                stack.append(number)
                self.trips[number] = o["trips"] if "trips" in o else integer.get(o["register"], 0)
            self.enclosing.append(list(stack))
        self.levels = {loop: program.instructions[loop].operands["level"] for loop in self.trips}

    @classmethod
    def of(cls, program: Program) -> "_Registers | None":
        """The registers, or None where one is set up twice or inside of a loop: then nothing is known beforehand."""
        depth, seen = 0, set()
        for instruction in program.instructions:
            if instruction.mnemonic in LOOPS:
                depth += 1
            elif instruction.mnemonic == "C_NEXT":
                depth -= 1
            elif instruction.mnemonic.startswith("A_") and instruction.mnemonic != "A_NEXT":
                register = instruction.operands["register"]
                if depth or (instruction.mnemonic == "A_BASE" and register in seen):
                    return None
                seen.add(register)
        return cls(program)

    def step(self, register: int, level: int) -> int:
        """By how much an address moves with each iteration of a level."""
        return self._of(register).strides.get(level, 0)

    def _of(self, number: int) -> Register:
        return self.registers.get(number, _UNSET)

    def sweep(self, register: int, number: int) -> tuple[int, int]:
        """First and last address that an instruction can reach through a register."""
        known = self._of(register)
        low = high = known.base
        for loop in self.enclosing[number]:
            reach = (max(self.trips[loop], 1) - 1) * self.step(register, self.levels[loop])
            low, high = low + min(reach, 0), high + max(reach, 0)
        ring = (known.ring_length - 1) * known.ring_stride
        return low + min(ring, 0), high + max(ring, 0)


def _period(
    program: Program, code: np.ndarray, registers: _Registers, level: int, body: range, hbm_period_bytes: int
) -> int:  # fmt: skip
    """Iterations after which the addresses of a loop's body have moved by whole cells and periods; 0 if never alike."""
    period, locks = 1, []
    for number in body:
        instruction = program.instructions[number]
        if instruction.mnemonic == "C_AFFINE" and instruction.operands["level"] == level:
            return 0
        if code[number, HBM] >= 0:
            step = registers.step(int(code[number, HBM]), level)
            period = math.lcm(period, hbm_period_bytes // math.gcd(step, hbm_period_bytes))
        table = code[number, LOCK:].reshape(LOCKS, LOCK_COLUMNS)[: code[number, LOCK_COUNT]]
        for register, cell, width, size, write in table.tolist():
            step = registers.step(register, level)
            period = math.lcm(period, width // math.gcd(step, width))
            low, high = registers.sweep(register, number)
            locks.append((cell + low // width, cell + (high + size - 1) // width, step, bool(write)))
    return period if _meet_alike(locks) else 0


def _meet_alike(locks: list[tuple[int, int, int, bool]]) -> bool:
    """Whether no two accesses, one of them a write, move at different speeds over the same cells (first, last, step,
    write)."""
    table = np.array(sorted(set(locks)), np.int64).reshape(-1, 4)
    first, last, step, write = table.T
    overlap = (first[:, None] <= last[None]) & (first[None] <= last[:, None])
    unlike = (step[:, None] != step[None]) & ((write[:, None] | write[None]) == 1)
    return not (overlap & unlike).any()


# -------------------------------------------------------------------------------------------------------- at run time


@njit(cache=True)
def enter_loop(level, now, loop):
    """A loop begins: forget what was seen of its level."""
    loop[level, TAKEN_AT], loop[level, DUE], loop[level, BEGAN] = -1, 1, now


@njit(cache=True)
def is_due(level, iteration, loop):
    """Whether there is a snapshot to compare with, or to take."""
    return loop[level, TAKEN_AT] >= 0 or iteration >= loop[level, DUE]


@njit(cache=True)
def cells_of(row, lock, place):
    """First and last cell of the scoreboard that an interlocked access at address `place` touches."""
    at = LOCK + lock * LOCK_COLUMNS
    width = row[at + LOCK_WIDTH]
    return row[at + LOCK_CELL] + place // width, row[at + LOCK_CELL] + (place + row[at + LOCK_SIZE] - 1) // width


@njit(cache=True)
def at_loop_end(code, facts, control, breaks, state, statistics, pc, snapshots):
    """After the C_NEXT at `pc`, another iteration about to begin: skip what repeats, or take a snapshot."""
    period, level = code[pc, PERIOD], code[pc, LEVEL]
    loop, iteration = snapshots.loop[level], control.index[level]
    limit = control.trips[level] - 1
    if code[pc, EXITS]:
        if state.scalars[ENTERED] >= breaks.size:
            return
        limit = min(limit, breaks[state.scalars[ENTERED]])
    captured = False
    if loop[TAKEN_AT] >= 0:
        steps = iteration - loop[TAKEN_AT]
        if steps % period == 0 and limit - iteration >= steps and _plausible(state, snapshots, level):
            captured = _capture(code, facts, control, state, snapshots)
            if captured and _repeats(control, snapshots, level, steps):
                periods = _periods(breaks, state, snapshots, level, (limit - iteration) // steps)
                if periods > 0:
                    _skip(code, facts, control, state, statistics, snapshots, level, steps, periods)
                    loop[TAKEN_AT], loop[DUE] = -1, control.trips[level]
                    return
    if iteration < loop[DUE]:
        return
    if state.scalars[NOW] - loop[BEGAN] < WORTH_CYCLES * iteration or limit - iteration < 2 * period:
        loop[TAKEN_AT], loop[DUE] = -1, 2 * iteration
        return
    if captured or _capture(code, facts, control, state, snapshots):
        _keep(statistics, snapshots, level, iteration)
    loop[DUE] = iteration + max(period, iteration)


@njit(cache=True)
def _plausible(state, snapshots, level):
    """A quick look: whether the units moved on together since the snapshot."""
    delta = state.scalars[NOW] - snapshots.head[level, NOW_THEN]
    for q in range(4):
        moved = state.unit[q, FREE] - snapshots.strict[level, q]
        if moved != delta and moved != 0:
            return False
    return state.scalars[FRONTIER] - snapshots.strict[level, 4] == delta


@njit(cache=True)
def _capture(code, facts, control, state, snapshots):
    """Write the present into the scratch snapshot; false if it does not fit."""
    strict, clipped = snapshots.strict[SCRATCH], snapshots.clipped[SCRATCH]
    exact, place, register = snapshots.exact[SCRATCH], snapshots.place[SCRATCH], snapshots.register[SCRATCH]
    scalars = state.scalars
    for q in range(4):
        strict[q] = state.unit[q, FREE]
    strict[4] = scalars[FRONTIER]
    a, b, c, d = 5, 0, 0, 0
    floor = scalars[NOW]
    exact[c], exact[c + 1] = scalars[PENDING], scalars[BUS_WRITES]
    exact[c + 2] = scalars[NOW] % max(facts[REFRESH_EVERY], 1)
    c += 3
    for value in control.ring_position:
        exact[c] = value
        c += 1
    for value in control.register:
        exact[c] = value
        c += 1
    clipped[b] = scalars[BUS_FREE] + max(facts[TURN_TO_WRITE], facts[TURN_TO_READ])
    b += 1
    for q in range(4):
        unit = state.unit[q]
        clipped[b], clipped[b + 1] = unit[RETIRE] + facts[DISPATCH], unit[ISSUED] + 1
        b += 2
        exact[c] = unit[COUNT]
        c += 1
        for waiting in range(facts[DEPTH + q]):
            slot = state.queue[q, (unit[HEAD] + waiting) % facts[DEPTH + q]]
            if waiting >= unit[COUNT]:
                clipped[b] = slot[SLOT_FREE]
                b += 1
                continue
            exact[c], strict[a] = slot[ENTRY], slot[ARRIVAL]
            a += 1
            c += 1
            floor = min(floor, slot[ARRIVAL])
            for k in range(_places(code[slot[ENTRY]], q)):
                place[d], register[d] = slot[PLACE + k], _register(code[slot[ENTRY]], q, k)
                d += 1
            if b > CAPACITY - MARGIN or d > CAPACITY - MARGIN:
                return False
        if q >= DMA_IN:
            for flight in range(facts[OUTSTANDING]):
                clipped[b] = unit[FLIGHT + (unit[FLIGHTS] + flight) % facts[OUTSTANDING]]
                b += 1
    for semaphore in state.semaphore:
        exact[c] = semaphore[GIVEN] - semaphore[TAKEN]
        c += 1
        if b + semaphore[GIVEN] - semaphore[TAKEN] > CAPACITY - MARGIN:
            return False
        for token in range(semaphore[TAKEN], semaphore[GIVEN]):
            clipped[b] = semaphore[TOKEN + token % TOKENS]
            b += 1
    for flying in range(_flying(state, floor)):
        entry = state.log[(scalars[LOGGED] - 1 - flying) % LOG]
        if b > CAPACITY - MARGIN or c > CAPACITY - MARGIN or d > CAPACITY - MARGIN or flying == LOG - 1:
            return False
        exact[c], clipped[b] = entry[LOG_PC], entry[LOG_END]
        b += 1
        c += 1
        for k in range(code[entry[LOG_PC], LOCK_COUNT]):
            place[d], register[d] = entry[LOG_PLACE + k], _register(code[entry[LOG_PC]], VECTOR, k)
            d += 1
    head = snapshots.head[SCRATCH]
    head[NOW_THEN], head[FLOOR_THEN], head[ENTERED_THEN] = scalars[NOW], floor, scalars[ENTERED]
    head[STRICT], head[CLIPPED], head[EXACT], head[PLACES] = a, b, c, d
    return True


@njit(cache=True)
def _places(row, q):
    """Addresses of a waiting instruction that matter for time."""
    if q == VECTOR:
        return row[LOCK_COUNT]
    return np.int64(q >= DMA_IN and row[HBM] >= 0)


@njit(cache=True)
def _register(row, q, k):
    """The address register of its k-th such address."""
    return row[LOCK + k * LOCK_COLUMNS + LOCK_REGISTER] if q == VECTOR else row[HBM]


@njit(cache=True)
def _flying(state, floor):
    """Entries of the log whose results may not be there yet (LOG - 1: perhaps more than it holds)."""
    flying = np.int64(0)
    logged = state.scalars[LOGGED]
    while flying < min(logged, LOG - 1) and state.log[(logged - 1 - flying) % LOG, LOG_RETIRE] > floor:
        flying += 1
    return flying


@njit(cache=True)
def _repeats(control, snapshots, level, steps):
    """Whether the present (scratch) is the snapshot of a level, moved in time and along the loop's addresses."""
    now, then = snapshots.head[SCRATCH], snapshots.head[level]
    for kind in range(STRICT, HEADS):
        if now[kind] != then[kind]:
            return False
    for at in range(now[EXACT]):
        if snapshots.exact[SCRATCH, at] != snapshots.exact[level, at]:
            return False
    delta = now[NOW_THEN] - then[NOW_THEN]
    if now[FLOOR_THEN] - then[FLOOR_THEN] != delta:
        return False
    for at in range(now[STRICT]):
        moved = snapshots.strict[SCRATCH, at] - snapshots.strict[level, at]
        idle = at < 4 and moved == 0 and snapshots.strict[level, at] <= then[FLOOR_THEN]
        if moved != delta and not idle:
            return False
    for at in range(now[CLIPPED]):
        present, past = snapshots.clipped[SCRATCH, at], snapshots.clipped[level, at]
        if present - past != delta and (present > now[FLOOR_THEN] or past > then[FLOOR_THEN]):
            return False
    for at in range(now[PLACES]):
        register = snapshots.register[SCRATCH, at]
        moved = snapshots.place[SCRATCH, at] - snapshots.place[level, at]
        if register != snapshots.register[level, at] or moved != steps * control.stride[register, level]:
            return False
    return True


@njit(cache=True)
def _periods(breaks, state, snapshots, level, periods):
    """Of so many periods, how many can be skipped: the trace must repeat, and the recorded window must not be jumped."""
    before, now = snapshots.head[level, ENTERED_THEN], state.scalars[ENTERED]
    exits = now - before
    if exits > 0:
        same = np.int64(0)
        while same < periods * exits and now + same < breaks.size and breaks[now + same] == breaks[before + same]:
            same += 1
        periods = min(periods, same // exits)
    if snapshots.head[SCRATCH, FLOOR_THEN] < state.scalars[WINDOW_TO]:
        delta = max(np.int64(1), snapshots.head[SCRATCH, NOW_THEN] - snapshots.head[level, NOW_THEN])
        periods = min(periods, (state.scalars[WINDOW_FROM] - 1 - state.scalars[FRONTIER]) // delta)
    return periods


@njit(cache=True)
def _keep(statistics, snapshots, level, iteration):
    """The scratch snapshot and the statistics become the snapshot of a level."""
    snapshots.loop[level, TAKEN_AT] = iteration
    head = snapshots.head[SCRATCH]
    snapshots.head[level] = head
    snapshots.strict[level, : head[STRICT]] = snapshots.strict[SCRATCH, : head[STRICT]]
    snapshots.clipped[level, : head[CLIPPED]] = snapshots.clipped[SCRATCH, : head[CLIPPED]]
    snapshots.exact[level, : head[EXACT]] = snapshots.exact[SCRATCH, : head[EXACT]]
    snapshots.place[level, : head[PLACES]] = snapshots.place[SCRATCH, : head[PLACES]]
    snapshots.register[level, : head[PLACES]] = snapshots.register[SCRATCH, : head[PLACES]]
    snapshots.retired[level] = statistics.retired
    snapshots.phase[level] = statistics.phase


@njit(cache=True)
def _skip(code, facts, control, state, statistics, snapshots, level, steps, periods):
    """Move the machine `periods` periods of `steps` iterations on."""
    scalars, floor = state.scalars, snapshots.head[SCRATCH, FLOOR_THEN]
    shift = periods * (snapshots.head[SCRATCH, NOW_THEN] - snapshots.head[level, NOW_THEN])
    flying = _flying(state, floor)
    scalars[NOW] += shift
    scalars[FRONTIER] += shift
    scalars[ENTERED] += periods * (snapshots.head[SCRATCH, ENTERED_THEN] - snapshots.head[level, ENTERED_THEN])
    if scalars[BUS_FREE] + max(facts[TURN_TO_WRITE], facts[TURN_TO_READ]) > floor:
        scalars[BUS_FREE] += shift
    for q in range(4):
        unit = state.unit[q]
        if unit[FREE] != snapshots.strict[level, q]:
            unit[FREE] += shift
        if unit[RETIRE] + facts[DISPATCH] > floor:
            unit[RETIRE] += shift
        if unit[ISSUED] + 1 > floor:
            unit[ISSUED] += shift
        for waiting in range(facts[DEPTH + q]):
            slot = state.queue[q, (unit[HEAD] + waiting) % facts[DEPTH + q]]
            if waiting < unit[COUNT]:
                slot[ARRIVAL] += shift
                for k in range(_places(code[slot[ENTRY]], q)):
                    register = _register(code[slot[ENTRY]], q, k)
                    slot[PLACE + k] += periods * steps * control.stride[register, level]
            elif slot[SLOT_FREE] > floor:
                slot[SLOT_FREE] += shift
        for flight in range(facts[OUTSTANDING]):
            if unit[FLIGHT + flight] > floor:
                unit[FLIGHT + flight] += shift
    for semaphore in state.semaphore:
        for token in range(semaphore[TAKEN], semaphore[GIVEN]):
            if semaphore[TOKEN + token % TOKENS] > floor:
                semaphore[TOKEN + token % TOKENS] += shift
    for k in range(flying):
        entry = state.log[(scalars[LOGGED] - 1 - k) % LOG]
        row = code[entry[LOG_PC]]
        entry[LOG_END] += shift
        entry[LOG_RETIRE] += shift
        for lock in range(row[LOCK_COUNT]):
            entry[LOG_PLACE + lock] += periods * steps * control.stride[_register(row, VECTOR, lock), level]
            if row[LOCK + lock * LOCK_COLUMNS + LOCK_WRITE]:
                first, last = cells_of(row, lock, entry[LOG_PLACE + lock])
                for cell in range(first, last + 1):
                    state.ready[cell] = max(state.ready[cell], entry[LOG_END])
    control.index[level] += periods * steps
    more = periods * (statistics.retired - snapshots.retired[level])
    statistics.retired[:] += more
    scalars[SKIPPED] += more.sum()
    statistics.phase[:] += periods * (statistics.phase - snapshots.phase[level])
