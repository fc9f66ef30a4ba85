"""Every format of the table in every role of `numerics`, through compiler and executor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from accuracy.image import read_tokens
from accuracy.simulator import execute
from npu.formats import FORMATS
from npu.formats.rounding import decode_rows, encode_rows
from npu_compiler import compile_program
from tests.accuracy.format_programs import COMBINATIONS, NAMES, ROLES, run
from tests.accuracy.random_programs import digest
from tests.conftest import PROMPT, compose_experiment

PRESETS = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "numerics").glob("*.yaml"))


def generate(overrides, tensors, tokenizer):
    """Experiment, machine and steps of eight tokens in two steps; logits go through HBM, in their format."""
    short = ("workload.generation_length=8", "workload.steps=2", "compiler.sampling=stored")
    x, ids = compose_experiment(*overrides, *short), tokenizer.encode(PROMPT)
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(ids)], x.compiler)
    return x, *execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=[ids])


@pytest.fixture(scope="module")
def unquantised(tensors, tokenizer):
    """Logits of the first step with everything in FP32."""
    _, _, steps = generate([f"numerics.{role}=fp32" for role in ROLES], tensors, tokenizer)
    return steps[0][0].logits


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", NAMES)
def test_each_format_serves_in_each_role(name, role, tensors, tokenizer, unquantised):
    """A generation ends without masks; its first logits lie near the FP32 ones, the nearer the finer the format."""
    overrides = [f"numerics.{other}={name if other == role else 'fp32'}" for other in ROLES]
    x, machine, steps = generate(overrides, tensors, tokenizer)
    assert not (read_tokens(machine.hbm, machine.program) == x.model.mask_id).any()
    logits = steps[0][0].logits
    error = np.linalg.norm(logits - unquantised) / np.linalg.norm(unquantised)
    # Half a step of a format, relative to the largest of its block; 2^-8 is the BF16 of the vector lanes between.
    fmt = FORMATS[name]
    assert np.isfinite(logits).all()
    assert error < 4 * 2.0 ** -(fmt.mantissa_bits + 1) + 2.0**-5
    if role == "logits":
        memory, again = np.zeros(logits.size * 4, np.uint8), np.zeros_like(logits)
        encode_rows(logits, fmt.code, 32, memory)
        decode_rows(memory, fmt.code, 32, again)
        np.testing.assert_array_equal(again, logits)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_of_conf_numerics_runs(preset, tensors, tokenizer):
    x, machine, steps = generate([f"numerics={preset}"], tensors, tokenizer)
    assert not (read_tokens(machine.hbm, machine.program) == x.model.mask_id).any()
    assert np.isfinite(steps[0][0].logits).all()


def test_interpreted_and_compiled_generations_leave_the_same_bits():
    command = [sys.executable, "-m", "tests.accuracy.format_programs"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [digest(run(combination)) for combination in COMBINATIONS]


def test_the_combinations_reach_each_format_in_each_role():
    for role in ROLES:
        assert sorted(combination[role] for combination in COMBINATIONS) == sorted(NAMES)
