"""Rules for every program, checked when it is made or loaded: widths fit, each semaphore has one giver and one taker, and every
loop leaves each semaphore as it found it. The nesting of loops is checked while their tree is built (`looptree`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npu.errors import ProgramError
from npu.isa.spec import ControlKind, Instruction, Unit
from npu.program.looptree import Loop, LoopTree

MOST = 1 << 50
SHAPES = {"tokens": ("batch", "canvas"), "mask": ("batch", "cache_tokens")}
"""Tensors whose shape the layout states too."""
WIDTHS = {"M_MM": {"rows": "blen", "cols": "blen", "k": "mlen"}, "M_OUT": {"rows": "blen", "cols": "blen"}}
"""Operands of the matrix unit that a width of the machine limits."""


def check_header(header: Mapping[str, Any]) -> None:
    """Raise unless the numbers of a header are such that a host can allocate by them, and say the same.

    Raises:
        ProgramError: naming the number.
    """
    for table in ("geometry", "layout"):
        for name, value in header[table].items():
            _check_number(f"{table}.{name}", value)
    for tensor in header["hbm"]:
        for value in (tensor["address"], tensor["block"], *tensor["shape"]):
            _check_number(f"tensor {tensor['name']}", value)
        told = [header["layout"].get(name) for name in SHAPES.get(tensor["name"], ())]
        if None not in told and told and told != list(tensor["shape"]):
            raise ProgramError(f"program: tensor {tensor['name']} has shape {tensor['shape']}, the layout says {told}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST:
        raise ProgramError(f"program: {name} must be an integer from 0 to {MOST - 1}, got {str(value)[:40]}")


def check_structure(instructions: Sequence[Instruction], tree: LoopTree, geometry: Mapping[str, int]) -> None:
    """Raise unless the instructions, whose loops are `tree`, form a program for a machine of these widths.

    Raises:
        ProgramError: naming the rule and the instruction.
    """
    if not instructions or instructions[-1].spec.control is not ControlKind.END:
        raise ProgramError("program: the last instruction must be C_END")
    _check_widths(instructions, geometry)
    _check_owners(instructions)
    _Tokens(instructions=instructions).follow(tree.body)


def _check_widths(instructions: Sequence[Instruction], geometry: Mapping[str, int]) -> None:
    for number, instruction in enumerate(instructions):
        limits = WIDTHS.get(instruction.mnemonic, {})
        if instruction.spec.unit in (Unit.VECTOR, Unit.SCALAR):
            limits = {"n": "vlen"}
        for operand, width in limits.items():
            value = instruction.operands.get(operand, 0)
            if value > geometry.get(width, value):
                raise ProgramError(
                    f"program: {instruction.mnemonic} has {operand} {value}, {width} is {geometry[width]} "
                    f"(instruction {number})"
                )


def _check_owners(instructions: Sequence[Instruction]) -> None:
    """Tokens of one giver arrive in order at one taker, so the k-th wait meets the k-th signal."""
    owners: dict[tuple[str, int], Unit] = {}
    for number, instruction in enumerate(instructions):
        unit = Unit.VECTOR if instruction.spec.unit is Unit.SCALAR else instruction.spec.unit
        for role, group in (("waits on", instruction.waits), ("signals", instruction.signals)):
            for semaphore in group:
                if owners.setdefault((role, semaphore), unit) is not unit:
                    raise ProgramError(f"program: a second unit {role} semaphore {semaphore} (instruction {number})")


@dataclass(kw_only=True)
class _Tokens:
    """Tokens of each semaphore at a point of the program.

    Those given and taken by each loop body are equal; where a loop is left early, the way through the exit counts for what
    encloses the loop. In program order no wait comes before its signal.
    """

    instructions: Sequence[Instruction]
    held: Counter[int] = field(default_factory=Counter)

    def follow(self, nodes: Sequence[int | Loop]) -> None:
        """Go through nodes in program order."""
        for node in nodes:
            if isinstance(node, Loop):
                self._go_round(node)
            else:
                self._pass(node)

    def _go_round(self, loop: Loop) -> None:
        self._pass(loop.head)
        before = self.held.copy()
        through = 0 if loop.exit is None else loop.exit + 1
        self.follow(loop.body[:through])
        at_exit = self.held.copy()
        self.follow(loop.body[through:])
        self._pass(loop.next)
        changed = [s for s in {*self.held, *before} if self.held[s] != before[s]]
        if changed:
            raise ProgramError(f"program: the loop that ends at instruction {loop.next} changes semaphore {changed[0]}")
        self.held = at_exit if loop.leaves_early else self.held

    def _pass(self, number: int) -> None:
        instruction = self.instructions[number]
        for semaphore in instruction.waits:
            self.held[semaphore] -= 1
            if self.held[semaphore] < 0:
                raise ProgramError(
                    f"program: instruction {number} waits for semaphore {semaphore}, which nothing signals"
                )
        self.held.update(instruction.signals)
