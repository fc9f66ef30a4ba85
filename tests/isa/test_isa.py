"""The instruction set: encodings and text read back, illegal ones are refused, generated files are fresh."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy.dispatch_source import source
from npu.errors import ProgramError
from npu.formats import FORMAT_OF_CODE
from npu.isa import BY_MNEMONIC, TABLE, Instruction, assemble, disassemble
from npu.isa.manual import manual
from npu.isa.spec import FP, Unit, instruction, touch, unsigned

ROOT = Path(__file__).parents[2]


@st.composite
def instructions(draw):
    """Any legal instruction."""
    spec = draw(st.sampled_from(list(TABLE.values())))
    operands = {}
    for name, operand in spec.operands.items():
        low, high = (
            (-(1 << (operand.bits - 1)), (1 << (operand.bits - 1)) - 1)
            if operand.signed
            else (0, (1 << operand.bits) - 1)
        )
        if name in ("format", "weight_format", "act_format"):
            high = 4
        operands[name] = draw(st.integers(low, high))
    if "block" in operands:
        stored = operands.get("format", operands.get("weight_format"))
        if FORMAT_OF_CODE[stored].bits % 8:  # a block takes whole bytes
            operands["block"] = max(2, operands["block"])
        for name in ("k", "cols"):
            if name in operands:
                operands[name] = max(1, operands[name] >> 7) << operands["block"]
    if "head_dim" in operands:
        operands["head_dim"] = max(1, operands["head_dim"])
        operands["n"] = operands["head_dim"] * (operands["n"] % 4)
    for name in ("rows", "cols", "row_bytes", "k", "size", "sent", "taken", "bound"):
        if name in operands:
            operands[name] = max(1, min(operands[name], (1 << spec.operands[name].bits) - 1))
    if "block" in operands and "k" in operands:
        operands["k"] = max(1, min(operands["k"], (1 << 14) - 1) >> operands["block"]) << operands["block"]
    if "block" in operands and "cols" in operands and spec.mnemonic != "M_MM":
        operands["cols"] = max(1, min(operands["cols"], (1 << 20) - 1) >> operands["block"]) << operands["block"]
    semaphores = st.lists(st.integers(1, 63), max_size=2).map(tuple)
    return Instruction(mnemonic=spec.mnemonic, operands=operands, waits=draw(semaphores), signals=draw(semaphores))


@settings(max_examples=400, deadline=None)
@given(instructions())
def test_encoding_and_text_read_back(made):
    assert Instruction.decode(made.encode()) == made
    assert assemble(disassemble([made])) == [made]


def test_every_instruction_has_a_manual_entry_and_fits_the_word():
    for spec in TABLE.values():
        assert spec.manual.endswith(".")
        assert sum(operand.bits for operand in spec.operands.values()) <= 96


def test_generated_files_are_fresh():
    assert (ROOT / "docs" / "isa.md").read_text() == manual()
    assert (ROOT / "accuracy" / "dispatch.py").read_text() == source()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NO_SUCH a=1", "unknown mnemonic 'NO_SUCH' \\(line 1\\)"),
        ("\nC_NEXT level=99", "level = 99 does not fit 4 bits \\(line 2\\)"),
        ("C_NEXT", "operands are \\[\\], not \\['level'\\]"),
        ("C_NEXT level=x", "malformed line"),
        (
            "M_MM weights=a0 acts=a0 rows=8 cols=8 k=33 block=5 weight_format=2 act_format=2 block_stride=33",
            "illegal operands",
        ),
        ("V_SYNC wait=s64", "semaphore 64 is not within"),
        ("V_SYNC wait=s1,s2,s3", "at most two waits"),
    ],
)
def test_illegal_text_is_refused(text, message):
    with pytest.raises(ProgramError, match=message):
        assemble(text)


def test_illegal_words_are_refused():
    with pytest.raises(ProgramError, match="unknown opcode"):
        Instruction.decode(0xFF)
    with pytest.raises(ProgramError, match="outside its fields"):
        Instruction.decode(BY_MNEMONIC["C_END"].opcode | (1 << 100))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"opcode": 0x10}, "is taken"),
        ({"opcode": 0xF0, "operands": {"other": FP}}, "parameters of"),
        ({"opcode": 0xF0, "operands": {"dst": unsigned(97)}}, "need 97 bits"),
        ({"opcode": 0xF0, "operands": {"dst": FP}, "reads": (touch("src", 1),)}, "which is no address"),
    ],
)
def test_contradicting_rows_of_the_table_are_refused(facts, message):
    def s_new(fp, dst):
        """A new instruction."""

    with pytest.raises(ProgramError, match=message):
        instruction(unit=Unit.SCALAR, **{"operands": {"dst": FP}, **facts})(s_new)
