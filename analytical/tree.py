"""Trip counts of loops and retirements of instructions, in closed form.

A trip count is a constant, affine in the index of one enclosing loop, a number that the program reads (in the trace), or given by
the trace for a loop that is left early. Loops whose index sets a trip count, and loops that are left early, may nest. So
multiplicities are sums of products of trip counts; nothing is executed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from npu.errors import ProgramError
from npu.program import Program, fact_of_program, loop_tree
from npu.program.exits import exits_of
from npu.program.looptree import Loop, loops_of
from npu.program.reads import counting, reads_of
from npu.program.trace import Trace


@fact_of_program
def indexed_loops(program: Program) -> dict[int, int]:
    """The loops whose index decides about others, by their C_LOOP: trip counts refer to it, or its iterations leave a loop early.

    With the number of indices of each: those of all such loops around it count, the innermost fastest.
    """
    tree = loop_tree(program)
    loops, early = list(tree.loops), tree.holders(tree.early)
    levels = {loop.trips.level for loop in loops if loop.trips.level >= 0}
    found: dict[int, int] = {}
    for loop in loops:
        referred = loop.level in levels and any(inner.trips.level == loop.level for inner in loops_of(loop.body))
        if referred or loop.head in early:
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

    `exits`: by C_LOOP of each loop that is left early, the iterations that reach the C_NEXT, at each of these indices; 0 at
    those that are never reached.
    """

    program: Program = field(compare=False, hash=False)
    trace: Trace
    exits: Mapping[int, np.ndarray] = field(compare=False, hash=False)

    def of(self, loop: Loop) -> np.ndarray:
        """Iterations that reach the C_NEXT, for each index of the innermost indexed loop around it (int64; one where there is
        none). The trips of a loop that data decide about are not asked for here, see `read`."""
        assert loop.trips.count < 0, f"the trips of the loop at {loop.head} are data"
        if loop.head in self.exits:
            return self.exits[loop.head]
        around = _around(self.program)[loop.head]
        sizes = [outer.trips.base for outer in around]
        index = np.zeros(math.prod(sizes), np.int64)
        if loop.trips.constant:
            return index + max(loop.trips.base, 0)
        for number, outer in enumerate(around):
            if outer.level == loop.trips.level:
                index = np.arange(len(index)) // math.prod(sizes[number + 1 :]) % sizes[number]
        return np.maximum(loop.trips.base + loop.trips.factor * index, 0)

    def read(self, count: int) -> np.ndarray:
        """The numbers that a C_COUNT, by its instruction number, reads in order."""
        return _numbers_read(self.program, self)[count]


@fact_of_program
def _numbers_read(program: Program, trips: TripCounts) -> dict[int, np.ndarray]:
    """By the number of each C_COUNT: what it reads, in order."""
    order = reads_of(program, trips.trace.breaks)
    return {count: trips.trace.numbers[order == count] for count in counting(program)}


@fact_of_program
def trip_counts(program: Program, trace: Trace) -> TripCounts:
    """Trip counts of a program under `trace`.

    Raises:
        ProgramError: the trace has another number of loop exits or counts than the program.
    """
    around, exits = _around(program), {}
    for each in exits_of(program, trace.breaks):
        sizes = {outer.head: outer.trips.base for outer in around[each.loop.head]}
        found = exits.setdefault(each.loop.head, np.zeros(math.prod(sizes.values()), np.int64))
        place = 0
        for outer, index in zip(loop_tree(program).around[each.loop.head], each.around, strict=True):
            place = place * sizes[outer.head] + index
        found[place] = each.index
    for loop in loop_tree(program).loops:  # one that is never reached has no exit in the trace
        if loop.leaves_early and loop.head not in exits:
            exits[loop.head] = np.zeros(math.prod(outer.trips.base for outer in around[loop.head]), np.int64)
    if (reads := len(reads_of(program, trace.breaks))) != len(trace.counts):
        raise ProgramError(f"trace: {len(trace.counts)} counts, the program reads {reads}")
    return TripCounts(program=program, trace=trace, exits=exits)


def retirements(program: Program, trace: Trace) -> np.ndarray:
    """Retirements of each instruction, int64 [n]."""
    return retired_and_read(program, trip_counts(program, trace))[0]


@fact_of_program
def retired_and_read(program: Program, trips: TripCounts) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Retirements of each instruction, int64 [n]; and for each C_COUNT, by its number, its reads at each index of the innermost
    indexed loop around it, in the order of the indices."""
    root, indexed, counts_of_loops = loop_tree(program).body, indexed_loops(program), counting(program)
    counts, reads = np.ones(len(program.words), np.int64), {}

    def trips_of(loop: Loop, at: np.ndarray, numbers: Mapping[int, np.ndarray]) -> np.ndarray:
        if loop.trips.count < 0:
            return trips.of(loop)[at]
        return -(-numbers[loop.trips.count] // loop.trips.unit)

    def walk(
        nodes: Sequence[int | Loop], weight: np.ndarray, at: np.ndarray, numbers: Mapping[int, np.ndarray]
    ) -> None:
        """`weight`: how often nodes are passed, for each index of indexed loops, behind a C_COUNT for each pair of an index and a
        number that it read; `at` says of which index each weight is."""
        for loop in nodes:
            if isinstance(loop, int):
                if loop in counts_of_loops:
                    assert not numbers, f"the C_COUNT at {loop} comes behind another"
                    reads[loop], most = weight, trips.read(loop).max(initial=0) + 1
                    parts = np.split(trips.read(loop), np.cumsum(weight)[:-1])
                    times = np.concatenate([np.bincount(part, minlength=most) for part in parts])
                    pairs = np.flatnonzero(times)
                    at, numbers, weight = pairs // most, {loop: pairs % most}, times[pairs]
                continue
            if loop.head in indexed:
                assert not numbers, f"the loop at {loop.head} has indices behind a C_COUNT"
                inside, there = np.repeat(weight, loop.trips.base), np.arange(len(weight) * loop.trips.base)
                once_more = np.zeros_like(inside)
                if loop.leaves_early:
                    ahead = np.repeat(trips.of(loop), loop.trips.base) - np.tile(
                        np.arange(loop.trips.base), len(weight)
                    )
                    inside, once_more = inside * (ahead > 0), inside * (ahead == 0)
            else:
                inside, there = weight * trips_of(loop, at, numbers), at
                once_more = weight
            counts[loop.head + 1 : loop.next + 1] = inside.sum()
            if loop.exit is None:
                walk(loop.body, inside, there, numbers)
                continue
            # The last iteration ends at the break: what stands before it runs once more.
            before, after = loop.body[: loop.exit + 1], loop.body[loop.exit + 1 :]
            counts[loop.head + 1 : loop.left_at + 1] += once_more.sum()
            walk(before, inside + once_more, there, numbers)
            walk(after, inside, there, numbers)

    walk(root, np.ones(1, np.int64), np.zeros(1, np.int64), {})
    counts.setflags(write=False)
    return counts, reads
