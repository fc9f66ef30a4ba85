"""Smoothing factors known beforehand (the static scheme), and K outliers planted without changing the function."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from accuracy.calibration import read_calibration
from accuracy.quality.decode import StepView, decode
from accuracy.quality.metrics import collect
from accuracy.quality.model import Calibration, StudyModel
from accuracy.quality.schemes import Batch
from dllm.model import ModelSpec
from dllm.numerics import SIDES, Numerics, Smoothing
from dllm.workload import Workload
from npu.errors import TripathError

_BLOCKS = "model.transformer.blocks."


def calibrate(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], numerics: Numerics, prompts: Sequence[Sequence[int]],
    workload: Workload, *, lanes: str = "fp32",
) -> Calibration:  # fmt: skip
    """Channel maxima and means over the warm steps of the prompts, with an FP32 cache and the other formats as given."""
    seen = _Seen(spec, numerics.smoothing)

    def observe(view: StepView) -> None:
        if view.step == 0:
            seen.add(view.batch)

    model = StudyModel(spec, tensors, seen.unsmoothed(numerics), workload.block_length, lanes=lanes)
    decode(model, prompts, workload, observe=observe)
    return seen.calibration


def calibrate_texts(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], numerics: Numerics, texts: Sequence[Sequence[int]], *,
    lanes: str = "fp32",
) -> Calibration:  # fmt: skip
    """As `calibrate`, over one pass of each text."""
    seen = _Seen(spec, numerics.smoothing)
    model = StudyModel(spec, tensors, seen.unsmoothed(numerics), lanes=lanes)
    for text in texts:
        batch = model.new_batch(torch.zeros(1, dtype=torch.int64), len(text))
        model.forward(torch.tensor([text]), slice(0, len(text)), batch)
        seen.add(batch)
    return seen.calibration


class _Seen:
    """K and V of many warm steps."""

    def __init__(self, spec: ModelSpec, smoothing: Smoothing) -> None:
        self.smoothing = smoothing
        self.layers: list[dict[str, list[tuple[Tensor, Tensor]]]] = [
            {side: [] for side in SIDES} for _ in range(spec.layers)
        ]

    def unsmoothed(self, numerics: Numerics) -> Numerics:
        """The numerics to see them in: an FP32 cache of the same keys, the other formats as given."""
        return replace(numerics, kv="fp32", smoothing=Smoothing(pre_rope=self.smoothing.pre_rope))

    def add(self, batch: Batch) -> None:
        """Take what the cache holds now."""
        for kept, sides in zip(self.layers, batch.sides, strict=True):
            for side, values in kept.items():
                values.append((sides[side].raw.clone(), sides[side].real))

    @property
    def calibration(self) -> Calibration:
        """Channel maxima and means of all."""
        pairs = {"keys": self.smoothing.pre_rope, "values": False}
        return [
            {side: collect(values, self.smoothing, pairs=pairs[side]) for side, values in kept.items()}
            for kept in self.layers
        ]


def kept_calibration(spec: ModelSpec) -> Calibration:
    """The calibration that lies beside the model's checkpoint, as the machine reads it (no means).

    Raises:
        TripathError: there is none.
    """

    def maxima(values: np.ndarray) -> tuple[Tensor, Tensor]:
        tensor = torch.from_numpy(values)[None, :, None]
        return tensor, torch.zeros_like(tensor)

    return [{side: maxima(layer[side]) for side in SIDES} for layer in read_calibration(spec)]


def plant_outliers(
    tensors: Mapping[str, np.ndarray], spec: ModelSpec, gain: float, pairs: Sequence[int] = (1, 9),
) -> dict[str, np.ndarray]:  # fmt: skip
    """The same function with K channels `gain` times as large, and Q channels as much smaller.

    Channel j turns with channel j + head_dim / 2 under RoPE, so both of each pair j are scaled, in every head. With a
    power of two as gain no bit of the unquantised function changes.

    Raises:
        TripathError: a pair does not exist, or the gain is not positive.
    """
    half = spec.head_dim // 2
    if gain <= 0 or not all(0 <= pair < half for pair in pairs):
        raise TripathError(
            f"simulator.quality.planted: gain {gain} must be positive, pairs {tuple(pairs)} below {half}"
        )
    channels = np.array([*pairs, *(pair + half for pair in pairs)])
    result = dict(tensors)
    for layer in range(spec.layers):
        for name, factor in (("q_proj", 1 / gain), ("k_proj", gain)):
            key = f"{_BLOCKS}{layer}.{name}.weight"
            weight = np.array(tensors[key], np.float32).reshape(-1, spec.head_dim, spec.hidden)
            weight[:, channels] *= np.float32(factor)
            result[key] = weight.reshape(-1, spec.hidden)
    return result
