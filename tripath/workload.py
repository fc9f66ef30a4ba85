"""What is generated: the canvas, its blocks, and the decoding policies; and the numerics it is generated with."""

from dataclasses import dataclass, field

from tripath.errors import TripathError
from tripath.formats import FORMATS

STAGES = ("generation", "sampling")
CACHE_POLICIES = ("none", "prefix", "dual")
COMMIT_POLICIES = ("quota", "threshold", "factor", "dream")
SCORES = ("maskgit_plus", "topk_margin", "entropy")
SMOOTHERS = ("plain", "baos", "frozen", "static", "oracle", "hadamard")
CONFIDENCES = ("bf16", "fp32", "fp64")
AXES = ("channels", "tokens")
BLOCK_SIZES = (8, 16, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A generation: `batch` sequences, each a prompt and `generation_length` masked tokens, decoded block by block.

    `steps` is the total of denoising steps over the generation, a multiple of the number of blocks. `prompt_length`
    (tokens) stands in where no prompt text is given. With `commit="threshold"` positions of confidence >= `threshold`
    are committed and always the best one; steps then only serves as the schedule when no trace exists. "factor" commits
    the largest n with (n + 1)(1 - n-th confidence) < `factor`, "dream" what Dream's schedule of times says, over a block.
    `score` ranks positions: maskgit_plus by the largest probability, topk_margin by its lead, entropy by the negative
    entropy. Programs know less: `reference_only`. `stage="sampling"` is the sampling stage of one step of one block
    alone, its logits given: a program for measurements.
    """

    prompt: str | None = None
    prompts_file: str | None = None
    prompt_length: int | None = None
    generation_length: int
    block_length: int
    steps: int
    batch: int = 1
    cache: str = "dual"
    commit: str = "quota"
    threshold: float = 0.9
    factor: float = 1.0
    score: str = "maskgit_plus"
    stage: str = "generation"

    def __post_init__(self) -> None:
        if self.block_length not in (4, 8, 16, 32, 64):
            raise TripathError(f"workload.block_length: must be 4, 8, 16, 32 or 64, got {self.block_length}")
        if self.generation_length < 1 or self.generation_length % self.block_length:
            raise TripathError(
                f"workload.generation_length: must be a positive multiple of workload.block_length "
                f"{self.block_length}, got {self.generation_length}"
            )
        if self.steps < 1 or self.steps % self.blocks:
            raise TripathError(
                f"workload.steps: must be a positive multiple of the number of blocks {self.blocks}, got {self.steps}"
            )
        if self.steps_per_block > self.block_length:
            raise TripathError(
                f"workload.steps: {self.steps_per_block} steps per block exceed workload.block_length "
                f"{self.block_length} (a step commits at least one token)"
            )
        if self.batch < 1:
            raise TripathError(f"workload.batch: must be at least 1, got {self.batch}")
        if self.stage not in STAGES:
            raise TripathError(f"workload.stage: unknown stage {self.stage!r}, one of {', '.join(STAGES)}")
        if self.stage == "sampling" and (self.blocks, self.steps) != (1, 1):
            raise TripathError(
                f"workload.stage: sampling is one step of one block, got workload.steps {self.steps} of {self.blocks} blocks"
            )
        if self.cache not in CACHE_POLICIES:
            raise TripathError(f"workload.cache: unknown policy {self.cache!r}, one of {', '.join(CACHE_POLICIES)}")
        if self.commit not in COMMIT_POLICIES:
            raise TripathError(f"workload.commit: unknown policy {self.commit!r}, one of {', '.join(COMMIT_POLICIES)}")
        if self.score not in SCORES:
            raise TripathError(f"workload.score: unknown score {self.score!r}, one of {', '.join(SCORES)}")
        if self.factor <= 0.0:
            raise TripathError(f"workload.factor: must be positive, got {self.factor}")
        if not 0.0 < self.threshold <= 1.0:
            raise TripathError(f"workload.threshold: must be in (0, 1], got {self.threshold}")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise TripathError(f"workload.prompt_length: must be at least 1, got {self.prompt_length}")

    @property
    def blocks(self) -> int:
        """Number of blocks of the generation."""
        return self.generation_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Denoising steps scheduled for each block."""
        return self.steps // self.blocks

    def quotas(self) -> list[int]:
        """Tokens committed at each step of a block: m // T each, the first m % T one more (LLaDA)."""
        share, extra = divmod(self.block_length, self.steps_per_block)
        return [share + (step < extra) for step in range(self.steps_per_block)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """What is done to the channels of K and V before they are rounded into the cache (docs/kv_quantisation.md).

    `scheme` baos: every channel is divided by s = (c / geomean(c))^alpha, c its largest absolute value over the tokens at
    the block's first step, geomean over its head; `power_of_two` rounds s to one. `keys`, `values`: which are smoothed.
    frozen: s of block 0; static: s of a calibration set; oracle: s anew at every step; hadamard: a rotation of the channels.
    `centre`: each channel's mean is subtracted first. `pre_rope`: keys are stored before the rotation. Programs know less:
    `reference_only`.
    """

    scheme: str = "plain"
    alpha: float = 1.0
    power_of_two: bool = False
    keys: bool = True
    values: bool = True
    centre: bool = False
    pre_rope: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SMOOTHERS:
            raise TripathError(f"numerics.smoothing.scheme: unknown {self.scheme!r}, one of {', '.join(SMOOTHERS)}")
        if not 0.0 < self.alpha <= 1.0:
            raise TripathError(f"numerics.smoothing.alpha: must be in (0, 1], got {self.alpha}")
        if self.scheme == "hadamard" and self.pre_rope:
            raise TripathError("numerics.smoothing.pre_rope: a rotation of all channels does not commute with RoPE")

    @property
    def sides(self) -> list[str]:
        """What is smoothed, of `keys` and `values`."""
        return [side for side in ("keys", "values") if self.scheme != "plain" and getattr(self, side)]

    @property
    def measured(self) -> str:
        """When a program measures the channels: at each block's warm steps (each), at the first block's (once), or never."""
        return {"baos": "each", "frozen": "once"}.get(self.scheme, "never") if self.sides else "never"

    @property
    def centres(self) -> bool:
        """Whether means are subtracted of what is smoothed."""
        return self.centre and bool(self.sides)


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """Formats of weights, of activations at the array, of the KV cache, and of the logits in HBM; the cache's blocks.

    `k_axis`, `v_axis`: along what the blocks of K and V run. A product contracts K along channels and V along tokens: a
    block along the other axis is de-quantised to BF16 on load. `block_size`: elements that share a scale (along tokens
    never more than a block of the generation). `confidences`: what probabilities are computed in; bf16 is the machine's way.
    """

    weights: str
    activations: str
    kv: str
    logits: str
    k_axis: str = "channels"
    v_axis: str = "tokens"
    block_size: int = 32
    confidences: str = "bf16"
    smoothing: Smoothing = field(default_factory=Smoothing)

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            known = ", ".join(map(str, BLOCK_SIZES))
            raise TripathError(f"numerics.block_size: must be one of {known}, got {self.block_size}")
        if self.confidences not in CONFIDENCES:
            known = ", ".join(CONFIDENCES)
            raise TripathError(f"numerics.confidences: unknown {self.confidences!r}, one of {known}")
        for axis in ("k_axis", "v_axis"):
            if getattr(self, axis) not in AXES:
                raise TripathError(f"numerics.{axis}: unknown {getattr(self, axis)!r}, one of {', '.join(AXES)}")
        for name in ("weights", "activations", "kv", "logits"):
            if getattr(self, name) not in FORMATS:
                raise TripathError(
                    f"numerics.{name}: unknown format {getattr(self, name)!r}, one of {', '.join(FORMATS)}"
                )


def reference_only(workload: Workload, numerics: Numerics) -> str:
    """The first choice that no program carries out, as `key=value`: the reference path alone does. Empty: there is none."""
    smoothing = numerics.smoothing
    static = smoothing.scheme == "static"  # its calibration is that of keys after RoPE, with their means
    # Keys that are turned late pass Vector SRAM as rows: not blocks along tokens; their means are not given back there.
    rotatable = numerics.k_axis == "channels" and not static and not (smoothing.centre and "keys" in smoothing.sides)
    choices = {
        "workload.commit": (workload.commit, ("quota", "threshold")),
        "workload.score": (workload.score, ("maskgit_plus",)),
        "numerics.smoothing.scheme": (smoothing.scheme, ("plain", "baos", "frozen", "static")),
        "numerics.smoothing.centre": (smoothing.centre, (False, not static)),
        "numerics.smoothing.pre_rope": (smoothing.pre_rope, (False, rotatable)),
        "numerics.confidences": (numerics.confidences, ("bf16",)),
    }
    return next((f"{key}={str(value).lower()}" for key, (value, known) in choices.items() if value not in known), "")
