"""The loop tree of a program, and how often each instruction retires, in closed form.

A trip count is a constant, affine in the index of one enclosing loop, or given by the trace for a loop that is left
early. So multiplicities are sums of products of trip counts; nothing is executed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from npu.errors import ProgramError
from npu.program import Program, fact_of_program
from npu.program.trace import Trace


@dataclass(kw_only=True, slots=True, eq=False)
class Loop:
    """A loop: `trips` = base + factor * index[level]; `exit` is the position in `body` of its C_BREAK_IF, if any.

    `head` and `next` are the numbers of its C_LOOP and C_NEXT; `body` holds instruction numbers and loops.
    """

    head: int
    next: int
    level: int
    base: int
    factor: int = 0
    of_level: int = -1
    exit: int | None = None
    body: list["int | Loop"] = field(default_factory=list)

    @property
    def leaves_early(self) -> bool:
        """Whether its number of iterations comes from the trace."""
        return self.exit is not None

    @property
    def left_at(self) -> int:
        """The number of its C_BREAK_IF, or of its C_NEXT."""
        found = self.next if self.exit is None else self.body[self.exit]
        assert isinstance(found, int)
        return found


@fact_of_program
def loop_tree(program: Program) -> list["int | Loop"]:
    """Top-level instructions and loops of a program, in order."""
    root: list[int | Loop] = []
    stack: list[Loop] = []
    affine: dict[int, tuple[int, int, int]] = {}
    for number, instruction in enumerate(program.instructions):
        body, o = (stack[-1].body if stack else root), instruction.operands
        match instruction.mnemonic:
            case "C_LOOP":
                loop = Loop(head=number, next=number + o["length"], level=o["level"], base=o["trips"])
                body.append(loop)
                stack.append(loop)
            case "C_LOOP_R":
                base, factor, level = affine[o["register"]]
                loop = Loop(
                    head=number, next=number + o["length"], level=o["level"], base=base, factor=factor, of_level=level
                )
                body.append(loop)
                stack.append(loop)
            case "C_NEXT":
                stack.pop()
            case "C_BREAK_IF":
                if stack[-1].level != o["level"]:
                    raise ProgramError(f"program: C_BREAK_IF leaves an outer loop (instruction {number}), not analysed")
                stack[-1].exit = len(body)
                body.append(number)
            case _:
                if instruction.mnemonic == "C_AFFINE":
                    affine[o["register"]] = (o["base"], o["factor"], o["level"])
                body.append(number)
    return root


def loops_of(nodes: list["int | Loop"]) -> Iterator[Loop]:
    """All loops below."""
    for node in nodes:
        if isinstance(node, Loop):
            yield node
            yield from loops_of(node.body)


@fact_of_program
def indexed_loops(program: Program) -> list[Loop]:
    """The loops whose index decides about others: trip counts refer to it, or its iterations leave a loop early.

    Raises:
        ProgramError: one of them lies in another.
    """
    loops = list(loops_of(loop_tree(program)))
    levels = {loop.of_level for loop in loops if loop.of_level >= 0}
    found = [
        loop for loop in loops
        if (loop.level in levels and any(inner.of_level == loop.level for inner in loops_of(loop.body)))
        or any(isinstance(node, Loop) and node.leaves_early for node in loop.body)
    ]  # fmt: skip
    if any(outer.head < inner.head < outer.next for outer in found for inner in found):
        raise ProgramError("program: trip counts depend on more than one loop at a time, not analysed")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class TripCounts:
    """Trip counts under a trace: that of a loop is an array over the indices of the region that it lies in.

    `regions`: the indexed loops, and last the whole program, as C_LOOP, C_NEXT and trips; `exits`: where each region's loop
    is left early, at each of its indices.
    """

    regions: tuple[tuple[int, int, int], ...]
    exits: tuple[tuple[int, ...], ...]

    def of(self, loop: Loop) -> np.ndarray:
        """Iterations that reach the C_NEXT, for each index of the indexed loop around it (int64; one where there is none)."""
        number = next(i for i, (head, end, _) in enumerate(self.regions) if head < loop.head < end)
        indices = self.regions[number][2]
        if loop.leaves_early:
            return np.array(self.exits[number], np.int64)
        if not loop.factor:
            return np.full(indices, max(loop.base, 0))
        return np.maximum(loop.base + loop.factor * np.arange(indices), 0)


def trip_counts(program: Program, trace: Trace) -> TripCounts:
    """Trip counts of a program under `trace`.

    Raises:
        ProgramError: the trace has another number of loop exits than the program.
    """
    regions, counts = _regions(program)
    stops = list(accumulate(counts))
    if stops[-1] and len(trace.breaks) != stops[-1]:
        raise ProgramError(f"trace: {len(trace.breaks)} loop exits, the program has {stops[-1]}")
    exits = tuple(tuple(trace.breaks[stop - count : stop]) for stop, count in zip(stops, counts, strict=True))
    return TripCounts(regions=regions, exits=exits)


@fact_of_program
def _regions(program: Program) -> tuple[tuple[tuple[int, int, int], ...], list[int]]:
    """The regions of `TripCounts`, and how many exits of a trace belong to each."""
    outer, root = indexed_loops(program), loop_tree(program)
    left = [loop.base * any(inner.leaves_early for inner in loops_of(loop.body)) for loop in outer]
    alone = sum(isinstance(node, Loop) and node.leaves_early for node in root)
    if alone > 1 or (alone and any(left)):
        raise ProgramError("program: a loop of no other is left early beside others, not analysed")
    whole = (-1, len(program.words), 1)
    return (*((loop.head, loop.next, loop.base) for loop in outer), whole), [*left, alone]


def retirements(program: Program, trace: Trace) -> np.ndarray:
    """How often each instruction retires (int64 [n])."""
    return _retired(program, trip_counts(program, trace))


@fact_of_program
def _retired(program: Program, trips: TripCounts) -> np.ndarray:
    root, outer = loop_tree(program), {loop.head for loop in indexed_loops(program)}
    counts = np.ones(len(program.words), np.int64)

    def walk(nodes: list[int | Loop], weight: np.ndarray) -> None:
        for loop in nodes:
            if isinstance(loop, int):
                continue
            inside = np.ones(loop.base, np.int64) if loop.head in outer else weight * trips.of(loop)
            counts[loop.head + 1 : loop.next + 1] = inside.sum()
            if loop.exit is None:
                walk(loop.body, inside)
                continue
            # The last iteration ends at the break: what stands before it runs once more.
            before, after = loop.body[: loop.exit + 1], loop.body[loop.exit + 1 :]
            counts[loop.head + 1 : loop.left_at + 1] += weight.sum()
            walk(before, inside + weight)
            walk(after, inside)

    walk(root, np.ones(1, np.int64))
    counts.setflags(write=False)
    return counts
