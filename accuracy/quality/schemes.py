"""The KV cache of the reference path: what is stored, in which blocks, and how it is smoothed before rounding.

Shape suffixes: B sequences, H KV heads, T tokens of the canvas, D head_dim. BAOS is reconstructed (its name and aim are
published, its formula is not): docs/kv_quantisation.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from accuracy.quality.quantise import fake_quantise
from dllm.policies import Smoother
from dllm.workload import AXES, Numerics
from npu.errors import TripathError

SMALLEST_SHARE = 2.0**-14
"""c is kept above this share of the largest c of its head, so that a dead channel has a finite s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KvScheme:
    """How K and V are stored.

    `smoother`: plain (nothing), baos (s anew at each block's warm step), frozen (s of block 0), static (s of a
    calibration set), oracle (s anew at every step, and all of the cache rounded anew), hadamard (a rotation of the
    channels). `alpha`, `power_of_two` and `centre` (subtract each channel's mean over the tokens) shape s; `keys` and
    `values` choose what is smoothed. `pre_rope`: keys are stored before the rotation. `k_axis`, `v_axis`: along what
    blocks run; KIVI is `plain` with k_axis tokens and v_axis channels.
    """

    smoother: str = "plain"
    alpha: float = 1.0
    power_of_two: bool = False
    centre: bool = False
    keys: bool = True
    values: bool = True
    pre_rope: bool = False
    k_axis: str = "channels"
    v_axis: str = "tokens"

    def __post_init__(self) -> None:
        known = [each.value for each in Smoother]
        if self.smoother not in known:
            raise TripathError(f"numerics.smoothing.scheme: unknown {self.smoother!r}, one of {', '.join(known)}")
        for axis in ("k_axis", "v_axis"):
            if getattr(self, axis) not in AXES:
                raise TripathError(f"numerics.{axis}: unknown {getattr(self, axis)!r}, one of {', '.join(AXES)}")
        if self.smoother == "hadamard" and self.pre_rope:
            raise TripathError("numerics.smoothing.pre_rope: a rotation of all channels does not commute with RoPE")

    @classmethod
    def of(cls, numerics: Numerics) -> "KvScheme":
        """The scheme of these numerics."""
        smoothing = numerics.smoothing
        return cls(
            smoother=smoothing.scheme, alpha=smoothing.alpha, power_of_two=smoothing.power_of_two, centre=smoothing.centre,
            keys=smoothing.keys, values=smoothing.values, pre_rope=smoothing.pre_rope, k_axis=numerics.k_axis,
            v_axis=numerics.v_axis,
        )  # fmt: skip

    @property
    def smooths(self) -> bool:
        """Channels are divided by s."""
        return Smoother(self.smoother).divides


def channel_maxima(x_BHTD: Tensor, real_BT: Tensor, *, pairs: bool = False) -> Tensor:
    """c_j = max over real tokens of |x_j| ([B, H, 1, D]); with `pairs` the larger of channels j and j + D/2."""
    c = (x_BHTD * real_BT[:, None, :, None]).abs().amax(2, keepdim=True)
    if pairs:
        half = torch.maximum(*c.chunk(2, dim=-1))
        c = torch.cat([half, half], -1)
    return c.clamp(min=1e-30).maximum(c.amax(-1, keepdim=True) * SMALLEST_SHARE)


def smoothing(c: Tensor, scheme: KvScheme, rounded: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """s_j = (c_j / geomean(c))^alpha, maybe rounded to a power of two; `rounded` where the machine's lanes round."""
    logs = rounded(c.log2())
    logs = rounded(logs - logs.mean(-1, keepdim=True))
    if scheme.alpha != 1:
        logs = rounded(logs * scheme.alpha)
    return rounded((logs.round() if scheme.power_of_two else logs).exp2())


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


@dataclass(frozen=True, kw_only=True, slots=True)
class SideRules:
    """What the cache of one side (K or V) of a layer needs to know: rounding of lanes, format, blocks, smoothing."""

    scheme: KvScheme
    format: str
    axis: str
    token_block: int
    smoothed: bool
    pairs: bool
    block_size: int
    lanes: Callable[[Tensor], Tensor]
    calibrated: tuple[Tensor, Tensor] | None
    """Maxima and means of the static scheme, [1, H, 1, D] each."""


class Side:
    """K or V of one layer: raw rows as the projection left them, and `stored`, what the cache gives back.

    `stored` is in the smoothed domain: x = stored * s + m. `s` and `m` are None where nothing is smoothed or centred.
    """

    def __init__(self, rules: SideRules, raw_BHTD: Tensor, real_BT: Tensor) -> None:
        self.rules = rules
        self.real = real_BT
        self.raw = torch.zeros_like(raw_BHTD)
        self.stored = torch.zeros_like(raw_BHTD)
        self.s: Tensor | None = None
        self.m: Tensor | None = None

    def write(self, x_BHRD: Tensor, rows: slice, *, block: int) -> slice:
        """Overwrite `rows`; a write of all rows is a warm step of block number `block`. Returns the rows that changed."""
        warm = x_BHRD.shape[2] == self.raw.shape[2]
        self.raw[:, :, rows] = x_BHRD
        anew = self._calibrates(warm=warm, block=block)
        if anew:
            self._calibrate()
        changed = slice(0, self.raw.shape[2]) if warm or anew else rows
        self.stored[:, :, changed] = self._rounded(self.raw[:, :, changed], self.real[:, changed])
        return changed

    def _calibrates(self, *, warm: bool, block: int) -> bool:
        """The factors are worked out anew before the rows are rounded."""
        match Smoother(self.rules.scheme.smoother):
            case Smoother.PLAIN | Smoother.HADAMARD:
                due = False
            case Smoother.BAOS:
                due = warm
            case Smoother.FROZEN:
                due = warm and (block == 0 or self.s is None)
            case Smoother.STATIC:
                due = self.s is None
            case Smoother.ORACLE:
                due = True
            case unknown:
                assert_never(unknown)
        return self.rules.smoothed and due

    def _calibrate(self) -> None:
        rules, scheme, lanes = self.rules, self.rules.scheme, self.rules.lanes
        x, real = self.raw, self.real
        maxima = None
        if rules.calibrated is not None:
            maxima, mean = rules.calibrated
            mean = mean if scheme.centre else None
        elif scheme.centre:
            mean = self._mean()
        else:
            mean = None
        self.m = lanes(mean) if mean is not None else None
        if maxima is None:
            maxima = channel_maxima(x if self.m is None else lanes(x - self.m), real, pairs=rules.pairs)
        self.s = smoothing(maxima, scheme, lanes).expand(x.shape[0], -1, -1, -1)

    def _mean(self) -> Tensor:
        """Each channel's mean over the real tokens ([B, H, 1, D]), added up row by row as the machine's lanes do."""
        total, lanes = torch.zeros_like(self.raw[:, :, :1]), self.rules.lanes
        for row in range(self.raw.shape[2]):
            total = lanes(total + self.raw[:, :, row : row + 1] * self.real[:, None, row : row + 1, None])
        return total * (1 / self.real.sum(1).to(total.dtype))[:, None, None, None]

    def _rounded(self, x: Tensor, real: Tensor) -> Tensor:
        rules = self.rules
        if self.m is not None:
            x = rules.lanes(x - self.m) * real[:, None, :, None]
        if self.s is not None:
            x = rules.lanes(x * rules.lanes(1 / self.s))
        if rules.axis == "channels":
            return fake_quantise(x, rules.format, block=rules.block_size, dim=-1)
        return fake_quantise(x, rules.format, block=rules.token_block, dim=-2)
