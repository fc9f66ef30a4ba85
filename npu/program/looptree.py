"""The loop tree of a program: its loops, their trip counts and exits, found once for all who walk its control flow."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import assert_never

from npu.errors import ProgramError
from npu.isa.spec import ControlKind, Instruction


@dataclass(frozen=True, kw_only=True, slots=True)
class TripCount:
    """base + factor * the index of the enclosing loop of `level` (-1: none, a constant); or, where `count` is the number of a
    C_COUNT (else -1), one for each `unit` of what it reads or part of it, at most `base`."""

    base: int
    factor: int = 0
    level: int = -1
    count: int = -1
    unit: int = 1

    @property
    def constant(self) -> bool:
        """The same number every time."""
        return self.level < 0 and self.count < 0


@dataclass(kw_only=True, slots=True, eq=False)
class Loop:
    """A loop of a program.

    Attributes:
        head: Number of the instruction that opens it.
        next: Number of the one that closes it.
        level: Its level.
        trips: Iterations, unless it is left early.
        most_trips: The largest value of `trips`.
        exit: Position in `body` of the instruction that may leave it early; None also where the loop never goes round.
        body: Instruction numbers and loops between `head` and `next`.
    """

    head: int
    next: int
    level: int
    trips: TripCount
    most_trips: int
    exit: int | None = None
    body: list["int | Loop"] = field(default_factory=list)

    @property
    def leaves_early(self) -> bool:
        """True if the loop may be left early; its number of iterations then comes from the trace."""
        return self.exit is not None

    @property
    def left_at(self) -> int:
        """Number of the instruction that leaves it early, or of the one that closes it."""
        found = self.next if self.exit is None else self.body[self.exit]
        assert isinstance(found, int)
        return found

    @property
    def numbers(self) -> range:
        """Numbers of all instructions between `head` and `next`."""
        return range(self.head + 1, self.next)


@dataclass(frozen=True, kw_only=True)
class LoopTree:
    """The loop structure of a program. `body` holds the instruction numbers and loops outside any loop; `around` holds the loops
    around each instruction, outermost first."""

    body: list[int | Loop]
    around: list[tuple[Loop, ...]]

    @classmethod
    def of(cls, instructions: Sequence[Instruction]) -> "LoopTree":
        """The tree of a program.

        Raises:
            ProgramError: loops do not nest, or more than one instruction sets the trip count of a loop.
        """
        growth = _Growth(size=len(instructions))
        for number, instruction in enumerate(instructions):
            growth.add(number, instruction)
        if growth.running:
            raise ProgramError("program: a loop is not closed")
        return cls(body=growth.root, around=growth.around)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """All loops in program order."""
        return tuple(loops_of(self.body))

    @cached_property
    def early(self) -> set[int]:
        """Heads of the loops that may be left early."""
        return {loop.head for loop in self.loops if loop.leaves_early}

    def holders(self, numbers: Iterable[int]) -> set[int]:
        """Heads of the loops around any of these instructions."""
        return {loop.head for number in numbers for loop in self.around[number]}


def loops_of(nodes: Sequence["int | Loop"]) -> Iterator[Loop]:
    """All loops below, in program order."""
    for node in nodes:
        if isinstance(node, Loop):
            yield node
            yield from loops_of(node.body)


@dataclass(kw_only=True)
class _Growth:
    """A tree as far as the program has been read: the loops that are `running`; by trip register, who set it last (loops around
    it, the count), and the loops that read it (number, loops around it, how many of them are around who set it)."""

    size: int
    root: list[int | Loop] = field(default_factory=list)
    around: list[tuple[Loop, ...]] = field(default_factory=list)
    running: tuple[Loop, ...] = ()
    setters: dict[int, tuple[tuple[Loop, ...], TripCount]] = field(default_factory=dict)
    readers: dict[int, list[tuple[int, tuple[Loop, ...], int]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, number: int, instruction: Instruction) -> None:
        """Read the next instruction."""
        body, o = (self.running[-1].body if self.running else self.root), instruction.operands
        match instruction.spec.control:
            case ControlKind.LOOP:
                self.around.append(self.running)
                loop = self._opened(number, instruction)
                body.append(loop)
                self.running = *self.running, loop
                return
            case ControlKind.NEXT:
                if not self.running or (self.running[-1].level, self.running[-1].next) != (o["level"], number):
                    raise ProgramError(f"program: {instruction.mnemonic} closes no loop (instruction {number})")
                self.running = self.running[:-1]
                self.around.append(self.running)
                return
            case ControlKind.BREAK:
                if not self.running or self.running[-1].level != o["level"]:
                    raise ProgramError(
                        f"program: {instruction.mnemonic} must stand directly in its loop (instruction {number})"
                    )
                self.running[-1].exit = len(body) if self.running[-1].most_trips > 0 else None
            case ControlKind.TRIPS | ControlKind.COUNT:
                self._set_trips(number, instruction)
            case ControlKind.END:
                if number != self.size - 1:
                    raise ProgramError(f"program: {instruction.mnemonic} before the end (instruction {number})")
            case (
                ControlKind.BASE | ControlKind.STEP | ControlKind.ROWS | ControlKind.RING | ControlKind.ADVANCE
                | ControlKind.HOST | None
            ):  # fmt: skip
                pass
            case other:
                assert_never(other)
        body.append(number)
        self.around.append(self.running)

    def _opened(self, number: int, instruction: Instruction) -> Loop:
        level, stop = instruction.operands["level"], number + instruction.operands["length"]
        if any(level == outer.level for outer in self.running):
            raise ProgramError(f"program: loop level {level} nests in itself (instruction {number})")
        if stop >= self.size or (self.running and stop >= self.running[-1].next):
            raise ProgramError(f"program: a loop ends outside of the enclosing one (instruction {number})")
        trips = self._trips(number, instruction)
        last = max([0, *(outer.most_trips - 1 for outer in self.running if outer.level == trips.level)])
        most = trips.base + max(0, trips.factor * last)
        return Loop(head=number, next=stop, level=level, trips=trips, most_trips=most)

    def _trips(self, number: int, instruction: Instruction) -> TripCount:
        o = instruction.operands
        if "trips" in o:
            return TripCount(base=o["trips"])
        around, count = self.setters.get(o["register"], ((), TripCount(base=0)))
        if self.running[: len(around)] != around:
            raise ProgramError(f"program: what sets the trips of a loop may be passed by (instruction {number})")
        self.readers[o["register"]].append((number, self.running, len(around)))
        if "unit" not in o:
            if count.count >= 0:
                raise ProgramError(f"program: {instruction.mnemonic} takes trips from a C_COUNT (instruction {number})")
            return count
        if count.count < 0:
            raise ProgramError(
                f"program: {instruction.mnemonic} has no C_COUNT to take trips from (instruction {number})"
            )
        unit = 1 << o["unit"]
        return TripCount(base=-(-count.base // unit), count=count.count, unit=unit)

    def _set_trips(self, number: int, instruction: Instruction) -> None:
        """Note a trip count, and see that it reaches no loop that has another: by an iteration that repeats this instruction,
        but not the one that the loop has its count from."""
        o = instruction.operands
        for reader, around, known in self.readers[o["register"]]:
            if len(around) > known and self.running[: known + 1] == around[: known + 1]:
                raise ProgramError(
                    f"program: the trips of the loop at instruction {reader} are set again (instruction {number})"
                )
        if instruction.spec.control is ControlKind.COUNT:
            self.setters[o["register"]] = self.running, TripCount(base=o["most"], count=number)
            return
        varies = o["factor"] and any(loop.level == o["level"] for loop in self.running)
        level = {"factor": o["factor"], "level": o["level"]} if varies else {}
        self.setters[o["register"]] = self.running, TripCount(base=o["base"], **level)
