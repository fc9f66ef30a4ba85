"""What is generated: the canvas, its blocks, and the decoding policies; and the numerics it is generated with."""

from dataclasses import dataclass

from tripath.errors import TripathError
from tripath.formats import FORMATS

STAGES = ("generation", "sampling")
CACHE_POLICIES = ("none", "prefix", "dual")
COMMIT_POLICIES = ("quota", "threshold")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A generation: `batch` sequences, each a prompt and `generation_length` masked tokens, decoded block by block.

    `steps` is the total of denoising steps over the generation, a multiple of the number of blocks. `prompt_length`
    (tokens) stands in where no prompt text is given. With `commit="threshold"` positions of confidence >= `threshold`
    are committed and always the best one; steps then only serves as the schedule when no trace exists. `stage="sampling"`
    is the sampling stage of one step of one block alone, its logits given: a program for measurements.
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
class Numerics:
    """Formats of weights, of activations at the array, of the KV cache, and of the logits in HBM."""

    weights: str
    activations: str
    kv: str
    logits: str

    def __post_init__(self) -> None:
        for field in ("weights", "activations", "kv", "logits"):
            if getattr(self, field) not in FORMATS:
                raise TripathError(
                    f"numerics.{field}: unknown format {getattr(self, field)!r}, one of {', '.join(FORMATS)}"
                )
