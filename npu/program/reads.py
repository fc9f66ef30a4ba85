"""The numbers that a run reads to decide how often loops go round: which instruction reads each, in order."""

from collections.abc import Sequence

import numpy as np

from npu.errors import ProgramError
from npu.isa.spec import ControlKind
from npu.program.container import Program, fact_of_program, loop_tree
from npu.program.looptree import Loop


@fact_of_program
def counting(program: Program) -> frozenset[int]:
    """The numbers of the C_COUNTs of a program."""
    return frozenset(n for n, each in enumerate(program.instructions) if each.spec.control is ControlKind.COUNT)


@fact_of_program
def reads_of(program: Program, breaks: tuple[int, ...]) -> np.ndarray:
    """The C_COUNTs that a run carries out, by number and in order (int64 [n]), given where its loops are left.

    Raises:
        ProgramError: data decide whether one is carried out, or there are too few `breaks`.
    """
    counts, left = counting(program), iter(breaks)
    nothing = np.zeros(0, np.int64)
    if not counts:
        return nothing

    tree = loop_tree(program)
    matters = tree.holders(counts | tree.early) | tree.early
    varies = tree.holders(
        loop.head for loop in tree.loops if loop.head in matters and (loop.leaves_early or not loop.trips.constant)
    )

    def sequence(nodes: Sequence[int | Loop], index: dict[int, int]) -> np.ndarray:
        found = []
        for node in nodes:
            if isinstance(node, int):
                found += [np.array([node])] if node in counts else []
            elif node.head in matters:
                found.append(around(node, index))
        return np.concatenate(found) if found else nothing

    def around(loop: Loop, index: dict[int, int]) -> np.ndarray:
        if loop.leaves_early:
            last = next(left, None)
            if last is None:
                raise ProgramError("trace: it has too few loop exits for the program")
            whole = [sequence(loop.body, {**index, loop.level: each}) for each in range(last)]
            return np.concatenate([*whole, sequence(loop.body[: (loop.exit or 0) + 1], {**index, loop.level: last})])
        if loop.trips.count >= 0:
            if counts.isdisjoint(loop.numbers):
                return nothing
            raise ProgramError("program: data decide whether a C_COUNT is carried out, not analysed")
        trips = max(0, loop.trips.base + loop.trips.factor * index.get(loop.trips.level, 0))
        if loop.head in varies:
            return np.concatenate(
                [nothing, *(sequence(loop.body, {**index, loop.level: each}) for each in range(trips))]
            )
        return np.tile(sequence(loop.body, index), trips)

    return sequence(loop_tree(program).body, {})
