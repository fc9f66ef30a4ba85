"""A model as the machine keeps it: heads and vocabulary filled up with zeros to whole MX blocks."""

import dataclasses

import numpy as np

from dllm.model import ModelSpec
from dllm.numerics import Smoothing
from npu.errors import TripathError
from npu.formats import MX_BLOCK


def laid_out(model: ModelSpec) -> ModelSpec:
    """The model with heads and vocabulary of whole MX blocks; the channels that RoPE turns stay.

    Zeros change no product: those of Q and K add nothing to a score, those of V meet zeros of the projection behind attention.
    Rows of the vocabulary beyond the model's are not looked at when tokens are sampled.
    """
    head_dim, vocab = (-(-size // MX_BLOCK) * MX_BLOCK for size in (model.head_dim, model.vocab))
    if (head_dim, vocab) == (model.head_dim, model.vocab):
        return model
    return dataclasses.replace(model, head_dim=head_dim, vocab=vocab, rotary_dim=model.turned_channels)


def check_smoothing(model: ModelSpec, smoothing: Smoothing) -> None:
    """Refuse schemes of the cache where layers are of two kinds, whose channels differ.

    Raises:
        TripathError: naming both keys.
    """
    if len(model.geometries) > 1 and (smoothing.sides or smoothing.mixed or smoothing.pre_rope):
        raise TripathError(f"numerics.smoothing.scheme: {smoothing.scheme} is not known beside model.full_layers")


def fill_up(values: np.ndarray, shape: tuple[int, ...], model: ModelSpec) -> np.ndarray:
    """A part of a checkpoint in the shape that it has in `laid_out(model)`: zeros behind each head, or at the end of an axis."""
    head = model.head_dim
    for axis, (size, wanted) in enumerate(zip(values.shape, shape, strict=True)):
        if size == wanted:
            continue
        heads = size // head if size % head == 0 and wanted % (size // head) == 0 else 1
        apart = values.reshape(*values.shape[:axis], heads, size // heads, *values.shape[axis + 1 :])
        missing = [(0, 0)] * apart.ndim
        missing[axis + 1] = 0, wanted // heads - size // heads
        values = np.pad(apart, missing).reshape(*values.shape[:axis], wanted, *values.shape[axis + 1 :])
    return values
