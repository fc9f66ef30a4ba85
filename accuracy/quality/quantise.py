"""Fake quantisation in torch: float32 in, float32 on the grid of a format out. Written apart from `npu.formats`.

The formats' facts (bits, exponents, largest value) come from the table; how they round is stated here anew, from OCP
Microscaling v1.0, and compared with the executor's rounding by tests.
"""

import torch
from torch import Tensor

from npu.formats import FORMATS, Format

_EXPONENT_SHIFT, _BIAS = 23, 127


def fake_quantise(x: Tensor, format: str, *, block: int = 32, dim: int = -1) -> Tensor:
    """`x` (float32) as `format` would store it, in blocks of `block` along `dim` (negative) for block-scaled formats.

    Blocks whose scale would be 2^-127 become zero; NaN and infinities are not treated as the executor does.
    """
    if format == "fp32":
        return x
    if format == "bf16":
        return x.to(torch.bfloat16).to(torch.float32)
    if format == "fp16":
        return x.to(torch.float16).to(torch.float32)
    row = FORMATS[format]
    blocks = x.unflatten(dim, (-1, block))
    largest = blocks.abs().amax(dim, keepdim=True)
    exponent = (_exponent(largest) - row.max_exponent).clamp_(-126, 126)
    scale, inverse = _power_of_two(exponent), _power_of_two(-exponent)
    return _round_elements(blocks * inverse, row).mul_(scale).flatten(dim - 1, dim)


def _round_elements(x: Tensor, row: Format) -> Tensor:
    """Elements (overwritten) on the grid of a row, to nearest even, saturated."""
    if row.integer:
        steps = float(1 << row.mantissa_bits)
        return x.mul_(steps).round_().clamp_(-row.max_value * steps, row.max_value * steps).mul_(1 / steps)
    quantum = _exponent(x).clamp_(min=row.min_exponent).sub_(row.mantissa_bits)
    rounded = x.mul_(_power_of_two(-quantum)).round_().mul_(_power_of_two(quantum))
    return rounded.clamp_(-row.max_value, row.max_value)


def _exponent(x: Tensor) -> Tensor:
    """floor(log2(|x|)) of normal numbers, -127 of zero and subnormals (int32)."""
    return ((x.view(torch.int32) >> _EXPONENT_SHIFT) & 0xFF) - _BIAS


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent for int32 exponents from -126 to 127."""
    return ((exponent + _BIAS) << _EXPONENT_SHIFT).view(torch.float32)
