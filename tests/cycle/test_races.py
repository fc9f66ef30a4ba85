"""The race check: shipped programs pass, and the removal of a semaphore is caught unless what remains still orders all."""

import dataclasses
from collections import defaultdict, deque

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from accuracy.image import read_tokens
from accuracy.simulator import execute
from cycle import verdicts
from cycle.races import CHUNK, GRANULE, check_races, find_race
from npu.errors import ProgramError
from npu.hardware import QUEUED_UNITS
from npu.isa import Instruction, Memory, assemble
from npu.isa.control import address_of, control_step, new_control
from npu.program import Program, Tensor, words_of
from npu.program.tables import QUEUE_OF_UNIT
from npu_compiler.generation import compile_passes
from tests.conftest import LLADA, compiled, compose_experiment
from tests.cycle.test_cycle import SMALL, SYNC, instruction
from tripath.api import prepare

PLAIN = ("compiler=plain",)
HOST_SAMPLES = (
    "compiler=host_sampling", "paths=[analytical,cycle]",
    "hardware.host={link_bytes_per_s: 25e9, link_latency_s: 1e-6, sampling_bytes_per_s: 1e11}",
)  # fmt: skip
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
    LLADA,
    PLAIN, (*PLAIN, "workload.cache=prefix", "workload.batch=3"), ("compiler.sampling=stored", "workload.batch=3"),
    ("compiler.schedule=plain", "workload.cache=none"),
    *[(*HOST_SAMPLES, *more) for more in (
        (), ("workload.batch=3",), ("workload.cache=none", "hardware.append_only_cache=true"), ("workload.cache=prefix", "compiler.schedule=plain"),
        ("model=wordmath_block", "workload.prompt_length=16"),
    )],
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
IN_FLIGHT = {"keys_values.free", "qkv: dma_out to vector", "norm_weight: vector to dma_in"}
"""Where all KV heads are in flight together, a layer loads its keys once: what it hands back is taken layers later, which other
orders imply. The compiler does not look so far."""
HANDED_BACK = {"q: matrix to dma_in", "x: vector to dma_in", "qkv: dma_out to matrix"}
"""Where a pass has several chunks, what one hands back to the next is free when the third panel of the next projection is loaded;
the compiler does not count on there being three."""
CUT = {"passing_inner: dma_out to dma_out", "h: dma_out to vector"}
"""Where weights stay, blocks of two widths store columns of their own into one tensor, which the compiler takes as a whole. Two
loops over chunks carry a token that the second takes over from the first; the compiler merges them only later."""


@pytest.mark.parametrize(
    ("machine", "implied"),
    [
        (PLAIN, HANDED_BACK),
        ((*PLAIN, *CHUNKED), HANDED_BACK),
        (ROOMY, IN_FLIGHT),
        (CHUNKED, HANDED_BACK | IN_FLIGHT | CUT),
    ],
    ids=["plain, one chunk", "plain, chunks", "one chunk", "chunks"],
)
@pytest.mark.parametrize(
    "overrides",
    [("workload.cache=none",), ("workload.cache=prefix",), ("numerics=mxint4_baos",), ("scheme=prerope",), ("scheme=hadamard",),
     ("numerics=mxint4_baos", "numerics.smoothing.centre=true")],
    ids=" ".join,
)  # fmt: skip
def test_no_semaphore_is_more_than_is_needed(overrides, machine, implied):
    experiment = compose_experiment(*overrides, *machine)
    lengths = [19] * experiment.workload.batch
    made = compile_passes(
        experiment.model, experiment.workload, experiment.hardware, experiment.numerics, lengths, experiment.compiler
    )
    used, redundant = semaphores(made.program)
    names = {each.number: each.name for each in made.tokens.semaphores}
    assert used == set(names)
    assert {names[number] for number in redundant} <= implied


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


def test_a_product_must_know_the_output_that_it_reads_to_be_over():
    """An output ends later than what starts behind it, and the matrix unit has no interlock; other accesses are in its order."""
    text = """A_BASE register=0 base=0
    A_BASE register=1 base=0
    A_BASE register=2 base=256
    {}
    M_OUT dst=a1 rows=1 cols=8{}
    V_SYNC{}
    M_MM weights=a0 acts={} rows=1 cols=8 k=32 block=5 weight_format=2 act_format=2 block_stride=33{}
    C_END"""
    output = "M_OUT dst=a1 rows=1 cols=8"
    sizes = {"blen": 8, "mlen": 32, "matrix_bytes": 64, "vector_bytes": 1024, "fp_bytes": 4, "int_bytes": 4}

    def race(*parts):
        return find_race(
            Program(words=words_of(assemble(text.format(*parts))), hbm=(), geometry=sizes, layout={}, phases=())
        )

    found = race(output, "", "", "a1", "")
    assert found is not None
    assert (found.first, found.second, found.memory) == (4, 6, "VECTOR")
    assert race(output, " signal=s1", " wait=s1 signal=s2", "a1", " wait=s2") is None
    assert race(output, "", "", "a2", "") is None, "outputs write one after the other"


def touched(i, control):
    """Memory, cell, and true for a write, of all that an instruction touches."""
    for footprints, write in ((i.spec.reads, False), (i.spec.writes, True)):
        for footprint in footprints:
            register, memory = i.operands[footprint.operand], i.spec.operands[footprint.operand].memory
            base, pitch = address_of(control, register), control.row_stride[register]
            for row in range(footprint.rows(i.operands)):
                first = base + row * pitch
                last = first + footprint.size(i.operands) - 1
                for cell in range(first // GRANULE[memory], last // GRANULE[memory] + 1):
                    yield memory, cell, write


def plain_race(program):
    """The first race of a program whose control instructions touch no semaphore, with a history of every single cell."""
    control, tokens = new_control(), defaultdict(deque)
    knows, count = np.zeros((len(QUEUED_UNITS), len(QUEUED_UNITS)), int), np.zeros(len(QUEUED_UNITS), int)
    written, read = {}, defaultdict(dict)
    while (pc := control.pc[0]) >= 0:
        i = program.instructions[pc]
        if i.spec.control is not None:
            assert control_step(control, i.spec.opcode, np.array([*i.operands.values(), *[0] * 4]))
            continue
        q = QUEUE_OF_UNIT[i.spec.unit]
        vector, computes = QUEUED_UNITS[q] == "vector", QUEUED_UNITS[q] in {"matrix", "vector"}
        knows[q] = np.maximum.reduce([knows[q], *(tokens[s].popleft() for s in i.waits)])
        count[q] += 1
        cells = list(touched(i, control))
        for *cell, write in cells:
            earlier = [(*written[tuple(cell)], computes if write else vector)] if tuple(cell) in written else []
            if write:
                earlier += [(*access, computes) for _, access in sorted(read[tuple(cell)].items())]
            for queue, number, other, ordered in earlier:
                if number > knows[q, queue] and not (queue == q and ordered):
                    return other, pc, Memory(cell[0]).name, cell[1] * GRANULE[cell[0]]
        for *cell, write in cells:
            if write:
                written[tuple(cell)] = q, count[q], pc
            else:
                read[tuple(cell)][q] = q, count[q], pc
        for s in i.signals:
            tokens[s].append(np.where(np.arange(len(QUEUED_UNITS)) == q, count, knows[q]))
        control.pc[0] += 1
    return None


BASES = {0: CHUNK - 300, 1: CHUNK - 90, 2: 16 * CHUNK - 260, 3: 16 * CHUNK - 200, 4: 4 * CHUNK - 116, 5: 4 * CHUNK - 96,
         6: 4 * CHUNK - 40, 7: 0, 8: 8}  # fmt: skip
"""Of registers as `tests.cycle.test_cycle` takes them: areas that overlap in part, and lie across chunks of the shadow."""


@st.composite
def ordered_programs(draw):
    """A loop in which each instruction waits for the one before, but for a few whose token is lost."""
    setup = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in BASES.items()]
    for register, strides in ((1, [-48, 64]), (3, [33, 400]), (5, [8, 64, -20]), (6, [-64])):
        operands = {"register": register, "level": 0, "stride": draw(st.sampled_from(strides))}
        setup.append(Instruction(mnemonic="A_STEP", operands=operands))
    for register, pitches in ((0, [33, 400]), (1, [264, 500])):
        operands = {"register": register, "stride": draw(st.sampled_from(pitches))}
        setup.append(Instruction(mnemonic="A_ROWS", operands=operands))
    body = [instruction(draw) for _ in range(draw(st.integers(6, 16)))]
    lost = draw(st.sets(st.integers(1, len(body)), max_size=5))

    def kept(semaphore):
        return () if semaphore in lost else (semaphore,)

    body = [
        Instruction(mnemonic=name, operands=operands, waits=kept(n), signals=kept(n % len(body) + 1))
        for n, (name, operands) in enumerate(body, 1)
    ]
    before, after = (SYNC[QUEUE_OF_UNIT[body[place].spec.unit]] for place in (-1, 0))
    head = Instruction(
        mnemonic="C_LOOP", operands={"level": 0, "trips": draw(st.integers(1, 2)), "length": len(body) + 1}
    )
    code = [*setup, Instruction(mnemonic=before, signals=kept(1)), head, *body,
            Instruction(mnemonic="C_NEXT", operands={"level": 0}), Instruction(mnemonic=after, waits=kept(1)),
            Instruction(mnemonic="C_END")]  # fmt: skip
    geometry = {"blen": SMALL.blen, "mlen": SMALL.mlen, "vlen": SMALL.vlen}
    geometry |= {"matrix_bytes": 1 << 16, "vector_bytes": 1 << 16, "fp_bytes": 256, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(1 << 13,), format="bf16", block=32, writable=True)
    return Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout={}, phases=())


FOUND = []


@settings(max_examples=300, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(program=ordered_programs())
def test_runs_of_cells_show_the_race_that_single_cells_show(program):
    found = find_race(program)
    race = None if found is None else (found.first, found.second, found.memory, found.address)
    assert race == plain_race(program)
    FOUND.append(race is not None)


def test_random_programs_had_races_and_had_none():
    assert 0.2 < np.mean(FOUND) < 0.8


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
