"""The loop exits of a run: to which loop each entry of a trace belongs, and at which indices of the loops around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npu.errors import ProgramError
from npu.program.container import Program, fact_of_program, loop_tree
from npu.program.looptree import Loop, loops_of


@dataclass(frozen=True, slots=True)
class Exit:
    """An entry of `Trace.breaks`: the loop, the indices of the loops around it from the outside in, and where it was left."""

    loop: Loop
    around: tuple[int, ...]
    index: int


@fact_of_program
def denoising_loops(program: Program) -> tuple[Loop, ...]:
    """The loops over denoising steps: those that data may leave early, and that hold no other such loop."""
    return tuple(
        loop for loop in loop_tree(program).loops
        if loop.leaves_early and not any(inner.leaves_early for inner in loops_of(loop.body))
    )  # fmt: skip


@fact_of_program
def exits_of(program: Program, breaks: tuple[int, ...]) -> tuple[Exit, ...]:
    """The entries of a trace, in its order; none where nothing of the program is left early.

    Raises:
        ProgramError: there are too few or too many, or data decide whether a loop is entered.
    """
    left = iter(breaks)
    found = _walk(program, lambda _, last: next(left, last))
    if found and len(found) != len(breaks):
        raise ProgramError(f"trace: {len(breaks)} loop exits, the program has {len(found)}")
    for each in found:
        if each.index >= each.loop.most_trips:
            raise ProgramError(
                f"trace: the loop at instruction {each.loop.head} has {each.loop.most_trips} trips, left at index {each.index}"
            )
    return found


def all_exits(program: Program, steps: Sequence[int]) -> tuple[int, ...]:
    """The exits of a run that leaves no loop early but those over denoising steps, which are left at `steps`.

    Raises:
        ProgramError: see `exits_of`.
    """
    inner, left = {loop.head for loop in denoising_loops(program)}, iter(steps)
    found = _walk(program, lambda loop, last: next(left, last) if loop.head in inner else last)
    return tuple(each.index for each in found)


def loops_of_a_block(program: Program) -> int:
    """Loops over denoising steps that a block goes through: one, or some for each of its parts."""
    return program.layout.get("step_loops", 1)


def steps_of_blocks(program: Program, breaks: tuple[int, ...]) -> list[int]:
    """Denoising steps of each block that was decoded. A loop of a whole block takes one before it is left for the first time."""
    inner, loops = {loop.head for loop in denoising_loops(program)}, loops_of_a_block(program)
    steps = [each.index + (loops == 1) for each in exits_of(program, breaks) if each.loop.head in inner]
    return [sum(steps[first : first + loops]) for first in range(0, len(steps), loops)]


def generated_tokens(program: Program, breaks: tuple[int, ...]) -> int:
    """Tokens that a run generates over the batch: all, or where its blocks may end early those of the blocks that it decoded."""
    layout = program.layout
    whole = layout["batch"] * layout["generation_length"]
    if "prompt_tails" not in layout:
        return whole
    blocks = len(steps_of_blocks(program, breaks))
    if blocks == layout["blocks"]:
        return whole
    if blocks == layout["blocks"] - 1:
        return layout["tokens_before_last_block"]
    return layout["batch"] * blocks * layout["block_length"] - layout["prompt_tails"]


def _walk(program: Program, left_at: Callable[[Loop, int], int]) -> tuple[Exit, ...]:
    """Every entry into a loop that may be left early, in order; `left_at` says where, given the last index."""
    found: list[Exit] = []
    tree = loop_tree(program)
    matters = tree.holders(tree.early) | tree.early

    def go(nodes: Sequence[int | Loop], around: dict[int, int]) -> None:
        for loop in nodes:
            if isinstance(loop, int) or loop.head not in matters:
                continue
            if loop.trips.count >= 0:
                raise ProgramError(
                    f"program: data decide whether a loop that is left early is entered, not analysed (instruction {loop.head})"
                )
            trips = loop.trips.base + loop.trips.factor * around.get(loop.trips.level, 0)
            if loop.exit is None:
                for index in range(trips):
                    go(loop.body, {**around, loop.level: index})
                continue
            last = left_at(loop, trips - 1)
            found.append(Exit(loop, tuple(around.values()), last))
            for index in range(last):
                go(loop.body, {**around, loop.level: index})
            go(loop.body[: loop.exit + 1], {**around, loop.level: last})

    go(loop_tree(program).body, {})
    return tuple(found)
