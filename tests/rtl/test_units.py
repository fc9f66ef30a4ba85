"""The arithmetic of the core against the golden vectors, and over every BF16 input where a function has one."""

import numpy as np
import pytest

from npu.errors import TripathError
from npu.formats.rounding import round_bf16
from npu.isa import assemble, transcendental
from npu.program import Program, Tensor, words_of
from rtl.hardware import small_core
from rtl.limits import check_program
from rtl.simulator import Job, run
from tests.golden.cases import queued
from tests.rtl import golden
from tests.rtl.programs import LACKING, different_bits, executed

SMALL = small_core()
GEOMETRY = {"blen": SMALL.blen, "mlen": SMALL.mlen, "vlen": SMALL.vlen, "matrix_bytes": SMALL.sram.matrix_bytes,
            "vector_bytes": SMALL.sram.vector_bytes, "fp_bytes": SMALL.sram.fp_bytes, "int_bytes": SMALL.sram.int_bytes}  # fmt: skip
REFUSED = {"M_MM": 136, "H_LOAD_V": 30, "H_LOAD_T": 16, "H_STORE_V": 36, "H_STORE_T": 30}
"""Cases of formats that the core lacks (M_MM: and of contractions longer than its array)."""


def program_of(text):
    tensor = Tensor(name="all", address=0, shape=(1 << 14,), format="bf16", block=32, writable=True)
    return Program(words=words_of(assemble(f"{text}\nC_END")), hbm=(tensor,), geometry=GEOMETRY, layout={}, phases=())


@pytest.mark.parametrize("mnemonic", [spec.mnemonic for spec in queued() if spec.mnemonic in LACKING])
def test_what_the_core_lacks_is_refused_by_name(mnemonic):
    for case in golden.read(mnemonic):
        with pytest.raises(TripathError, match=f"rtl: {mnemonic} is not built: "):
            check_program(golden.job(mnemonic, case, SMALL).program, SMALL)


def test_the_core_lacks_only_experts_a_host_draws_and_tanh():
    assert set(LACKING) == {"V_COUNT_INT", "V_SCAN_INT", "V_APPEND_INT", "V_FETCH_V", "V_ADD_AT_V", "V_PICK_V", "V_TANH_V", "V_RANDOM_V", "V_RANDOM_INT", "V_RED_SAMPLE_IDX", "V_BUDGET_MASK", "S_LOG2_FP", "V_EXP_SUM_VF",
                            "C_COUNT", "C_LOOP_N", "C_HOST"}  # fmt: skip


@pytest.mark.parametrize("mnemonic", [spec.mnemonic for spec in queued() if spec.mnemonic not in LACKING])
def test_golden_vectors(core, mnemonic):
    cases, jobs, refused = [], [], 0
    for case in golden.read(mnemonic):
        try:
            job = golden.job(mnemonic, case, SMALL)
            check_program(job.program, SMALL)
        except TripathError:
            refused += 1
            continue
        cases.append(case)
        jobs.append(job)
    assert refused == REFUSED.get(mnemonic, 0)
    for case, after in zip(cases, run(core, jobs, most_cycles=3000), strict=True):
        assert golden.differences(case, after) == [], case["operands"]


@pytest.mark.parametrize(("mnemonic", "function"), [
    ("V_EXP_V", "exponential"), ("V_EXP2_V", "power_of_two"), ("V_LOG2_V", "logarithm2"), ("V_RECI_V", "reciprocal"),
])  # fmt: skip
def test_every_bf16_input_of_a_lane(core, mnemonic, function):
    inputs = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    text = f"""
        A_BASE register=0 base=0
        A_STEP register=0 level=0 stride=32
        A_BASE register=1 base=16384
        A_STEP register=1 level=0 stride=32
        C_LOOP level=0 trips=512 length=2
        {mnemonic} dst=1 a=0 n=32
        C_NEXT level=0
    """
    parts = inputs.reshape(4, -1)
    hbm = np.zeros(1 << 15, np.uint8)
    runs = run(core, [Job(program=program_of(text), hardware=SMALL, hbm=hbm, vector=part) for part in parts])
    found = np.concatenate([after.memories.vector[16384:] for after in runs])
    check_all(function, inputs, found, rounded=True)


@pytest.mark.parametrize(("mnemonic", "function"), [
    ("S_EXP_FP", "exponential"), ("S_RECI_FP", "reciprocal"), ("S_RSQRT_FP", "reciprocal_sqrt"),
])  # fmt: skip
def test_every_bf16_input_of_the_scalar_unit(core, mnemonic, function):
    """Results are FP32: no rounding hides a bit."""
    inputs = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    text = f"""
        A_BASE register=0 base=0
        A_STEP register=0 level=0 stride=1
        A_BASE register=1 base=256
        A_STEP register=1 level=0 stride=1
        C_LOOP level=0 trips=256 length=2
        {mnemonic} dst=1 a=0
        C_NEXT level=0
    """
    program, hbm = program_of(text), np.zeros(1 << 15, np.uint8)
    runs = run(core, [Job(program=program, hardware=SMALL, hbm=hbm, fp=part) for part in inputs.reshape(256, -1)])
    check_all(function, inputs, np.concatenate([after.memories.fp[256:] for after in runs]), rounded=False)


def check_all(function, inputs, found, *, rounded):
    body = getattr(transcendental, function)
    with np.errstate(all="ignore"):
        expected = np.array([round_bf16(body(x)) if rounded else body(x) for x in inputs], np.float32)
    same = (expected.view(np.uint32) == found.view(np.uint32)) | (np.isnan(expected) & np.isnan(found))
    assert np.flatnonzero(~same).tolist() == []


@pytest.mark.parametrize("block", [3, 4, 5])
@pytest.mark.parametrize("weight_format", [2, 3])
@pytest.mark.parametrize("act_format", [2, 3])
def test_tile_products_of_any_code_and_scale(core, block, weight_format, act_format):
    """Back to back, with parts of the array, over the whole range of scales and of BF16."""
    record = 1 + (1 << block) // (1 if weight_format == 2 else 2)
    product = f"block={block} weight_format={weight_format} act_format={act_format} block_stride={record}"
    text = f"""
        A_BASE register=0 base=5
        A_ROWS register=0 stride={5 * record}
        A_BASE register=1 base=7
        A_ROWS register=1 stride=37
        A_BASE register=2 base=20000
        A_ROWS register=2 stride=9
        A_BASE register=3 base=21000
        A_ROWS register=3 stride=9
        M_MM weights=0 acts=1 rows=8 cols=8 k=32 {product}
        M_MM weights=0 acts=1 rows=5 cols=3 k={1 << block} {product}
        M_MM weights=0 acts=1 rows=8 cols=8 k=32 {product}
        M_OUT dst=2 rows=8 cols=7
        M_MM weights=0 acts=1 rows=8 cols=8 k=32 {product}
        M_OUT dst=3 rows=8 cols=8
    """
    rng = np.random.default_rng(block)
    jobs = []
    for wide in (True, False) * 10:
        bits = rng.integers(0, 1 << 16, 1024).astype(np.uint32) << 16
        vector = bits.view(np.float32) if wide else rng.normal(size=1024).astype(np.float32)
        vector = (vector.view(np.uint32) & 0xFFFF0000).view(np.float32)
        matrix = rng.integers(0, 256, 2048).astype(np.uint8)
        if not wide:
            matrix[5::record] = rng.integers(110, 140, len(matrix[5::record]))
        jobs.append(
            Job(program=program_of(text), hardware=SMALL, hbm=np.zeros(1 << 15, np.uint8), matrix=matrix, vector=vector)
        )
    for given, after in zip(jobs, run(core, jobs, most_cycles=5000), strict=True):
        assert different_bits(executed(given), after.memories) == {}


def test_top_k_of_equal_lanes_zeros_of_both_signs_and_nan(core):
    """Which lanes are taken does not follow from an order of numbers alone: a NaN is taken where it comes first."""
    text = """
        A_BASE register=0 base=0
        A_BASE register=1 base=64
        A_BASE register=2 base=128
        A_BASE register=3 base=0
        A_BASE register=4 base=192
        V_TOPK_MASK dst=2 a=0 mask=1 count=3 n=32
        V_TOPK_MASK dst=4 a=0 mask=1 count=3 n=21
    """
    rng = np.random.default_rng(0)
    few = np.array([0.0, -0.0, 1.0, 1.0, -2.0, np.inf, -np.inf, np.nan, np.nan], np.float32)
    jobs = []
    for count in [-1, 0, 1, 2, 3, 5, 8, 31, 32, 1000] * 20:
        vector = np.zeros(256, np.float32)
        vector[:32] = rng.choice(few, 32) if count % 2 else rng.choice(few[: rng.integers(1, len(few))], 32)
        vector[64:96] = rng.choice(np.array([0.0, 1.0, -0.0, np.nan], np.float32), 32, p=[0.2, 0.6, 0.1, 0.1])
        integer = np.array([count], np.int32)
        jobs.append(
            Job(
                program=program_of(text),
                hardware=SMALL,
                hbm=np.zeros(1 << 15, np.uint8),
                vector=vector,
                integer=integer,
            )
        )
    for given, after in zip(jobs, run(core, jobs, most_cycles=1000), strict=True):
        assert different_bits(executed(given), after.memories) == {}
