"""An instruction of the table that the core does not implement is refused by name, and in the core ends in a fault."""

import dataclasses
import shutil

import numpy as np
import pytest

from npu.errors import ProgramError, TripathError
from npu.isa.spec import BY_MNEMONIC, TABLE, Unit
from rtl import limits
from rtl.hardware import small_core
from rtl.limits import check_program
from rtl.simulator import Job, build, run
from tests.rtl.test_units import program_of

NEW = {
    Unit.FRONTEND: 0x0F,
    Unit.MATRIX: 0x1F,
    Unit.VECTOR: 0x70,
    Unit.SCALAR: 0x4F,
    Unit.DMA_IN: 0x5E,
    Unit.DMA_OUT: 0x6E,
}
"""Opcodes that nobody has, one for each unit; their words are those of an instruction of the unit with operands."""
LIKE = {"A_NEXT ring=0": Unit.FRONTEND, "M_OUT dst=0 rows=1 cols=1": Unit.MATRIX, "V_EXP_V dst=0 a=0 n=1": Unit.VECTOR,
        "S_ADD_FP dst=0 a=0 b=0": Unit.SCALAR, "H_LOAD_F dst=0 src=0 n=1": Unit.DMA_IN, "H_STORE_I dst=0 src=0 n=1": Unit.DMA_OUT}  # fmt: skip


@pytest.fixture
def table():
    """The instruction table with a new instruction for each unit, of the form of one that is there."""
    for text, unit in LIKE.items():
        spec = BY_MNEMONIC[text.split()[0]]
        new = dataclasses.replace(spec, mnemonic=f"NEW_{unit.name}", opcode=NEW[unit])
        TABLE[new.opcode] = BY_MNEMONIC[new.mnemonic] = new
    yield
    for unit, opcode in NEW.items():
        del TABLE[opcode], BY_MNEMONIC[f"NEW_{unit.name}"]


@pytest.fixture(scope="module")
def hardware():
    small = small_core()
    like = {f"NEW_{unit.name}": small.timing.get(text.split()[0]) for text, unit in LIKE.items()}
    timing = {name: row for name, row in like.items() if row is not None}
    return dataclasses.replace(small, timing={**small.timing, **timing})


@pytest.fixture
def let_through(monkeypatch):
    """The new instructions reach the core, though no source of it names them."""
    built = limits.built() | {f"NEW_{unit.name}" for unit in NEW}
    monkeypatch.setattr(limits, "built", lambda: built)


def test_an_instruction_that_no_source_of_the_core_names_is_refused(table, hardware):
    with pytest.raises(TripathError, match=r"rtl: NEW_VECTOR is not built: .* \(instruction 0\)"):
        check_program(program_of("NEW_VECTOR dst=0 a=0 n=1"), hardware)


@pytest.mark.slow  # a build of its own, of which the package is generated from the longer table
@pytest.mark.parametrize("text", LIKE)
def test_an_instruction_that_the_core_lacks_is_a_fault(table, let_through, hardware, text):
    if shutil.which("verilator") is None:
        pytest.skip("needs verilator (Debian: apt install verilator)")
    _, _, operands = text.partition(" ")
    jobs = [
        Job(program=program_of(f"A_BASE register=0 base=0\n{line}"), hardware=hardware, hbm=np.zeros(1 << 15, np.uint8))
        for line in (f"NEW_{LIKE[text].name} {operands}", "M_OUT dst=0 rows=1 cols=1")
    ]
    with pytest.raises(ProgramError, match="rtl: the core reports a fault"):
        run(build(hardware), jobs[:1], most_cycles=1000)
    run(build(hardware), jobs[1:], most_cycles=1000)


def test_a_core_that_does_not_even_know_its_queue_reports_a_fault(core, table, let_through, hardware):
    program = program_of("NEW_VECTOR dst=0 a=0 n=1")
    with pytest.raises(ProgramError, match="rtl: the core reports a fault"):
        run(core, [Job(program=program, hardware=hardware, hbm=np.zeros(1 << 15, np.uint8))], most_cycles=1000)


def test_a_program_longer_than_the_core_s_memory_is_refused_in_one_line(hardware, monkeypatch):
    program = program_of("V_SYNC\n" * 3)
    monkeypatch.setattr(limits, "PROGRAM_WORDS", len(program.words))
    check_program(program, hardware)
    monkeypatch.setattr(limits, "PROGRAM_WORDS", len(program.words) - 1)
    with pytest.raises(TripathError, match="rtl: the program has 4 words, the core holds 3"):
        check_program(program, hardware)
