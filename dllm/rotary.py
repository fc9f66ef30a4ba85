"""Angles of rotary embeddings, and how they are stretched to longer contexts."""

from dataclasses import dataclass, field

import numpy as np

from npu.choices import check_choices, one_of, within
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """The scaling of rotary angles beyond the context that a model was first trained on.

    Attributes:
        kind: linear: every angle is divided by `factor`. llama3: angles of long waves are divided, those of short waves stay; in
            between, the share is linear in the number of waves that a pair of channels has in the context. yarn: the same, but
            linear in the number of the pair.
        factor: The context grows by this factor.
        original_context: Tokens of the context before.
        low: A pair with at most this many waves in that context is stretched in full (llama3: low_freq_factor, yarn: beta_slow).
        high: A pair with at least this many waves is not stretched (llama3: high_freq_factor, yarn: beta_fast).
    """

    kind: str = field(metadata=one_of(("linear", "llama3", "yarn")))
    factor: float = field(metadata=within(1.0, 1024.0))
    original_context: int = field(default=8192, metadata=within(1, 1 << 24))
    low: float = field(default=1.0, metadata=within(1e-3, 1e6))
    high: float = field(default=4.0, metadata=within(1e-3, 1e6))

    def __post_init__(self) -> None:
        check_choices("model.rope_scaling", self)
        if self.low >= self.high:
            raise TripathError(f"model.rope_scaling.low: {self.low} is not below model.rope_scaling.high {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """Angles of a rotary embedding: pair j of n channels turns by theta^(-2j / n) a token, unless `scaling` stretches it; those
    from number `pairs` on stay."""

    theta: float
    scaling: Scaling | None = None
    pairs: int | None = None

    def frequencies(self, channels: int) -> np.ndarray:
        """Angle of a token's step for each pair of so many channels, float64 [channels / 2]."""
        plain, scaling = self.theta ** (-np.arange(0, channels, 2) / channels), self.scaling
        if self.pairs is not None:
            plain[self.pairs :] = 0.0
        if scaling is None:
            return plain
        context = scaling.original_context
        match scaling.kind:
            case "linear":
                return plain / scaling.factor
            case "llama3":  # arXiv:2407.21783 and the checkpoints' rope_scaling
                kept = (context * plain / (2 * np.pi) - scaling.low) / (scaling.high - scaling.low)
            case "yarn":  # arXiv:2309.00071: the pairs of so many waves, rounded outwards
                first, last = (
                    channels * np.log(context / (waves * 2 * np.pi)) / (2 * np.log(self.theta))
                    for waves in (scaling.high, scaling.low)
                )
                first, last = max(np.floor(first), 0), min(np.ceil(last), channels - 1)
                kept = 1 - (np.arange(len(plain)) - first) / max(last - first, 0.001)
            case other:
                raise AssertionError(f"{other} is no kind of scaling")
        kept = np.clip(kept, 0.0, 1.0)
        return kept * plain + (1 - kept) * plain / scaling.factor
