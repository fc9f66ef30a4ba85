"""How often each loop of a program goes round and each instruction retires, in closed form.

A trip count is a constant, affine in the index of one enclosing loop, or given by the trace for a loop that is left
early; loops whose index decides so may nest. So multiplicities are sums of products of trip counts; nothing is executed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from npu.errors import ProgramError
from npu.program import Program, fact_of_program, loop_tree
from npu.program.looptree import Loop, loops_of
from npu.program.trace import Trace


@fact_of_program
def indexed_loops(program: Program) -> dict[int, int]:
    """The loops whose index decides about others, by their C_LOOP: trip counts refer to it, or its iterations leave a loop early.

    With the number of indices of each: those of all such loops around it count, the innermost fastest.
    """
    loops = list(loop_tree(program).loops)
    levels = {loop.trips.level for loop in loops if loop.trips.level >= 0}
    found: dict[int, int] = {}
    for loop in loops:
        referred = loop.level in levels and any(inner.trips.level == loop.level for inner in loops_of(loop.body))
        if referred or any(isinstance(node, Loop) and node.leaves_early for node in loop.body):
            around = [outer.head for outer in loop_tree(program).around[loop.head] if outer.head in found]
            found[loop.head] = loop.trips.base * (found[around[-1]] if around else 1)
    return found


@fact_of_program
def _around(program: Program) -> dict[int, tuple[Loop, ...]]:
    """Of each loop, by its C_LOOP, the indexed loops around it, from the outside in."""
    indexed, around = indexed_loops(program), loop_tree(program).around
    return {
        loop.head: tuple(outer for outer in around[loop.head] if outer.head in indexed)
        for loop in loop_tree(program).loops
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TripCounts:
    """Trip counts under a trace: that of a loop is an array over the indices of the indexed loop that it lies in.

    `exits`: for each loop that is left early, its C_LOOP and the iterations that reach the C_NEXT, at each of these indices.
    """

    program: Program = field(compare=False, hash=False)
    exits: tuple[tuple[int, tuple[int, ...]], ...]

    def of(self, loop: Loop) -> np.ndarray:
        """Iterations that reach the C_NEXT, for each index of the innermost indexed loop around it (int64; one where there is
        none)."""
        for head, stops in self.exits:
            if head == loop.head:
                return np.array(stops, np.int64)
        around = _around(self.program)[loop.head]
        sizes = [outer.trips.base for outer in around]
        index = np.zeros(math.prod(sizes), np.int64)
        for number, outer in enumerate(around):
            if outer.level == loop.trips.level:
                index = np.arange(len(index)) // math.prod(sizes[number + 1 :]) % sizes[number]
        return np.maximum(loop.trips.base + loop.trips.factor * index, 0)


def trip_counts(program: Program, trace: Trace) -> TripCounts:
    """Trip counts of a program under `trace`.

    Raises:
        ProgramError: the trace has another number of loop exits than the program, or the exits of two loops mix.
    """
    counts = _exits(program)
    stops = list(accumulate(counts.values(), initial=0))
    if stops[-1] and len(trace.breaks) != stops[-1]:
        raise ProgramError(f"trace: {len(trace.breaks)} loop exits, the program has {stops[-1]}")
    parts = zip(counts, stops[:-1], stops[1:], strict=True)
    return TripCounts(program=program, exits=tuple((head, tuple(trace.breaks[a:b])) for head, a, b in parts))


@fact_of_program
def _exits(program: Program) -> dict[int, int]:
    """The loops that are left early, by their C_LOOP, and how many entries of a trace belong to each.

    Raises:
        ProgramError: the entries of one do not all come before those of the next.
    """
    indexed, around = indexed_loops(program), _around(program)
    early = [loop for loop in loop_tree(program).loops if loop.leaves_early]
    outermost = []
    for loop in early:
        direct = loop_tree(program).around[loop.head]
        if direct and direct[-1].head not in indexed:
            raise ProgramError(
                "program: a loop that is left early lies in one that no exit or trip count follows, not analysed"
            )
        outermost.append(direct[0].head if direct else loop.head)
    if len(set(outermost)) != len(outermost):
        raise ProgramError("program: two loops that are left early lie in the same loop, not analysed")
    return {loop.head: indexed[around[loop.head][-1].head] if around[loop.head] else 1 for loop in early}


def retirements(program: Program, trace: Trace) -> np.ndarray:
    """How often each instruction retires (int64 [n])."""
    return _retired(program, trip_counts(program, trace))


@fact_of_program
def _retired(program: Program, trips: TripCounts) -> np.ndarray:
    root, indexed = loop_tree(program).body, indexed_loops(program)
    counts = np.ones(len(program.words), np.int64)

    def walk(nodes: Sequence[int | Loop], weight: np.ndarray) -> None:
        for loop in nodes:
            if isinstance(loop, int):
                continue
            inside = np.repeat(weight, loop.trips.base) if loop.head in indexed else weight * trips.of(loop)
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
