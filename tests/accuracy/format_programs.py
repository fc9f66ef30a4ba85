"""Whole generations of a tiny random model, one per combination of formats; `python -m tests.accuracy.format_programs`
prints a digest of all memories for each. With NUMBA_DISABLE_JIT=1 the same bodies run interpreted."""

import numpy as np

from accuracy.simulator import execute
from dllm.families import expected_shapes
from npu.formats import FORMATS
from npu_compiler import compile_program
from tests.accuracy.random_programs import digest
from tests.conftest import compose_experiment

NAMES = list(FORMATS)
ROLES = ("weights", "activations", "kv", "logits")
COMBINATIONS = [
    dict(zip(ROLES, (NAMES[(i + shift) % len(NAMES)] for shift in (0, 3, 5, 8)), strict=True))
    for i in range(len(NAMES))
]
"""Each format once in each role, and never twice in a combination."""

TINY = (
    "model.layers=1", "model.hidden=32", "model.heads=1", "model.kv_heads=1", "model.head_dim=32", "model.ffn=32",
    "model.vocab=32", "workload.block_length=4", "workload.generation_length=4", "workload.steps=2", "hardware.blen=4",
)  # fmt: skip


def run(combination):
    """Machine after a generation from 3 prompt tokens in these formats."""
    x = compose_experiment(*TINY, *(f"numerics.{role}={name}" for role, name in combination.items()))
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in expected_shapes(x.model).items()}
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [3])
    with np.errstate(all="ignore"):
        machine, _ = execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=[[5, 6, 7]])
    return machine


if __name__ == "__main__":
    for combination in COMBINATIONS:
        print(digest(run(combination)))
