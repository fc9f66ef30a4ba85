"""The HBM image that a program starts from: weights in their formats, and what the host prepares for a workload."""

from collections.abc import Mapping, Sequence

import numpy as np

from accuracy.checkpoint import PREFIX, QKV
from tripath.errors import TripathError
from tripath.formats import FORMATS
from tripath.formats.rounding import encode_rows
from tripath.model import ModelSpec
from tripath.program import Program, Tensor
from tripath.workload import Workload

LOWEST = -float.fromhex("0x1.fep127")
"""The lowest finite BF16: what a masked score and an initial maximum are."""
SMALLEST_SHARE = 2.0**-14
"""A channel's maximum counts as this share of its head's at least, so that a dead channel has a finite factor."""


def build_image(
    program: Program,
    model: ModelSpec,
    workload: Workload,
    tensors: Mapping[str, np.ndarray],
    prompts: Sequence[Sequence[int]],
) -> np.ndarray:
    """HBM contents (uint8) before the first instruction.

    Raises:
        TripathError: the prompts do not fit the program.
    """
    image = np.zeros(program.hbm_bytes, np.uint8)
    contents = {**_weights(model, tensors), **_host(program, model, workload, prompts)}
    for name, values in contents.items():
        write_tensor(image, program.tensor(name), values)
    return image


def write_tensor(image: np.ndarray, tensor: Tensor, values: np.ndarray) -> None:
    """Store `values` (the tensor's shape) in its format."""
    place = image[tensor.address : tensor.address + tensor.size_bytes]
    if tensor.format == "int32":
        place[:] = np.ascontiguousarray(values, "<i4").reshape(-1).view(np.uint8)
    else:
        rows = np.ascontiguousarray(values, np.float32).reshape(-1, tensor.shape[-1])
        encode_rows(rows, FORMATS[tensor.format].code, tensor.block, place)


def read_tokens(image: np.ndarray, program: Program) -> np.ndarray:
    """The canvas (int32 [batch, S])."""
    tensor = program.tensor("tokens")
    raw = image[tensor.address : tensor.address + tensor.size_bytes]
    return raw.view("<i4").reshape(tensor.shape).astype(np.int32)


def _weights(model: ModelSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    def stack(*names: str) -> np.ndarray:
        """[layers, rows of all names, columns]."""
        layers = range(model.layers)
        return np.stack([np.concatenate([tensors[f"{PREFIX}blocks.{i}.{n}.weight"] for n in names]) for i in layers])

    biases = []
    if model.qkv_bias:
        names = [[f"{PREFIX}blocks.{i}.{part}.bias" for part in QKV] for i in range(model.layers)]
        biases = [("qkv_bias", np.stack([np.concatenate([tensors[name] for name in row]) for row in names]))]
    return dict(biases) | {
        "embedding": tensors[f"{PREFIX}wte.weight"], "final_norm": tensors[f"{PREFIX}ln_f.weight"],
        "lm_head": tensors[f"{PREFIX}ff_out.weight"], "attention_norm": stack("attn_norm"), "ffn_norm": stack("ff_norm"),
        "w_qkv": stack(*QKV), "w_out": stack("attn_out"), "w_gate": stack("ff_proj"),
        "w_up": stack("up_proj"), "w_down": stack("ff_out"),
    }  # fmt: skip


def _host(
    program: Program, model: ModelSpec, workload: Workload, prompts: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    layout = program.layout
    batch, canvas, cache = layout["batch"], layout["canvas"], layout["cache_tokens"]
    if len(prompts) != batch or max(map(len, prompts)) > layout["prompt"]:
        raise TripathError(
            f"workload.prompt: the program was compiled for {batch} prompts of at most {layout['prompt']} tokens"
        )
    tokens = np.full((batch, canvas), model.eos_id)
    mask, valid = np.full((batch, cache), LOWEST, np.float32), np.zeros((batch, canvas), np.float32)
    rope = np.zeros((batch, canvas, model.head_dim), np.float32)
    frequency = model.rope_theta ** (-np.arange(0, model.head_dim, 2) / model.head_dim)
    for row, prompt in enumerate(prompts):
        first = layout["prompt"] - len(prompt)
        tokens[row, first : layout["prompt"]] = prompt
        tokens[row, layout["prompt"] :] = model.mask_id
        mask[row, cache - canvas + first :] = 0.0
        valid[row, first:] = 1.0
        angle = np.outer(np.arange(canvas - first), frequency)
        rope[row, first:] = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    unscheduled = workload.block_length - workload.steps_per_block
    constants = [
        0.0, LOWEST, 1.0, -1.0, 1.0 / model.hidden, model.rms_eps, model.head_dim**-0.5, workload.threshold,
        layout["alpha_millionths"] / 1e6, 1.0 / model.head_dim, SMALLEST_SHARE,
    ]  # fmt: skip
    return {
        "tokens": tokens, "mask": mask, "valid": valid, "rope": rope, "constants": np.array([constants]),
        "integers": np.array([[model.mask_id, 1, *workload.quotas(), *[0] * unscheduled]]),
    }  # fmt: skip
