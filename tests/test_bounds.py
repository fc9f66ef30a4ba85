"""Where programs may reach: shipped programs pass, random ones as a walk over every trip says, and random words never crash."""

import dataclasses

import numpy as np
import pytest

import accuracy.executor
from accuracy.executor import Machine
from cycle import simulate
from npu.errors import ProgramError
from npu.isa import assemble
from npu.program import Program, Tensor, words_of
from npu.program.trace import Trace
from tests.accuracy.random_programs import random_program
from tests.conftest import compiled, compose_experiment

GEOMETRY = {
    "blen": 4,
    "mlen": 32,
    "vlen": 32,
    "matrix_bytes": 512,
    "vector_bytes": 512,
    "fp_bytes": 256,
    "int_bytes": 256,
}
WORDS = 3_000
BUDGET = 3_000
"""Instructions of a mutant that are run at most: a trip count may have become four billion."""


def program_of(text, geometry=GEOMETRY):
    tensor = Tensor(name="all", address=0, shape=(256,), format="bf16", block=32, writable=True)
    return Program(words=words_of(assemble(text)), hbm=(tensor,), geometry=geometry, layout={}, phases=())


@pytest.mark.parametrize("overrides", [(), ("workload.cache=none", "workload.batch=2"), ("numerics=mxint4_baos",),
                                       ("scheme=frozen", "workload.cache=prefix"), ("scheme=prerope_baos", "workload.batch=2"),
                                       ("scheme=hadamard", "workload.cache=prefix"),
                                       ("model=llada_8b", "hardware=npu_datacenter", "workload=llada_gsm8k", "numerics=mxint4", "paths=[cycle]")])  # fmt: skip
def test_shipped_programs_stay_inside(overrides):
    experiment = compose_experiment(*overrides)
    compiled(experiment, experiment.workload.prompt_length or 19)[0].check_bounds()


@pytest.mark.parametrize("seed", range(200))
def test_a_nest_is_refused_exactly_where_a_trip_leaves_the_memory(seed):
    rng = np.random.default_rng(seed)
    base, n = int(rng.integers(0, 256)), int(rng.integers(1, 33))
    trips, strides = rng.integers(1, 5, 3), rng.integers(-40, 60, 3)
    length, stride = int(rng.integers(1, 4)), int(rng.integers(-40, 60))
    lines = ["A_BASE register=0 base=0", f"A_BASE register=1 base={base}"]
    lines += [f"A_STEP register=1 level={level} stride={s}" for level, s in enumerate(strides)]
    lines += [f"A_RING register=1 ring=0 length={length} stride={stride}"]
    lines += [f"C_LOOP level={level} trips={t} length={7 - 2 * level}" for level, t in enumerate(trips)]
    lines += [
        f"V_FILL_VF dst=a1 scalar=a0 n={n}",
        "A_NEXT ring=0",
        "C_NEXT level=2",
        "C_NEXT level=1",
        "C_NEXT level=0",
        "C_END",
    ]
    program = program_of("\n".join(lines))
    # Each trip by hand; every buffer of the ring is met where there are enough trips, so the ring's part is taken whole.
    starts = [
        base + int(np.dot((i, j, k), strides)) + place * stride
        for i in range(trips[0]) for j in range(trips[1]) for k in range(trips[2]) for place in range(length)
    ]  # fmt: skip
    inside = all(start >= 0 and start + n <= 256 for start in starts)
    if inside:
        program.check_bounds()
    else:
        with pytest.raises(ProgramError, match=r"V_FILL_VF reaches dst"):
            program.check_bounds()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A_BASE register=0 base=60\nS_MOV_FP dst=a0 a=a0\nA_BASE register=0 base=64\nS_MOV_FP dst=a0 a=a0\nC_END", r"reaches a \[64, 65\) of fp, which ends at 64"),
        ("S_MOV_FP dst=a0 a=a0\nC_END", "address register 0 is used before A_BASE sets it"),
        ("C_LOOP level=0 trips=2 length=2\nA_BASE register=0 base=60\nC_NEXT level=0\nC_END", "A_BASE in a loop"),
        ("A_BASE register=0 base=500\nA_BASE register=1 base=0\nH_LOAD_F dst=a1 src=a0 n=4\nC_END", r"reaches src \[500, 516\) of hbm"),
        ("A_BASE register=0 base=0\nA_ROWS register=0 stride=-2\nA_BASE register=1 base=0\nH_STORE_V dst=a0 src=a1 rows=2 cols=32 format=1 block=5\nC_END", r"H_STORE_V reaches dst \[-2"),
    ],
)  # fmt: skip
def test_what_leaves_a_memory_is_named(text, said):
    with pytest.raises(ProgramError, match=said):
        program_of(text).check_bounds()


def test_a_row_that_hbm_lacks_is_refused_as_it_is_fetched():
    text = ("A_BASE register=0 base=0\nA_ROWS register=0 stride=64\nA_BASE register=1 base=0\nA_BASE register=2 base=0\n"
            "S_SET_INT dst=a1 value=100\nH_GATHER_V dst=a2 table=a0 index=a1 cols=32 rows=1\nC_END")  # fmt: skip
    machine = Machine(program=program_of(text), hbm=np.zeros(512, np.uint8))
    with pytest.raises(ProgramError, match="fetches a row that HBM does not have"):
        machine.run_to_break()


def mutants(program, rng, count):
    """Programs with a few random bits of random words flipped, or a word made up."""
    for _ in range(count):
        words = program.words.copy()
        for _ in range(int(rng.choice([1, 2, 3], p=[0.8, 0.1, 0.1]))):
            row = int(rng.integers(len(words)))
            if rng.random() < 0.1:
                words[row] = rng.integers(0, 1 << 63, 2, np.uint64)
            else:
                words[row, int(rng.integers(2))] ^= np.uint64(1) << np.uint64(rng.integers(64))
        yield words


def test_random_words_are_refused_or_run(monkeypatch):
    """Through the loader, the bodies of every instruction and the machine of the cycle path; a crash would end the process."""
    monkeypatch.setattr(accuracy.executor, "SLICE", BUDGET)
    hardware = compose_experiment("hardware.vlen=32", "hardware.blen=4", "hardware.mlen=32").hardware
    rng, ran, refused = np.random.default_rng(7), 0, []
    for seed in range(WORDS // 100):
        program = random_program(seed)
        image = rng.integers(0, 256, program.hbm_bytes).astype(np.uint8)
        for words in mutants(program, rng, 100):
            try:
                mutant = dataclasses.replace(program, words=words)
                machine = Machine(program=mutant, hbm=image.copy())
                with np.errstate(all="ignore"):
                    machine.run_slice()
            except ProgramError as error:
                refused.append(str(error))
                continue
            ran += 1
            if machine.finished and ran % 10 == 0:
                found = Trace(breaks=tuple(machine.breaks[: machine.filled[0]].tolist()), gathers=())
                try:
                    simulate(mutant, hardware=hardware, trace=found, race_check=False)
                except ProgramError as error:
                    refused.append(str(error))
    assert ran > WORDS / 20
    assert len(refused) > WORDS / 4
    assert not any("\n" in line for line in refused)


def test_a_file_that_reaches_outside_is_refused_as_it_is_loaded():
    program = program_of("A_BASE register=0 base=64\nS_MOV_FP dst=a0 a=a0\nC_END")
    for load, data in ((Program.from_bytes, program.to_bytes()), (Program.from_text, program.to_text())):
        with pytest.raises(ProgramError, match="reaches a"):
            load(data)
