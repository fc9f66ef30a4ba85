"""What must hold of every sequence of instructions, checked when a program is made or loaded: loops nest, semaphores have
one giver and one taker, and every loop leaves each semaphore as it found it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from npu.errors import ProgramError
from npu.isa.spec import Instruction, Unit

LOOPS = ("C_LOOP", "C_LOOP_R")


WIDTHS = {"M_MM": {"rows": "blen", "cols": "blen", "k": "mlen"}, "M_OUT": {"rows": "blen", "cols": "blen"}}
"""Operands of the matrix unit that a width of the machine limits."""


def check_structure(instructions: Sequence[Instruction], geometry: Mapping[str, int]) -> None:
    """Raise unless the instructions form a program for a machine of these widths.

    Raises:
        ProgramError: naming the rule and the instruction.
    """
    if not instructions or instructions[-1].mnemonic != "C_END":
        raise ProgramError("program: the last instruction must be C_END")
    _check_widths(instructions, geometry)
    _check_nesting(instructions)
    _check_owners(instructions)
    _check_balance(instructions)


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


def _check_nesting(instructions: Sequence[Instruction]) -> None:
    stack: list[tuple[int, int]] = []
    for number, instruction in enumerate(instructions):
        if instruction.mnemonic in LOOPS:
            level, stop = instruction.operands["level"], number + instruction.operands["length"]
            if any(level == outer for outer, _ in stack):
                raise ProgramError(f"program: loop level {level} nests in itself (instruction {number})")
            if stop >= len(instructions) or (stack and stop >= stack[-1][1]):
                raise ProgramError(f"program: a loop ends outside of the enclosing one (instruction {number})")
            stack.append((level, stop))
        elif instruction.mnemonic == "C_NEXT":
            if not stack or stack.pop() != (instruction.operands["level"], number):
                raise ProgramError(f"program: C_NEXT closes no loop (instruction {number})")
        elif instruction.mnemonic == "C_BREAK_IF":
            if not stack or stack[-1][0] != instruction.operands["level"]:
                raise ProgramError(f"program: C_BREAK_IF must stand directly in its loop (instruction {number})")
        elif instruction.mnemonic == "C_END" and number != len(instructions) - 1:
            raise ProgramError(f"program: C_END before the end (instruction {number})")
    if stack:
        raise ProgramError("program: a loop is not closed")


def _check_owners(instructions: Sequence[Instruction]) -> None:
    """Tokens of one giver arrive in order at one taker, so the k-th wait meets the k-th signal."""
    owners: dict[tuple[str, int], Unit] = {}
    for number, instruction in enumerate(instructions):
        unit = Unit.VECTOR if instruction.spec.unit is Unit.SCALAR else instruction.spec.unit
        for role, group in (("waits on", instruction.waits), ("signals", instruction.signals)):
            for semaphore in group:
                if owners.setdefault((role, semaphore), unit) is not unit:
                    raise ProgramError(f"program: a second unit {role} semaphore {semaphore} (instruction {number})")


def _check_balance(instructions: Sequence[Instruction]) -> None:
    """Tokens given and taken by each loop body are equal; where a loop is left by C_BREAK_IF, the way through the break
    counts for what encloses the loop. In program order no wait comes before its signal."""
    tokens: Counter[int] = Counter()
    stack: list[tuple[Counter[int], Counter[int] | None]] = []
    for number, instruction in enumerate(instructions):
        for semaphore in instruction.waits:
            tokens[semaphore] -= 1
            if tokens[semaphore] < 0:
                raise ProgramError(
                    f"program: instruction {number} waits for semaphore {semaphore}, which nothing signals"
                )
        tokens.update(instruction.signals)
        if instruction.mnemonic in LOOPS:
            stack.append((tokens.copy(), None))
        elif instruction.mnemonic == "C_BREAK_IF":
            stack[-1] = (stack[-1][0], tokens.copy())
        elif instruction.mnemonic == "C_NEXT":
            before, at_break = stack.pop()
            changed = [s for s in {*tokens, *before} if tokens[s] != before[s]]
            if changed:
                raise ProgramError(
                    f"program: the loop that ends at instruction {number} changes semaphore {changed[0]}"
                )
            if at_break is not None:
                tokens = at_break
