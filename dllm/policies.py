"""Decoding policies as values: which rows a denoising step forwards, which positions become tokens, how they are ranked.

Compiler, references and device models read the same rows. Whoever decides by a policy matches on all of its values.
"""

from dataclasses import dataclass, field
from enum import Enum

from npu.choices import check_choices, within

NEIGHBOURS = 16
"""Rows on either side of a block that are forwarded with it under `vicinity` (dInfer's prefix_look and after_look)."""


class Rows(Enum):
    """Rows of the canvas that a denoising step forwards; their K and V are written into the cache."""

    CANVAS = "all rows"
    SUFFIX = "from the block to the end"
    BLOCK = "the block alone"
    VICINITY = "the block and its neighbours"

    def of(self, start: int, block_length: int, canvas: int) -> slice:
        """The rows, where the block begins at row `start` of a canvas."""
        return {
            Rows.CANVAS: slice(0, canvas), Rows.SUFFIX: slice(start, canvas), Rows.BLOCK: slice(start, start + block_length),
            Rows.VICINITY: slice(max(0, start - NEIGHBOURS), min(start + block_length + NEIGHBOURS, canvas)),
        }[self]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayedCaching:
    """K and V of a token are cached one step after its commit: steps forward the masks and the rows that were masks a step before
    (dKV-Cache-Decode, arXiv:2505.15781, `generation_utils` of its code).

    Attributes:
        interval: Every so many steps of a block forward all rows.
        full_steps: So do the first ones.
    """

    interval: int = 4
    full_steps: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureCaching:
    """K, V and the results of attention and MLP are cached for every row. Between refreshes a layer computes V of the whole
    response, and all else of the rows whose V is least like the cached one, by its cosine (dLLM-Cache, arXiv:2506.06295).

    Attributes:
        prompt_interval: Every so many steps of a sequence refresh the rows of the prompt (Kp).
        response_interval: Every so many refresh all others (Kr).
        share: Part of the response that is computed between.
        full_layers: First layers, of which every step computes all rows.
    """

    prompt_interval: int = 100
    response_interval: int = 7
    share: float = 0.25
    full_layers: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseAttention:
    """Behind the full steps of a block, each layer keeps those keys outside of it that score highest for the mean query of the
    block, in the mean over heads (Sparse-dLLM, arXiv:2508.02558).

    Attributes:
        kept: Part of the keys outside of the block that stays.
        pool: Neighbours of which each score takes the largest, an odd number.
    """

    kept: float = 0.5
    pool: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePolicy:
    """The rows that the first step of a block forwards, and those of its later steps.

    All rows attend to the whole cache. Where a policy `appends`, the cache holds what came before the block: the prompt is
    forwarded once, a step's rows attend to that and to the block, and a clean forward of the finished block ends it.

    `full_steps` are the steps of a block that forward the rows of the first one; in the first block of a generation so do
    `warm_up` steps. `by_data` says which of the rows that are forwarded are
    due, or which keys they see, where data decide.
    """

    first: Rows = Rows.CANVAS
    later: Rows
    appends: bool = False
    full_steps: int = 1
    warm_up: int = 1
    by_data: DelayedCaching | FeatureCaching | SparseAttention | None = None

    @property
    def caches(self) -> bool:
        """Later steps rely on what the first one left in the cache."""
        return self.later is not self.first

    @property
    def rewrites(self) -> bool:
        """Rows of the cache that later steps rely on are written again, block by block."""
        return (self.caches or self.by_data is not None) and not self.appends

    @property
    def passes(self) -> tuple[Rows, Rows]:
        """The rows of the first step and of later ones."""
        return self.first, self.later

    def first_steps(self, block: int) -> int:
        """Steps of a block, counted from 0, that forward the rows of its first one."""
        return self.full_steps if block else max(self.full_steps, self.warm_up)

    def rows(self, block: int, step: int) -> Rows:
        """The rows that a step of a block forwards, both counted from 0."""
        return self.first if step < self.first_steps(block) else self.later


CACHE_POLICIES = {
    "none": CachePolicy(later=Rows.CANVAS), "prefix": CachePolicy(later=Rows.SUFFIX), "dual": CachePolicy(later=Rows.BLOCK),
    "vicinity": CachePolicy(later=Rows.VICINITY, warm_up=4),
    "append": CachePolicy(first=Rows.BLOCK, later=Rows.BLOCK, appends=True),
    "dkv": CachePolicy(later=Rows.CANVAS, by_data=DelayedCaching()),
    "dllm_cache": CachePolicy(later=Rows.CANVAS, by_data=FeatureCaching()),
    "sparse": CachePolicy(later=Rows.BLOCK, full_steps=2, by_data=SparseAttention()),
}  # fmt: skip
"""By their names in `workload.cache` (prefix and dual: Fast-dLLM, arXiv:2505.22618; vicinity: dInfer, arXiv:2510.08666; append:
SDAR, arXiv:2510.06303). Those whose rows or keys data choose run on the reference path alone."""


class Take(Enum):
    """Masked positions of a block that a step makes tokens, ranked by confidence; ties go to the lowest position."""

    BEST = "best"
    """The first."""
    SURE = "sure"
    """Those of confidence `workload.threshold` or more."""
    QUOTA = "quota"
    """As many as the schedule of `workload.steps` says for this step."""
    EVERY = "every"
    """All."""
    FACTOR = "factor"
    """The most n for which (n + 1) (1 - the confidence of the n-th) is below `workload.factor`, one at least (Fast-dLLM)."""
    DREAM = "dream"
    """Of those that are left, the share of Dream's schedule."""
    WITHIN_BOUND = "within_bound"
    """In ascending order of entropy, as long as the entropies before add up to `workload.entropy_bound` at most."""


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """Which masked positions of a block become tokens after a step: all that one of `takes` takes."""

    takes: tuple[Take, ...]

    def __post_init__(self) -> None:
        assert len(self.takes) == 1 or Take.WITHIN_BOUND not in self.takes, "entropies and confidences rank in two ways"

    @property
    def measures_entropy(self) -> bool:
        """It ranks positions by their entropies."""
        return Take.WITHIN_BOUND in self.takes

    @property
    def is_scheduled(self) -> bool:
        """The number of tokens that it takes is known before it runs."""
        return self.takes == (Take.QUOTA,)


COMMIT_POLICIES = {
    "quota": CommitPolicy((Take.QUOTA,)),
    "threshold": CommitPolicy((Take.SURE, Take.BEST)),
    "factor": CommitPolicy((Take.FACTOR,)),
    "dream": CommitPolicy((Take.DREAM,)),
    "entropy_bound": CommitPolicy((Take.WITHIN_BOUND,)),
}
"""By their names in `workload.commit` (threshold and factor: Fast-dLLM, arXiv:2505.22618; entropy_bound: arXiv:2505.24857)."""


class Diffusion(Enum):
    """The content of those positions of a block that no step has decided."""

    ABSORBING = "absorbing"
    """The mask. A token that a step commits stays."""
    UNIFORM = "uniform"
    """Random tokens. Each step keeps what it accepts and draws the others anew; the output is what the last one says is
    likeliest."""


class Score(Enum):
    """The score by which positions are ranked."""

    MASKGIT_PLUS = "maskgit_plus"
    TOPK_MARGIN = "topk_margin"
    ENTROPY = "entropy"
    RANDOM = "random"


class Smoother(Enum):
    """The treatment of the channels of K and V before they are rounded into the cache."""

    PLAIN = "plain"
    BAOS = "baos"
    FROZEN = "frozen"
    STATIC = "static"
    ORACLE = "oracle"
    HADAMARD = "hadamard"

    @property
    def divides(self) -> bool:
        """Every channel is divided by a factor."""
        match self:
            case Smoother.BAOS | Smoother.FROZEN | Smoother.STATIC | Smoother.ORACLE:
                return True
            case Smoother.PLAIN | Smoother.HADAMARD:
                return False

    @property
    def measured(self) -> str:
        """When a program measures the channels: at each block's first step (each), at the first block's (once); empty: never."""
        match self:
            case Smoother.BAOS:
                return "each"
            case Smoother.FROZEN:
                return "once"
            case Smoother.PLAIN | Smoother.STATIC | Smoother.ORACLE | Smoother.HADAMARD:
                return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """A model's decoding where the workload does not state it; each field stands for the workload's field of that name.

    Attributes:
        generation_length: Tokens that are generated.
        block_length: Tokens that are denoised together.
        steps_per_block: Denoising steps of a block, where commits follow a schedule.
        cache: The cache policy.
        commit: The commit policy.
        threshold: The confidence from which `commit=threshold` commits.
        sub_block_length: Positions of a block that are filled together; null: all.
        sub_block_cache: Later steps forward these alone.
        diffusion: Content of undecided positions.
        entropy_bound: That of `commit=entropy_bound`.
        temperature: The temperature of draws, at the first step of a block.
        last_temperature: The temperature that it falls towards over the steps of a block; null: it stays.
        stop_entropy: The mean entropy below which a block of `diffusion=uniform` may end early; null: it takes all steps.
        default_prompt: Text to go on from where no prompt is given; null: one must be.
    """

    generation_length: int = field(default=256, metadata=within(1, 1 << 20))
    block_length: int = field(default=32, metadata=within(1, 1 << 13))
    steps_per_block: int | None = field(default=None, metadata=within(1, 1 << 13))
    cache: str = "dual"
    commit: str = "quota"
    threshold: float = field(default=0.9, metadata=within(1e-6, 1.0))
    sub_block_length: int | None = field(default=None, metadata=within(1, 1 << 13, power_of_two=True))
    sub_block_cache: bool = False
    diffusion: str = "absorbing"
    entropy_bound: float = field(default=0.1, metadata=within(1e-6, 1e6))
    temperature: float = field(default=0.0, metadata=within(0.0, 1e3))
    last_temperature: float | None = field(default=None, metadata=within(1e-3, 1e3))
    stop_entropy: float | None = field(default=None, metadata=within(1e-6, 1e2))
    default_prompt: str | None = None

    def __post_init__(self) -> None:
        check_choices("model.decoding", self)


ON_MACHINE = frozenset({
    Take.BEST, Take.SURE, Take.QUOTA, Take.EVERY, Take.WITHIN_BOUND, Score.MASKGIT_PLUS, Score.RANDOM, Smoother.PLAIN,
    Smoother.BAOS, Smoother.FROZEN, Smoother.STATIC, Smoother.HADAMARD,
})  # fmt: skip
"""Values that programs support; the rest runs on the reference path alone."""
