"""Assembler text: one instruction a line, `MNEMONIC operand=value ... [wait=s1,s2] [signal=s3]`; it reads back."""

from collections.abc import Iterable

from npu.errors import ProgramError
from npu.isa.spec import BY_MNEMONIC, Instruction

_COMMENT = ";"


def disassemble(instructions: Iterable[Instruction], notes: dict[int, str] | None = None) -> str:
    """Text of a sequence of instructions; loop bodies are indented, `notes[i]` stands as a comment before number i."""
    lines, depth = [], 0
    for number, instruction in enumerate(instructions):
        if notes and number in notes:
            lines.append(f"{_COMMENT} {notes[number]}")
        if instruction.mnemonic == "C_NEXT":
            depth -= 1
        fields = [
            f"{name}=a{value}" if instruction.spec.operands[name].address else f"{name}={value}"
            for name, value in instruction.operands.items()
        ]
        for word, group in (("wait", instruction.waits), ("signal", instruction.signals)):
            if group:
                fields.append(f"{word}={','.join(f's{semaphore}' for semaphore in group)}")
        lines.append("  " * max(depth, 0) + " ".join([f"{instruction.mnemonic:<12}", *fields]).rstrip())
        if instruction.mnemonic in ("C_LOOP", "C_LOOP_R"):
            depth += 1
    return "\n".join(lines) + "\n"


def assemble(text: str) -> list[Instruction]:
    """Instructions of assembler text.

    Raises:
        ProgramError: with the line number, on anything that is not an instruction.
    """
    result = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(_COMMENT, 1)[0].split()
        if not words:
            continue
        mnemonic, fields = words[0], words[1:]
        if mnemonic not in BY_MNEMONIC:
            raise ProgramError(f"assembler: unknown mnemonic {mnemonic!r} (line {number})")
        operands: dict[str, int] = {}
        semaphores: dict[str, tuple[int, ...]] = {"wait": (), "signal": ()}
        try:
            for name, value in (field.split("=", 1) for field in fields):
                if name in semaphores:
                    semaphores[name] = tuple(int(part.removeprefix("s")) for part in value.split(","))
                else:
                    operands[name] = int(value.removeprefix("a"))
            instruction = Instruction(
                mnemonic=mnemonic, operands=operands, waits=semaphores["wait"], signals=semaphores["signal"]
            )
            instruction.encode()
        except ProgramError as error:
            raise ProgramError(f"assembler: {error} (line {number})") from None
        except ValueError:
            raise ProgramError(f"assembler: malformed line {line.strip()!r} (line {number})") from None
        result.append(instruction)
    return result
