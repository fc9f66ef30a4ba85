"""The place of each instruction in a generation: its kind of step, group of layers and phase.

Kinds of steps follow from the loop tree: the innermost loop that data may leave early is the loop over denoising steps. In the
loop over blocks, the instructions before it warm the cache; those after it store the finished block or look for its end token.
Groups of layers follow from the phases, as do the set-up and the look for the end token.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from npu.isa import Unit
from npu.program.container import Program, fact_of_program, loop_tree
from npu.program.exits import denoising_loops, loops_of_a_block
from npu.program.tables import tabulate

SETUP, PROMPT, WARM, FIRST, REFINE, STEP, PART, END, CLEAN = (
    "setup", "prompt", "warm", "first token", "refine", "step", "sub-block", "end token", "clean",
)  # fmt: skip
"""Kinds of steps: before all; the prompt's forward; a block's first step, over more than the block; its first token from the row
before it; its other steps; a step where all are of one kind; the look at the masks of a sub-block; that for its end token; the
finished block's forward."""
STEM, FIRST_OF_LAYER, COMMIT = "embed", "qkv", "commit"
"""The phase that begins a forward, the one that begins a layer, and the one that writes tokens."""
OF_LAYER = ("qkv", "smooth", "rotate", "attention", "out", "ffn")


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of step, the number of a group of layers (-1: outside of the layers), and a phase."""

    step: str
    group: int
    phase: str


@fact_of_program
def places_of(program: Program) -> tuple[list[Place], np.ndarray]:
    """The places in program order, and the number of each instruction's place (int64 [n])."""
    every = list(zip(_steps(program), _groups(program), program.phase_of().tolist(), strict=True))
    names, places = program.phase_names, {place: number for number, place in enumerate(dict.fromkeys(every))}
    return [Place(step, group, names[phase]) for step, group, phase in places], np.array(
        [places[each] for each in every]
    )


def passes(program: Program, retired: np.ndarray) -> dict[str, int]:
    """Passes of each kind of step, given the retirements of each instruction.

    Among consecutive instructions of a kind, those in the fewest loops retire once per pass. Where blocks lie in several
    loops, the passes of all these loops are added up.
    """
    steps, around, units = _steps(program), loop_tree(program).around, tabulate(program).unit
    found: dict[str, dict[object, int]] = {step: {} for step in steps}
    for step, run in groupby(range(len(steps)), key=lambda number: steps[number]):
        own = [number for number in run if units[number] != Unit.FRONTEND]
        fewest = min((len(around[number]) for number in own), default=0)
        for number in own:
            if len(around[number]) == fewest:
                inside = around[number][-1:]
                found[step][inside] = max(found[step].get(inside, 0), int(retired[number]))
    return {step: sum(of_loop.values()) for step, of_loop in found.items() if of_loop}


def _steps(program: Program) -> list[str]:
    """The kind of step of each instruction."""
    tree, phases, names = loop_tree(program), program.phase_of(), program.phase_names
    array = tabulate(program).unit == Unit.MATRIX
    denoising = denoising_loops(program)
    kinds = [SETUP if names[phase] == SETUP else PROMPT if denoising else STEP for phase in phases]
    loops = loops_of_a_block(program)
    for step_loop in denoising:
        *parent, loop = (*tree.around[step_loop.head], step_loop)
        if loops > 1:  # the loop over the parts of a block
            *parent, loop = parent
        inside = parent[-1].numbers if parent else range(0)
        before, behind = range(inside.start, loop.head), range(loop.next + 1, inside.stop)
        appends, warms = bool(array[behind.start : behind.stop].any()), bool(array[before.start : before.stop].any())
        begins = FIRST if appends else WARM if loops == 1 else PART
        goes_on = REFINE if warms and not appends else STEP
        for numbers, kind in ((before, begins), (range(loop.head, loop.next + 1), goes_on), (behind, CLEAN)):
            for number in (each for each in numbers if kinds[each] != SETUP):
                kinds[number] = END if kind is CLEAN and names[phases[number]] == COMMIT else kind
    for part in dict.fromkeys(tree.around[loop.head][-1] for loop in denoising) if loops > 1 else ():
        inner = [node for node in part.body if node in denoising]
        kinds[part.head : part.next + 1] = [PART] * (part.next + 1 - part.head)
        for loop, kind in zip(inner, (WARM, REFINE) if len(inner) > 1 else (STEP,), strict=True):
            kinds[loop.head : loop.next + 1] = [kind] * (loop.next + 1 - loop.head)
    return kinds


def _groups(program: Program) -> list[int]:
    """The group of layers of each instruction, in the order of the forward that it is in."""
    names, groups, group, before = program.phase_names, [], -1, ""
    for phase in (names[number] for number in program.phase_of().tolist()):
        if phase == STEM:
            group = -1
        elif phase == FIRST_OF_LAYER != before:
            group += 1
        groups.append(group if phase in OF_LAYER else -1)
        before = phase
    return groups
