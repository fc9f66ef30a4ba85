"""Channel maxima of a calibration set, kept beside a checkpoint, and the factors that the static scheme makes of them.

`calibration.safetensors` has `layers.N.keys` and `layers.N.values`, float32 [KV heads, head_dim]: the largest absolute value
of each channel after RoPE, over the prompts of the set. `python -m dllm_training.calibrate FOLDER` writes it.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dllm.checkpoint import SYNTHETIC
from dllm.model import ModelSpec
from dllm.numerics import SIDES
from npu.errors import TripathError
from npu.formats.rounding import round_bf16
from npu.program import Program

FILE = "calibration.safetensors"


def read_calibration(model: ModelSpec) -> list[dict[str, np.ndarray]]:
    """For each layer the maxima of `keys` and of `values`, [KV heads, head_dim].

    Raises:
        TripathError: the checkpoint has none, or one of another model.
    """
    needed = "numerics.smoothing.scheme: static needs the channel maxima of a calibration set"
    if model.checkpoint is None or model.checkpoint == SYNTHETIC:
        raise TripathError(f"{needed}, which model.checkpoint={model.checkpoint} has not")
    path = Path(model.checkpoint) / FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        hint = f"python -m dllm_training.calibrate {model.checkpoint} writes it"
        raise TripathError(f"{needed}: {path} is missing or unreadable ({type(error).__name__}); {hint}") from None
    layers = model.only_layers or range(model.layers)
    shape = (model.kv_heads, model.head_dim)
    for name in (f"layers.{layer}.{side}" for layer in layers for side in SIDES):
        found = tensors.get(name)
        if found is None or found.shape != shape or found.dtype != np.float32 or not (found > 0).all():
            raise TripathError(f"model.checkpoint: {name} in {path} is not a float32 tensor {shape} above zero")
    return [{side: tensors[f"layers.{layer}.{side}"] for side in SIDES} for layer in layers]


def static_factors(program: Program, model: ModelSpec) -> np.ndarray:
    """The tensor `smoothing` before the first instruction, [layers, batch, width]: 1 / s of every KV channel, then s of every
    query channel, each with K's part first (npu_compiler.smoothing); 1 on a side that is not smoothed.

    Every operation is rounded to BF16, as the machine's lanes round when they calibrate.
    """
    layout, rows = program.layout, []
    for maxima in read_calibration(model):
        inverse, fold = [], []
        for bit, side in enumerate(SIDES):
            s = np.ones((model.kv_heads, model.head_dim), np.float32)
            if layout["static_sides"] >> bit & 1:
                logs = _bf16(np.log2(maxima[side]))
                logs = _bf16(logs - logs.mean(-1, keepdims=True))
                logs = _bf16(logs * np.float32(layout["alpha_millionths"] / 1e6))
                s = _bf16(np.exp2(np.rint(logs) if layout["power_of_two"] else logs))
            inverse.append(_bf16(1 / s).reshape(-1))
            fold.append(s.repeat(model.heads // model.kv_heads, axis=0).reshape(-1))
        rows.append(np.concatenate([*inverse, *fold]))
    return np.stack(rows)[:, None].repeat(program.tensor("smoothing").shape[1], axis=1)


_bf16 = np.vectorize(round_bf16, otypes=[np.float32])
