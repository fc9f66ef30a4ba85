"""The race check: shipped programs pass, and the removal of a semaphore is caught unless what remains still orders all."""

import dataclasses

import numpy as np
import pytest

from accuracy.image import read_tokens
from accuracy.simulator import execute
from cycle import verdicts
from cycle.races import check_races, find_race
from npu.errors import ProgramError
from npu.isa import assemble
from npu.program import Program, Tensor, words_of
from npu_compiler.generation import compile_passes
from tests.conftest import compiled, compose_experiment
from tripath.api import prepare

CONFIGURATIONS = [
    *[(f"workload.cache={cache}", f"workload.commit={commit}") for cache in ("none", "prefix", "dual") for commit in ("quota", "threshold")],
    ("workload.batch=3",), ("hardware.sram.vector_bytes=60000", "workload.batch=2"),
    ("hardware.sram.vector_bytes=60000", "workload.cache=none", "workload.batch=2"), ("hardware.blen=4",),
    ("hardware.mlen=64", "hardware.vlen=128", "workload.block_length=16"), ("numerics=bf16",), ("numerics=mxint4",),
    ("numerics=mxint4_baos",), ("numerics=mxint4_baos", "workload.cache=prefix"), ("numerics=mxint4_baos", "workload.cache=none"),
    ("numerics=mxint4_baos", "hardware.sram.vector_bytes=80000", "workload.batch=2"),
    *[("numerics=mxint4_baos", "numerics.smoothing.centre=true", *more) for more in (
        (), ("workload.cache=none", "workload.batch=2"), ("hardware.sram.vector_bytes=80000", "workload.batch=2"),
    )],
    ("numerics.k_axis=tokens", "numerics.v_axis=channels"),
    *[(f"scheme={scheme}", "hardware.sram.vector_bytes=80000", "workload.batch=2", f"workload.cache={cache}") for scheme, cache in (
        ("frozen", "dual"), ("frozen", "prefix"), ("static", "dual"), ("prerope", "none"), ("prerope_baos", "dual"),
        ("hadamard", "dual"), ("hadamard", "prefix"),
    )],
    ("scheme=prerope_baos", "workload.cache=prefix"),
    ("model=llada_8b", "hardware=npu_datacenter", "workload=llada_gsm8k", "numerics=mxint4", "paths=[analytical,cycle]"),
]  # fmt: skip


@pytest.mark.parametrize("overrides", CONFIGURATIONS, ids=" ".join)
def test_shipped_programs_have_no_race(overrides):
    experiment = compose_experiment(*overrides)
    program, _ = compiled(experiment, experiment.workload.prompt_length or 19)
    assert find_race(program) is None


def without(program, semaphore):
    """The program with one semaphore removed."""
    code = [
        dataclasses.replace(
            i, waits=tuple(s for s in i.waits if s != semaphore), signals=tuple(s for s in i.signals if s != semaphore)
        )
        for i in program.instructions
    ]
    return dataclasses.replace(program, words=words_of(code))


def semaphores(program):
    """Those that the program waits for, and those of them whose removal leaves it without a race."""
    used = {s for i in program.instructions for s in i.waits}
    return used, {s for s in used if find_race(without(program, s)) is None}


ROOMY, CHUNKED = (), ("hardware.sram.vector_bytes=80000", "workload.batch=2")
HANDED_BACK = {"q: matrix to dma_in", "x: vector to dma_in", "qkv: dma_out to matrix"}
"""Where a pass has several chunks, what one hands back to the next is free when the third panel of the next projection is loaded;
the compiler does not count on there being three."""


@pytest.mark.parametrize("machine", [ROOMY, CHUNKED], ids=["one chunk", "chunks"])
@pytest.mark.parametrize(
    "overrides",
    [("workload.cache=none",), ("workload.cache=prefix",), ("numerics=mxint4_baos",), ("scheme=prerope",), ("scheme=hadamard",),
     ("numerics=mxint4_baos", "numerics.smoothing.centre=true")],
    ids=" ".join,
)  # fmt: skip
def test_no_semaphore_is_more_than_is_needed(overrides, machine):
    experiment = compose_experiment(*overrides, *machine)
    lengths = [19] * experiment.workload.batch
    made = compile_passes(experiment.model, experiment.workload, experiment.hardware, experiment.numerics, lengths)
    used, redundant = semaphores(made.program)
    names = {each.number: each.name for each in made.tokens.semaphores}
    assert used == set(names)
    assert {names[number] for number in redundant} <= HANDED_BACK


def test_a_race_is_named():
    code = assemble(
        "A_BASE register=0 base=0\nA_BASE register=1 base=0\nA_ROWS register=1 stride=64\n"
        "H_LOAD_V dst=a1 src=a0 rows=1 cols=64 format=1 block=5\nV_ADD_VV dst=a1 a=a1 b=a1 n=64\nC_END"
    )
    tensor = Tensor(name="x", address=0, shape=(64,), format="bf16", block=32, writable=True)
    sizes = {"matrix_bytes": 0, "vector_bytes": 256, "fp_bytes": 4, "int_bytes": 4}
    program = Program(words=words_of(code), hbm=(tensor,), geometry=sizes, layout={}, phases=())
    with pytest.raises(
        ProgramError,
        match=r"race on VECTOR at 0: V_ADD_VV \(instruction 4\) does not wait for H_LOAD_V \(instruction 3\)",
    ):
        check_races(program)
    ordered = [
        dataclasses.replace(i, signals=(1,))
        if i.mnemonic == "H_LOAD_V"
        else dataclasses.replace(i, waits=(1,))
        if i.mnemonic == "V_ADD_VV"
        else i
        for i in code
    ]
    check_races(dataclasses.replace(program, words=words_of(ordered)))


def test_words_are_what_the_check_reads(tensors):
    """A program that lost a redundant semaphore still computes the same tokens (program order is what it means)."""
    experiment = compose_experiment("workload.generation_length=8", "workload.steps=2")
    program, _ = compiled(experiment)
    prompts = [list(range(3, 22))]
    runs = []
    for candidate in (program, without(program, max(s for i in program.instructions for s in i.waits))):
        machine, _ = execute(
            candidate, model=experiment.model, workload=experiment.workload, tensors=tensors, prompts=prompts
        )
        runs.append(read_tokens(machine.hbm, candidate))
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("ffn", [224, 288, 320])
@pytest.mark.parametrize("blen", [4, 8])
def test_panels_that_fill_no_word_of_matrix_sram_do_not_race(ffn, blen):
    """Panels of such widths are no multiple of the check's granule; the slots of a stream still share none."""
    program = prepare(compose_experiment("paths=[cycle]", f"model.ffn={ffn}", f"hardware.blen={blen}", "model.checkpoint=null",
                                         "workload.prompt_length=20", "workload.generation_length=16"), "").program  # fmt: skip
    assert find_race(program) is None


def test_a_proof_is_kept_for_the_same_program_and_rules(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checked = []
    monkeypatch.setattr(verdicts, "check_races", checked.append)
    program = prepare(compose_experiment("paths=[cycle]", "workload.prompt_length=20"), "").program
    verdicts.prove(program)
    verdicts.prove(program)
    assert checked == [program]
    monkeypatch.setattr(verdicts, "digest_of_sources", lambda _: "other rules")
    verdicts.prove(program)
    assert checked == [program, program]


def test_a_race_is_never_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(_):
        raise ProgramError("program: race")

    monkeypatch.setattr(verdicts, "check_races", refuse)
    program = prepare(compose_experiment("paths=[cycle]", "workload.prompt_length=20"), "").program
    for _ in range(2):
        with pytest.raises(ProgramError, match="race"):
            verdicts.prove(program)
    assert not verdicts.verdict_file(program).exists()
