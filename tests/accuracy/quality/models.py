"""Small random models and batches for the tests of the reference path."""

import numpy as np

from dllm.families import expected_shapes
from dllm.model import ModelSpec
from dllm.workload import Workload

SPEC = ModelSpec(
    name="small", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=96, rope_theta=1e4, rms_eps=1e-5,
    mask_id=1, eos_id=2, max_sequence=128,
)  # fmt: skip
WORKLOAD = Workload(generation_length=16, block_length=8, steps=8)
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]]


def tensors(seed=0, spec=SPEC):
    """Random weights, norms near 1, a head that makes logits of some size."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in expected_shapes(spec).items():
        scale = 0.3 if name.endswith(("wte.weight", "model.transformer.ff_out.weight")) else shape[-1] ** -0.5
        made[name] = (1 + 0.1 * rng.normal(size=shape) if len(shape) == 1 else scale * rng.normal(size=shape)).astype(
            "f4"
        )
    return made
