"""The numerics of a generation: number formats, the blocks of the KV cache, and the smoothing of its channels."""

from dataclasses import dataclass, field, replace

from dllm.policies import Smoother
from npu.choices import check_choices, one_of, within
from npu.errors import TripathError
from npu.formats import FORMATS

CONFIDENCES = ("bf16", "fp32", "fp64")
AXES = ("channels", "tokens")
AUTO = "auto"
SIDES = ("keys", "values")
"""Of the KV cache, in the order in which a row has them."""
BLOCK_SIZES = (8, 16, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """Smoothing of the channels of K and V before they are rounded into the cache (docs/kv_quantisation.md).

    Programs support less than the reference path does: `reference_only`.

    Attributes:
        scheme: baos: every channel is divided by s = (c / geomean(c))^alpha, where c is its largest absolute value over the
            tokens at the block's first step, and geomean is taken over its head. frozen: s of block 0. static: s of a calibration
            set. oracle: s anew at every step. hadamard: a rotation of the channels.
        alpha: Exponent of s.
        power_of_two: Round s to a power of two.
        keys: Smooth K.
        values: Smooth V.
        centre: Subtract each channel's mean first.
        pre_rope: Store keys before the rotation.
    """

    scheme: str = field(default="plain", metadata=one_of([each.value for each in Smoother]))
    alpha: float = field(default=1.0, metadata=within(1e-6, 1.0))
    power_of_two: bool = False
    keys: bool = True
    values: bool = True
    centre: bool = False
    pre_rope: bool = False

    def __post_init__(self) -> None:
        check_choices("numerics.smoothing", self)
        if self.smoother is Smoother.HADAMARD and self.pre_rope:
            raise TripathError("numerics.smoothing.pre_rope: a rotation of all channels does not commute with RoPE")

    @property
    def smoother(self) -> Smoother:
        """The scheme."""
        return Smoother(self.scheme)

    @property
    def sides(self) -> list[str]:
        """Whose channels are divided by factors, of `keys` and `values`."""
        return [side for side in SIDES if self.smoother.divides and getattr(self, side)]

    @property
    def mixed(self) -> list[str]:
        """Whose channels a Hadamard matrix mixes, of `keys` and `values`."""
        return [side for side in SIDES if self.smoother is Smoother.HADAMARD and getattr(self, side)]

    @property
    def measured(self) -> str:
        """When a program measures the channels (`Smoother.measured`); never where no side is smoothed."""
        return self.smoother.measured if self.sides else ""

    @property
    def centres(self) -> bool:
        """True if means are subtracted from the channels that are smoothed."""
        return self.centre and bool(self.sides)


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """Formats, and how the KV cache is cut into blocks that share a scale.

    A product contracts K along channels and V along tokens: a block along the other axis is de-quantised to BF16 on load.

    Attributes:
        weights: Format of the weights.
        activations: Format of the activations at the array.
        kv: Format of the KV cache.
        logits: Format of the logits in HBM, where they go there (`compiler.sampling=stored`).
        router: Format of what chooses experts: its weights, and its activations at the array.
        k_axis: Along what the blocks of K run.
        v_axis: Along what the blocks of V run. auto: along tokens, or along channels where the tokens that a step writes take no
            whole bytes (one token of 4 or 6 bits an element).
        block_size: Elements that share a scale; along tokens never more than a block of the generation.
        confidences: Precision in which probabilities are computed; the machine's is bf16.
        smoothing: Treatment of the channels of K and V before they are stored.
    """

    weights: str = field(metadata=one_of(FORMATS))
    activations: str = field(metadata=one_of(FORMATS))
    kv: str = field(metadata=one_of(FORMATS))
    logits: str = field(metadata=one_of(FORMATS))
    router: str = field(default="bf16", metadata=one_of(FORMATS))
    k_axis: str = field(default="channels", metadata=one_of(AXES))
    v_axis: str = field(default="tokens", metadata=one_of((*AXES, AUTO)))
    block_size: int = field(default=32, metadata=one_of(BLOCK_SIZES))
    confidences: str = field(default="bf16", metadata=one_of(CONFIDENCES))
    smoothing: Smoothing = field(default_factory=Smoothing)

    def __post_init__(self) -> None:
        check_choices("numerics", self)

    def axis_of(self, side: str) -> str:
        """Along what the blocks of `keys` or `values` run."""
        axis = {"keys": self.k_axis, "values": self.v_axis}[side]
        assert axis != AUTO, "`suited` chooses"
        return axis

    def suited(self, written_rows: int) -> "Numerics":
        """With an axis for the blocks of V, where steps write so many rows at least.

        Raises:
            TripathError: the tokens of a block take no whole bytes.
        """
        block = self.token_block(written_rows)
        whole = FORMATS[self.kv].fills_bytes(block)
        found = replace(self, v_axis="tokens" if whole else "channels") if self.v_axis == AUTO else self
        for key in ("k_axis", "v_axis"):
            if getattr(found, key) == "tokens" and not whole:
                raise TripathError(
                    f"numerics.{key}: blocks of {block} tokens (workload.block_length) of numerics.kv={self.kv} take no whole "
                    "bytes; channels has blocks that do"
                )
        return found

    def token_block(self, written_rows: int) -> int:
        """Tokens of an MX block that runs along tokens, of which steps write so many at least."""
        return min(self.block_size, written_rows)
