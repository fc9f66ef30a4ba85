"""Where a stretch that may be known again begins and ends, and on what it depends beside the machine's state (`transitions`)."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cycle.memory import DescriptorCosts
from cycle.periods import UNSET, Accesses, accesses_of, meet_alike, set_up_once, sweep
from cycle.schema import record
from npu.isa.spec import LOOP_LEVELS, ControlKind
from npu.program import Program, loop_tree
from npu.program.looptree import Loop, loops_of
from npu.program.reads import counting
from npu.program.registers import Register
from npu.program.tables import address_registers

STOP = record("level", ("around", (LOOP_LEVELS,)), "depth", "leaves", "early", "indexed", "first", "last")
"""A stop: the `level` of its loop, where iterations of that loop differ by the number alone that they read (else -1); the levels
`around` it, `depth` of them, from the inside out; how many of those loops may come to their end before the next stop (`leaves`);
bits of the levels of those that may be left `early`, and of those that a trip count is made of (`indexed`); its rows of PLACE."""
PLACE = record("register", "level", "hbm", "beyond")
"""A register that may be read before the next stop, a level that moves it so that it matters for time, whether it is an address
of HBM, and how many of the loops around must be in their last iteration for that."""
NO_STOPS = np.zeros(0, STOP), np.zeros(0, PLACE)
"""None."""


def mark_stops(
    program: Program, code: np.ndarray, costs: DescriptorCosts, burst_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fill in `stop` of each instruction that is one: STOP [stops], PLACE [places]."""
    if not counting(program) or not set_up_once(program):
        return NO_STOPS
    accesses, around, numbers = accesses_of(code), loop_tree(program).around, _stops(program)
    matters, following = _Matters(program, code, accesses, costs, burst_bytes), _following(program)
    ends = numbers | loop_tree(program).early
    stops, places = [], []
    for number in sorted(numbers):
        loops, reached = around[number][::-1], _reached(following, number, ends)
        steering = _steering(program, reached)
        alike = number in counting(program) and loops and _alike(program, accesses, loops[0], burst_bytes)
        stop = np.zeros((), STOP)
        stop["level"], stop["depth"], stop["leaves"] = (
            loops[0].level if alike else -1,
            len(loops),
            _leaves(loops, reached),
        )
        stop["around"][: len(loops)] = [loop.level for loop in loops]
        stop["early"] = sum(1 << loop.level for loop in loops if loop.leaves_early)
        stop["indexed"] = sum(1 << loop.level for loop in loops if loop.level in steering)
        stop["first"] = len(places)
        places += sorted(set(_places(loops, {each: around[each] for each in reached}, matters)))
        stop["last"] = len(places)
        stops.append(stop)
        code["stop"][number] = len(stops)
    return np.array(stops, STOP), np.array(places, PLACE)


def _stops(program: Program) -> set[int]:
    """Every C_COUNT, and the first loop of every phase: fewer things matter there than in its midst."""
    opened, found, phase = (
        {loop.head for loop in loop_tree(program).loops if not loop.leaves_early},
        set(counting(program)),
        -1,
    )
    for number, each in enumerate(program.phase_of().tolist()):
        if each != phase and number in opened:
            found.add(number)
            phase = each
    return found


def _following(program: Program) -> list[list[int]]:
    """The instructions that may follow each one: the next, and where a loop begins, goes round or is left."""
    count = len(program.instructions)
    found = [[number + 1] for number in range(count)]
    for loop in loop_tree(program).loops:
        found[loop.head].append(loop.next + 1)
        found[loop.next].append(loop.head + 1)
        found[loop.left_at].append(loop.next + 1)
    return [[number for number in numbers if number < count] for numbers in found]


def _reached(following: Sequence[Sequence[int]], start: int, ends: set[int]) -> set[int]:
    """The instructions that may be carried out between a stop and the next one, or the next loop that may be left early."""
    found, waiting = set[int](), list(following[start])
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += following[number] if number not in ends else ()
    return found


def _places(
    loops: Sequence[Loop], reached: Mapping[int, Sequence[Loop]], matters: "_Matters"
) -> Iterator[tuple[int, int, int, int]]:
    """PLACEs of the instructions reached from a stop in `loops`, each with the loops around it."""
    for number, around in reached.items():
        shared = [loop for loop in loops if loop in around]
        for loop in shared:
            for name, hbm in matters(number, loop.level):
                yield name, loop.level, hbm, len(loops) - len(shared)


def _leaves(loops: Sequence[Loop], reached: set[int]) -> int:
    """The number of loops around a stop, from the inside out, that may end before the next stop."""
    ends = [not reached.isdisjoint((loop.next, loop.left_at)) for loop in loops]
    return (*ends, False).index(False)


def _steering(program: Program, reached: set[int]) -> set[int]:
    """The levels whose indices trip counts are made of."""
    steps = (program.instructions[number] for number in reached)
    return {step.operands["level"] for step in steps if step.spec.control is ControlKind.TRIPS}


class _Matters:
    """Which addresses of an instruction matter for time where a loop has moved them, each with whether it is one of HBM."""

    def __init__(
        self, program: Program, code: np.ndarray, accesses: Sequence[Accesses], costs: DescriptorCosts, burst_bytes: int
    ) -> None:
        self._registers, self._around = address_registers(program), loop_tree(program).around
        self._code, self._accesses, self._costs, self._burst_bytes = code, accesses, costs, burst_bytes
        written = [
            self._cells(number, name, lock)
            for number, each in enumerate(accesses) for name, lock in each.locks if lock[3]
        ]  # fmt: skip
        self._written = np.array(written, np.int64).reshape(-1, 2)

    def __call__(self, number: int, level: int) -> list[tuple[int, int]]:
        """(register, 1 if of HBM) of those of the instruction `number` that the loop of `level` moves."""
        found = []
        for name in self._accesses[number].hbm:
            register = self._registers.get(name, UNSET)
            if register.strides.get(level, 0) % self._burst_bytes and self._unlike(number, register):
                found.append((name, 1))
        for name, lock in self._accesses[number].locks:
            if self._registers.get(name, UNSET).strides.get(level, 0) and (lock[3] or self._meets(number, name, lock)):
                found.append((name, 0))
        return found

    def _unlike(self, number: int, register: Register) -> bool:
        """True if the cost of an access to HBM depends on the place in a burst where it begins."""
        row = self._code[number]
        shape = int(row["hbm_rows"]), int(row["hbm_bytes"]), register.row_stride if row["hbm_rows"] > 1 else 0
        step = math.gcd(self._burst_bytes, register.ring_stride, *register.strides.values())
        offsets = range(register.base % step, self._burst_bytes, step)
        return len({self._costs.of(*shape, offset, int(row["direction"])) for offset in offsets}) > 1

    def _meets(self, number: int, name: int, lock: tuple[int, int, int, int]) -> bool:
        """True if anything writes the cells that an access reads."""
        first, last = self._cells(number, name, lock)
        return bool(((self._written[:, 0] <= last) & (first <= self._written[:, 1])).any())

    def _cells(self, number: int, name: int, lock: tuple[int, int, int, int]) -> tuple[int, int]:
        cell, width, size, _ = lock
        low, high = sweep(self._registers.get(name, UNSET), self._around[number])
        return cell + low // width, cell + (high + size - 1) // width


def _alike(program: Program, accesses: Sequence[Accesses], loop: Loop, hbm_period_bytes: int) -> bool:
    """True if the iterations of a loop differ only by one number that each reads, and by addresses that meet alike."""
    registers, around, counts = address_registers(program), loop_tree(program).around, counting(program)
    reads = [number for number in loop.numbers if number in counts]
    inner = list(loops_of(loop.body))
    if (
        len(reads) != 1
        or reads[0] not in loop.body
        or any(each.leaves_early or each.trips.level >= 0 for each in inner)
    ):
        return False
    locks, between = [], []  # those that move by a part of a cell, which read alone
    for number in loop.numbers:
        steps = [registers.get(name, UNSET).strides.get(loop.level, 0) for name in accesses[number].hbm]
        if any(step % hbm_period_bytes for step in steps):
            return False
        for name, (cell, width, size, write) in accesses[number].locks:
            register = registers.get(name, UNSET)
            low, high = sweep(register, around[number])
            place = cell + low // width, cell + (high + size - 1) // width
            step = register.strides.get(loop.level, 0)
            locks.append((*place, step, bool(write)))
            between += [place] if step % width else []
    written = [(first, last) for first, last, _, write in locks if write]
    if any(first <= end and begin <= last for first, last in between for begin, end in written):
        return False
    return meet_alike(locks)
