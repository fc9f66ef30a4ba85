"""The program container: it reads back, and anything damaged is refused in one line."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npu.errors import ProgramError
from npu.isa import Instruction, assemble
from npu.program import Program, words_of
from tests.conftest import compiled


@pytest.fixture(scope="module")
def program(default_experiment):
    return compiled(default_experiment)[0]


def small(text):
    """A program of assembler text."""
    return Program(words=words_of(assemble(text)), hbm=(), geometry={}, layout={}, phases=())


def test_bytes_and_text_read_back(program):
    for copy in (Program.from_bytes(program.to_bytes()), Program.from_text(program.to_text())):
        assert copy.digest == program.digest
        assert copy.phases == program.phases
        np.testing.assert_array_equal(copy.words, program.words)


def test_phases_are_outside_of_the_digest(program):
    assert dataclasses.replace(program, phases=()).digest == program.digest
    assert dataclasses.replace(program, geometry={**program.geometry, "vector_bytes": 4}).digest != program.digest


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_refused_in_one_line(program, data):
    whole = program.to_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    for broken in (bytes(damaged), whole[:position], whole + b"x"):
        with pytest.raises(ProgramError) as caught:
            Program.from_bytes(broken)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("M_SYNC", "last instruction must be C_END"),
        ("C_END\nC_END", "C_END before the end"),
        ("C_LOOP level=0 trips=2 length=9\nC_NEXT level=0\nC_END", "ends outside"),
        ("C_LOOP level=0 trips=2 length=1\nM_SYNC\nC_END", "not closed"),
        ("C_NEXT level=0\nC_END", "closes no loop"),
        (
            "C_LOOP level=0 trips=2 length=3\nC_LOOP level=0 trips=2 length=1\nC_NEXT level=0\nC_NEXT level=0\nC_END",
            "nests in itself",
        ),
        ("C_BREAK_IF level=0 flag=a0\nC_END", "directly in its loop"),
        ("M_SYNC signal=s1\nV_SYNC signal=s1\nC_END", "a second unit signals semaphore 1"),
        ("V_SYNC wait=s1\nC_END", "which nothing signals"),
        (
            "C_LOOP level=0 trips=2 length=2\nM_SYNC signal=s1\nC_NEXT level=0\nV_SYNC wait=s1\nC_END",
            "changes semaphore 1",
        ),
    ],
)
def test_malformed_programs_are_refused_when_made(text, message):
    with pytest.raises(ProgramError, match=message):
        small(text)


def test_malformed_text_is_refused():
    with pytest.raises(ProgramError, match="malformed header"):
        Program.from_text("C_END")
    with pytest.raises(ProgramError, match="malformed header"):
        Program.from_text(".header {}\nC_END")


def test_instructions_are_those_of_the_words(program):
    low, high = (int(half) for half in program.words[5])
    assert Instruction.decode(low | high << 64) == program.instructions[5]
