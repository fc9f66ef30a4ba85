"""Blocks of the KV cache take whole bytes: along channels where the tokens that a step writes do not."""

import math

import pytest

from npu.errors import TripathError
from npu.formats import FORMATS
from npu.isa import Instruction
from npu_compiler import compile_program
from tests.conftest import compose_experiment

NARROW = ("mxint4", "mxfp4_e2m1", "mxfp6_e2m3")


@pytest.mark.parametrize("model", ["qwen3_8b", "smollm2_135m", "sdar_8b", "llada_8b"])
@pytest.mark.parametrize("kv", [*NARROW, "mxint8", "bf16"])
def test_the_cache_holds_every_bit(model, kv):
    x = compose_experiment(
        f"model={model}", "hardware=npu_datacenter", "numerics=mxint8", f"numerics.kv={kv}", "workload.prompt=null",
        "workload.prompt_length=32", "workload.generation_length=32", "paths=[analytical]",
    )  # fmt: skip
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [32], x.compiler)
    fmt, caches = FORMATS[kv], {each.name: each for each in program.hbm if each.name in ("keys", "values")}
    assert len(caches) == 2
    for each in caches.values():
        scales = math.prod(each.shape) // each.block if fmt.block_scaled else 0
        assert each.size_bytes == scales + math.prod(each.shape) * fmt.bits // 8
        assert each.block * fmt.bits % 8 == 0


@pytest.mark.parametrize("kv", NARROW)
@pytest.mark.parametrize("key", ["k_axis", "v_axis"])
def test_blocks_of_one_token_that_take_no_whole_bytes_are_refused(kv, key):
    with pytest.raises(
        TripathError, match=rf"numerics\.{key}: blocks of 1 tokens .*numerics\.kv={kv} take no whole bytes"
    ):
        compose_experiment("model=qwen3_8b", "paths=[analytical]", f"numerics.kv={kv}", f"numerics.{key}=tokens")
    x = compose_experiment("model=qwen3_8b", "paths=[analytical]", "workload.prompt_length=8", f"numerics.{key}=tokens")
    with pytest.raises(TripathError, match="no whole bytes"):
        FORMATS[kv].record_bytes(1)
    assert x.numerics.axis_of({"k_axis": "keys", "v_axis": "values"}[key]) == "tokens"


@pytest.mark.parametrize("kv", NARROW)
def test_no_instruction_moves_parts_of_bytes(kv):
    code, rows = FORMATS[kv].code, {"dst": 0, "src": 1, "cols": 8, "block": 0}
    for mnemonic, operands in (
        ("H_LOAD_V", {**rows, "rows": 1}), ("H_LOAD_T", {**rows, "rows": 1}), ("H_STORE_V", {**rows, "rows": 1}), ("H_STORE_T", rows),
    ):  # fmt: skip
        with pytest.raises(TripathError, match="illegal operands"):
            Instruction(mnemonic=mnemonic, operands={**operands, "format": code}).encode()
        Instruction(mnemonic=mnemonic, operands={**operands, "format": code, "block": 3}).encode()
