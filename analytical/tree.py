"""How often each loop of a program goes round and each instruction retires, in closed form.

A trip count is a constant, affine in the index of one enclosing loop, or given by the trace for a loop that is left
early. So multiplicities are sums of products of trip counts; nothing is executed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from npu.errors import ProgramError
from npu.program import Program, fact_of_program, loop_tree
from npu.program.looptree import Loop, loops_of
from npu.program.trace import Trace


@fact_of_program
def indexed_loops(program: Program) -> list[Loop]:
    """The loops whose index decides about others: trip counts refer to it, or its iterations leave a loop early.

    Raises:
        ProgramError: one of them lies in another.
    """
    loops = list(loop_tree(program).loops)
    levels = {loop.trips.level for loop in loops if loop.trips.level >= 0}
    found = [
        loop for loop in loops
        if (loop.level in levels and any(inner.trips.level == loop.level for inner in loops_of(loop.body)))
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
        return np.maximum(loop.trips.base + loop.trips.factor * np.arange(indices), 0)


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
    outer, root = indexed_loops(program), loop_tree(program).body
    left = [loop.trips.base * any(inner.leaves_early for inner in loops_of(loop.body)) for loop in outer]
    alone = sum(isinstance(node, Loop) and node.leaves_early for node in root)
    if alone > 1 or (alone and any(left)):
        raise ProgramError("program: a loop of no other is left early beside others, not analysed")
    whole = (-1, len(program.words), 1)
    return (*((loop.head, loop.next, loop.trips.base) for loop in outer), whole), [*left, alone]


def retirements(program: Program, trace: Trace) -> np.ndarray:
    """How often each instruction retires (int64 [n])."""
    return _retired(program, trip_counts(program, trace))


@fact_of_program
def _retired(program: Program, trips: TripCounts) -> np.ndarray:
    root, outer = loop_tree(program).body, {loop.head for loop in indexed_loops(program)}
    counts = np.ones(len(program.words), np.int64)

    def walk(nodes: Sequence[int | Loop], weight: np.ndarray) -> None:
        for loop in nodes:
            if isinstance(loop, int):
                continue
            inside = np.ones(loop.trips.base, np.int64) if loop.head in outer else weight * trips.of(loop)
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
