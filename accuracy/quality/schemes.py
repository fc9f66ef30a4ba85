"""The KV cache of the reference path: what is stored, in which blocks, and how it is smoothed before rounding.

Shape suffixes: B sequences, H KV heads, T tokens of the canvas, D head_dim. BAOS is reconstructed (its name and aim are
published, its formula is not): docs/kv_quantisation.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

import torch
from torch import Tensor

from accuracy.quality.quantise import fake_quantise
from accuracy.quality.reuse import Reuse
from dllm.constants import SMALLEST_SHARE
from dllm.numerics import Numerics, Smoothing
from dllm.policies import Smoother
from dllm.rotary import Rotation
from npu.errors import TripathError


def channel_maxima(x_BHTD: Tensor, real_BT: Tensor, *, pairs: bool = False) -> Tensor:
    """c_j = max over real tokens of |x_j| ([B, H, 1, D]); with `pairs` the larger of channels j and j + D/2."""
    c = (x_BHTD * real_BT[:, None, :, None]).abs().amax(2, keepdim=True)
    if pairs:
        half = torch.maximum(*c.chunk(2, dim=-1))
        c = torch.cat([half, half], -1)
    return c.clamp(min=1e-30).maximum(c.amax(-1, keepdim=True) * SMALLEST_SHARE)


def smoothing_factors(c: Tensor, smoothing: Smoothing, rounded: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """s_j = (c_j / geomean(c))^alpha, maybe rounded to a power of two; `rounded` where the machine's lanes round."""
    logs = rounded(c.log2())
    logs = rounded(logs - logs.mean(-1, keepdim=True))
    if smoothing.alpha != 1:
        logs = rounded(logs * smoothing.alpha)
    return rounded((logs.round() if smoothing.power_of_two else logs).exp2())


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix, orthonormal ([size, size]); size is a power of two.

    Raises:
        TripathError: it is not.
    """
    if size & (size - 1):
        raise TripathError(f"model.head_dim: the Hadamard scheme needs a power of two, got {size}")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


class Side:
    """`keys` or `values` of one layer: raw rows as the projection left them, and `stored`, what the cache gives back.

    `stored` is in the smoothed domain: x = stored * s + m. `s` and `m` are None where nothing is smoothed or centred.
    """

    def __init__(
        self, name: str, numerics: Numerics, raw_BHTD: Tensor, real_BT: Tensor, *, block_length: int,
        lanes: Callable[[Tensor], Tensor], calibrated: tuple[Tensor, Tensor] | None, format: str,
    ) -> None:  # fmt: skip
        """Nothing is written yet: `raw_BHTD` gives the shape.

        `lanes` rounds what the vector unit leaves; `calibrated` are maxima and means of the static scheme, [1, H, 1, D] each;
        `format` is that of the cache.
        """
        self.format, self.smoothing, self.axis = format, numerics.smoothing, numerics.axis_of(name)
        self.block = numerics.block_size if self.axis == "channels" else numerics.token_block(block_length)
        self.smoothed = name in self.smoothing.sides
        self.pairs = name == "keys" and self.smoothing.pre_rope
        self.lanes, self.calibrated, self.real = lanes, calibrated, real_BT
        self.raw = torch.zeros_like(raw_BHTD)
        self.stored = torch.zeros_like(raw_BHTD)
        self.s: Tensor | None = None
        self.m: Tensor | None = None

    def write(self, x_BHRD: Tensor, rows: slice, *, block: int, due_BT: Tensor | None = None) -> slice:
        """Overwrite `rows`, of each sequence those that are due (None: all); a write of all rows is a warm step of block number
        `block`. Returns the rows that changed."""
        warm = x_BHRD.shape[2] == self.raw.shape[2]
        if due_BT is not None:
            x_BHRD = torch.where(due_BT[:, None, rows, None], x_BHRD, self.raw[:, :, rows])
        self.raw[:, :, rows] = x_BHRD
        anew = self._calibrates(warm=warm, block=block)
        if anew:
            self._calibrate()
        changed = slice(0, self.raw.shape[2]) if warm or anew else rows
        self.stored[:, :, changed] = self._rounded(self.raw[:, :, changed], self.real[:, changed])
        return changed

    def _calibrates(self, *, warm: bool, block: int) -> bool:
        """The factors are worked out anew before the rows are rounded."""
        match self.smoothing.smoother:
            case Smoother.PLAIN | Smoother.HADAMARD:
                due = False
            case Smoother.BAOS:
                due = warm
            case Smoother.FROZEN:
                due = self.s is None or (warm and block == 0)
            case Smoother.STATIC:
                due = self.s is None
            case Smoother.ORACLE:
                due = True
            case unknown:
                assert_never(unknown)
        return self.smoothed and due

    def _calibrate(self) -> None:
        x, lanes = self.raw, self.lanes
        maxima, mean = self.calibrated if self.calibrated is not None else (None, None)
        if not self.smoothing.centre:
            mean = None
        elif mean is None:
            mean = self._mean()
        self.m = lanes(mean) if mean is not None else None
        if maxima is None:
            maxima = channel_maxima(x if self.m is None else lanes(x - self.m), self.real, pairs=self.pairs)
        self.s = smoothing_factors(maxima, self.smoothing, lanes).expand(x.shape[0], -1, -1, -1)

    def _mean(self) -> Tensor:
        """Each channel's mean over the real tokens ([B, H, 1, D]), added up row by row as the machine's lanes do."""
        total = torch.zeros_like(self.raw[:, :, :1])
        for row in range(self.raw.shape[2]):
            total = self.lanes(total + self.raw[:, :, row : row + 1] * self.real[:, None, row : row + 1, None])
        return total * (1 / self.real.sum(1).to(total.dtype))[:, None, None, None]

    def _rounded(self, x: Tensor, real: Tensor) -> Tensor:
        if self.m is not None:
            x = self.lanes(x - self.m) * real[:, None, :, None]
        if self.s is not None:
            x = self.lanes(x * self.lanes(1 / self.s))
        return fake_quantise(x, self.format, block=self.block, dim=-1 if self.axis == "channels" else -2)


Probe = Callable[[int, Tensor, Tensor], None]


@dataclass(kw_only=True)
class Batch:
    """A left-padded batch on the way through the decoder: which tokens are real, RoPE tables, and the cache.

    `probe`, where given, is called in every layer (`StudyModel.forward`). `reuse` is what a policy keeps whose rows data choose.
    """

    real: Tensor
    tables: dict[Rotation, tuple[Tensor, Tensor]]
    sides: list[dict[str, Side]]
    loaded: list[dict[str, Tensor]]
    probe: Probe | None = None
    reuse: Reuse = field(default_factory=Reuse)
