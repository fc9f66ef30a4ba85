"""Low-rank adapters (LoRA, arXiv:2106.09685) as Hugging Face's PEFT writes them: what they add to the matrices of a checkpoint.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. A matrix W becomes W + scale * B A, where scale is
lora_alpha / r. Every tensor is used and every key that changes the function understood, or the folder is refused.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dllm.families import QWEN, expected_shapes, tensor_name
from dllm.folder import read_small
from dllm.model import ModelSpec
from npu.errors import TripathError

SUBJECT = "model.adapter"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<base>.+)\.lora_(?P<side>[AB])\.weight")
"""PEFT's name of a matrix of an adapter; the base is Hugging Face's name of the module."""
_ONLY: Mapping[str, Collection[object]] = {
    "peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False,), "use_dora": (False,), "use_rslora": (False,),
    "modules_to_save": (None, ()), "rank_pattern": (None,), "alpha_pattern": (None,), "lora_bias": (False,),
}  # fmt: skip
"""Keys whose other values change the function in a way that is not carried out; absent is as good as the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """Additions to matrices, by our names: the thin matrices A [r, inputs] and B [outputs, r], and one factor for all."""

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: float

    def added(self, name: str, value: np.ndarray) -> np.ndarray:
        """A tensor of the checkpoint with what the adapter adds to it, in float32."""
        if name not in self.factors:
            return value
        a, b = self.factors[name]
        return value + np.float32(self.scale) * (b @ a)

    def identity(self, name: str) -> str:
        """Digest of what is added to a tensor; empty: nothing is."""
        if name not in self.factors:
            return ""
        state = hashlib.sha256(repr(self.scale).encode())
        for each in self.factors[name]:
            state.update(np.ascontiguousarray(each).data)
        return state.hexdigest()


def read_adapter(folder: Path, spec: ModelSpec) -> Adapter:
    """The adapter of a folder for a model.

    Raises:
        TripathError: a file is missing or unreadable, a key or tensor is not understood, or it is another model's.
    """
    config = _config(folder / CONFIG)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise TripathError(f"{SUBJECT}: {CONFIG} lacks r and lora_alpha ({folder / CONFIG})")
    for key, allowed in _ONLY.items():
        value = config.get(key)
        if value not in (None, {}, []) and value not in allowed:
            raise TripathError(
                f"{SUBJECT}: {CONFIG} key {key} = {json.dumps(value)} is not understood ({folder / CONFIG})"
            )
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise TripathError(f"{SUBJECT}: {file} is missing or unreadable ({type(error).__name__})") from None
    names, shapes = _matrices(spec), expected_shapes(spec)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        known = _NAME.fullmatch(name)
        ours = names.get(known["base"]) if known else None
        if known is None or ours is None:
            raise TripathError(f"{SUBJECT}: no matrix of model {spec.name} takes tensor {name} ({file})")
        outputs, inputs = shapes[ours]
        shape = (rank, inputs) if known["side"] == "A" else (outputs, rank)
        if value.shape != shape or not np.isfinite(value.astype(np.float32)).all():
            raise TripathError(
                f"{SUBJECT}: tensor {name} is no finite matrix of shape {shape}, got {value.shape} ({file})"
            )
        found.setdefault(ours, {})[known["side"]] = value.astype(np.float32)
    for ours, sides in found.items():
        if set(sides) != {"A", "B"}:
            raise TripathError(f"{SUBJECT}: {ours} has one of lora_A and lora_B alone ({file})")
    return Adapter(factors={ours: (sides["A"], sides["B"]) for ours, sides in found.items()}, scale=alpha / rank)


def _config(file: Path) -> Mapping[str, Any]:
    raw = read_small(file, SUBJECT)
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TripathError(f"{SUBJECT}: malformed {file}")
    return found


def _matrices(spec: ModelSpec) -> dict[str, str]:
    """Our name of each matrix inside of layers, by Hugging Face's name of its module."""
    found: dict[str, str] = {}
    for stored in spec.network.weights():
        for _, layer in stored.of_layers():
            if layer is not None and stored.weight.role.on_array:
                for part in stored.weight.parts:
                    found[QWEN.name_of(part.name, layer).removesuffix(".weight")] = tensor_name(part.name, layer)
    return found
