"""The workload of a generation: the canvas, its blocks, and the decoding policies."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate, product

from dllm.answers import ANSWER, answer_pattern
from dllm.numerics import Numerics
from dllm.policies import (
    CACHE_POLICIES,
    COMMIT_POLICIES,
    NEIGHBOURS,
    ON_MACHINE,
    CachePolicy,
    CommitPolicy,
    Decoding,
    Diffusion,
    Rows,
    Score,
    Smoother,
    Take,
)
from npu.choices import check_choices, one_of, within
from npu.errors import TripathError

STAGES = ("generation", "sampling")
EXPERT_LOADS = ("uniform", "zipf")
BLOCK_LENGTHS = tuple(1 << power for power in range(14))
MOST_TOKENS = 1 << 20
"""Of a sequence. A model states its own limit, `max_sequence`; this one holds before the model is looked at."""

HOTTEST = 1e3
COLDEST = 1e-3
"""Temperatures; a colder one above 0 would leave the range in which FP32 tells noise from logits."""
EDITS = 16
"""Steps that may go on editing a block that holds no mask (LLaDA2.1's generate)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLoop:
    """A loop over denoising steps, of which a block has one, or one or two for each of its parts.

    Attributes:
        first: Of its positions in the block, whose masks become tokens.
        length: Number of these positions.
        most: Steps that it takes at most.
        alone: Its steps forward these positions alone, others the whole block.
        number: Of its first step, for random numbers.
        skips: It takes no step where there is nothing to do; others take at least one.
    """

    first: int
    length: int
    most: int
    alone: bool = False
    number: int = 0
    skips: bool = False

    @property
    def positions(self) -> slice:
        """Its positions in the block."""
        return slice(self.first, self.first + self.length)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A generation: `batch` sequences, each a prompt and masked tokens, decoded block by block.

    Programs carry out less than the reference path does: `reference_only`.

    Attributes:
        prompt: Text to go on from; null: that of a file, or so many tokens, or `default_prompt`.
        prompts_file: A file with one prompt a line, for a batch; NAME.jsonl: each an object with `prompt` or `token_ids`, and
            with `result`, a whole number, where its answer is to be judged.
        prompt_length: Tokens of a prompt that stands in where no text is given.
        generation_length: Masked tokens of each sequence, a multiple of `block_length`.
        block_length: Tokens that are denoised together.
        steps: Denoising steps over the whole generation, a multiple of the number of blocks.
        batch: Sequences; null: as many as `prompts_file` has lines, else 1. One prompt is repeated.
        cache: Rows that a refine step recomputes: all (none), from the block to the end (prefix), the block alone (dual, append);
            the block and its neighbours (vicinity); append: each block attends to the blocks before it, whose K and V are final,
            and to itself. dkv: masks and the rows committed last. dllm_cache: the rows whose V changed most. sparse: the block,
            which sees half of the other keys.
        commit: Which tokens stay after a step. quota: equally many each step. threshold: those of confidence
            `threshold` and always the best one; `steps` is then the schedule where no trace exists. factor: the largest n
            with (n + 1)(1 - n-th confidence) < `factor`. dream: what Dream's schedule of times says, over a block.
            entropy_bound: in ascending order of entropy, those before which entropies add up to at most `entropy_bound`.
        threshold: Confidence from which `commit=threshold` commits.
        edit_threshold: Confidence from which `commit=threshold` replaces a token of the block that it committed before
            (LLaDA2.1); the block then goes on until a step changes nothing, for `block_length` + EDITS + 1 steps at most. null: a
            token stays.
        sub_block_length: A block is filled in parts of so many positions, one after the other; only masks of the present one
            become tokens (Fast-dLLM v2). null: all masks of a block are candidates at once.
        sub_block_cache: A step forwards the present part alone, once its first token is known and K and V of all of the block
            have been computed; the other parts then keep theirs of before.
        stop_at_end: Once every sequence has an end token in the blocks that are finished, the blocks behind them are not decoded.
        factor: That of `commit=factor`.
        entropy_bound: That of `commit=entropy_bound`, in nats of softmax without temperature (SGLang 0.15), or under
            `diffusion=uniform` with it (DiffusionGemma 0.1).
        diffusion: Content of positions that no step has decided. absorbing: the mask, which a committed token replaces for good.
            uniform: random tokens; each step draws a token for every position, accepts those that `commit=entropy_bound` takes,
            and draws the rest anew from the whole vocabulary. What the last step says is likeliest is the output
            (DiffusionGemma).
        expert_load: Choice of experts where no data say: uniform, zipf (the n-th expert in proportion to 1 / n), or a file
            with a number for each expert, a list in JSON.
        expert_seed: Of the rows' choices under `expert_load`.
        score: Ranking of positions: the probability of their token (maskgit_plus), the lead of the largest one
            (topk_margin), the negative entropy (entropy), a random number between 0 and 1 (random: LLaDA's random re-masking).
        temperature: Tokens are drawn from the softmax of the logits over it, by Gumbel noise; 0: the largest logit. Confidences
            are of the softmax without it, as LLaDA has them; under `diffusion=uniform` logits are divided by it before all else.
        guidance: Weight w of classifier-free guidance (LLaDA's `cfg_scale`): a second pass, its prompt masked, gives logits z',
            and z + w (z - z') takes the place of z. 0: one pass.
        last_temperature: Under `diffusion=uniform` the temperature falls towards it in equal parts over the steps of a block, so
            that a step behind the last one would have it; null: it stays.
        stop_entropy: A sequence is done with its block under `diffusion=uniform` once the likeliest tokens are those of the step
            before and the mean entropy is below it, in nats; null: it takes all steps.
        seed: Key of the random numbers of `temperature`, `score=random` and `diffusion=uniform` (docs/numerics.md).
        answer: A regular expression whose group is the number that a text answers with, where prompts come with their results.
        stage: sampling is the sampling stage of one step of one block alone, its logits given: for measurements.
    """

    prompt: str | None = None
    prompts_file: str | None = None
    prompt_length: int | None = field(default=None, metadata=within(1, MOST_TOKENS))
    generation_length: int = field(metadata=within(1, MOST_TOKENS))
    block_length: int = field(metadata=one_of(BLOCK_LENGTHS))
    steps: int = field(metadata=within(1, MOST_TOKENS))
    batch: int = field(default=1, metadata=within(1, 1 << 16))
    cache: str = field(default="dual", metadata=one_of(CACHE_POLICIES))
    commit: str = field(default="quota", metadata=one_of(list(COMMIT_POLICIES)))
    threshold: float = field(default=0.9, metadata=within(1e-6, 1.0))
    edit_threshold: float | None = field(default=None, metadata=within(1e-6, 1.0))
    sub_block_length: int | None = field(default=None, metadata=within(1, BLOCK_LENGTHS[-1], power_of_two=True))
    sub_block_cache: bool = False
    stop_at_end: bool = False
    factor: float = field(default=1.0, metadata=within(1e-6, 1e6))
    entropy_bound: float = field(default=0.1, metadata=within(1e-6, 1e6))
    expert_load: str = "uniform"
    expert_seed: int = field(default=0, metadata=within(0, (1 << 32) - 1))
    score: str = field(default="maskgit_plus", metadata=one_of([each.value for each in Score]))
    diffusion: str = field(default="absorbing", metadata=one_of([each.value for each in Diffusion]))
    temperature: float = field(default=0.0, metadata=within(0.0, HOTTEST))
    guidance: float = field(default=0.0, metadata=within(0.0, 1e3))
    last_temperature: float | None = field(default=None, metadata=within(COLDEST, HOTTEST))
    stop_entropy: float | None = field(default=None, metadata=within(1e-6, 1e2))
    seed: int = field(default=0, metadata=within(0, (1 << 31) - 1))
    answer: str = ANSWER
    stage: str = field(default="generation", metadata=one_of(STAGES))

    def __post_init__(self) -> None:
        check_choices("workload", self)
        answer_pattern(self.answer)
        if self.generation_length % self.block_length:
            raise TripathError(
                f"workload.generation_length: must be a multiple of workload.block_length "
                f"{self.block_length}, got {self.generation_length}"
            )
        if self.steps % self.blocks:
            raise TripathError(
                f"workload.steps: must be a multiple of the number of blocks {self.blocks}, got {self.steps}"
            )
        if self.steps_per_block > self.block_length:
            raise TripathError(
                f"workload.steps: {self.steps_per_block} steps per block exceed workload.block_length "
                f"{self.block_length} (a step commits at least one token)"
            )
        if self.edits and (Take.SURE not in self.commits.takes or self.samples_only):
            raise TripathError(
                f"workload.edit_threshold: commit=threshold edits tokens, not commit={self.commit}, stage={self.stage}"
            )
        if 0 < self.temperature < COLDEST:
            raise TripathError(f"workload.temperature: must be 0 or at least {COLDEST}, got {self.temperature}")
        self._check_diffusion()
        self._check_sub_blocks()
        if self.edits and self.ranks_at_random:
            raise TripathError(
                "workload.score: random ranks masks, workload.edit_threshold needs confidences; one of the two"
            )
        if self.commits.measures_entropy and self.score != Score.MASKGIT_PLUS.value:
            raise TripathError(
                f"workload.score: commit={self.commit} ranks by entropies, got {self.score}; leave maskgit_plus"
            )
        if self.draws and self.batch * self.block_length * self.streams > 1 << 32:
            raise TripathError(
                f"workload.batch: random numbers have 2^32 streams, {self.batch} sequences of blocks of {self.block_length} need "
                f"{self.batch * self.block_length * self.streams}"
            )
        if self.caches.warm_up > 1 and (self.edits or self.block_length < NEIGHBOURS):
            key = "edit_threshold" if self.edits else "block_length"
            raise TripathError(
                f"workload.{key}: cache={self.cache} needs blocks of {NEIGHBOURS} at least, without editing, "
                f"got {getattr(self, key)}"
            )
        if self.guided and (self.samples_only or self.caches.appends):
            other = f"stage={self.stage}" if self.samples_only else f"cache={self.cache}"
            raise TripathError(f"workload.guidance: needs a generation under cache=none, prefix or dual, got {other}")
        if self.samples_only and self.stop_at_end:
            raise TripathError("workload.stop_at_end: stage=sampling is one step, which ends nothing")
        if self.samples_only and (self.blocks, self.steps) != (1, 1):
            raise TripathError(
                f"workload.stage: sampling is one step of one block, got workload.steps {self.steps} of {self.blocks} blocks"
            )

    def _check_diffusion(self) -> None:
        """Raise where keys are of one kind of diffusion and the workload of the other."""
        uniform = self.is_uniform
        rules = [
            (not uniform or self.commits.measures_entropy, "commit", "diffusion=uniform accepts by entropy_bound"),
            (not uniform or self.caches.appends, "cache", "diffusion=uniform needs append"),
            (not uniform or self.temperature > 0, "temperature", "diffusion=uniform draws tokens, and needs one above 0"),
            (not uniform or not self.samples_only, "stage", "diffusion=uniform needs generation"),
            (uniform or self.last_temperature is None, "last_temperature", "is of diffusion=uniform alone"),
            (uniform or self.stop_entropy is None, "stop_entropy", "is of diffusion=uniform alone"),
        ]  # fmt: skip
        for holds, key, rule in rules:
            if not holds:
                raise TripathError(f"workload.{key}: {rule}, got {getattr(self, key)}")

    def _check_sub_blocks(self) -> None:
        """Raise where a block is to be filled in parts that this decoding has not."""
        length = self.sub_block_length
        if length is not None and length > self.block_length:
            raise TripathError(f"workload.sub_block_length: {length} exceeds workload.block_length {self.block_length}")
        if self.sub_block_cache and self.sub_blocks == 1:
            raise TripathError(
                f"workload.sub_block_cache: needs blocks of several parts, workload.sub_block_length is {length}"
            )
        rules = [
            (self.caches.appends, f"cache={self.cache}"),
            (Take.SURE in self.commits.takes, f"commit={self.commit}"),
            (not self.edits, f"edit_threshold={self.edit_threshold}"),
            (not self.samples_only, f"stage={self.stage}"),
        ]
        for holds, given in rules:
            if self.sub_blocks > 1 and not holds:
                raise TripathError(
                    "workload.sub_block_length: parts of a block are filled under cache=append and commit=threshold, without "
                    f"editing, got {given}; workload.sub_block_length={self.block_length} leaves blocks whole"
                )

    @property
    def is_uniform(self) -> bool:
        """Undecided positions hold random tokens."""
        return Diffusion(self.diffusion) is Diffusion.UNIFORM

    def temperatures(self) -> list[float]:
        """The temperature of each step of a block, where it falls."""
        last, steps = self.last_temperature, self.steps_per_block
        falls = 0.0 if last is None else (self.temperature - last) / steps
        return [self.temperature - falls * step for step in range(steps)]

    @property
    def blocks(self) -> int:
        """Number of blocks of the generation."""
        return self.generation_length // self.block_length

    @property
    def sub_blocks(self) -> int:
        """Parts of a block that are filled one after the other."""
        return self.block_length // (self.sub_block_length or self.block_length)

    @property
    def part_length(self) -> int:
        """Positions of a block that are filled together."""
        return self.block_length // self.sub_blocks

    @property
    def written_rows(self) -> int:
        """The fewest rows of a block whose K and V a step writes, or of its neighbours."""
        if Rows.VICINITY in self.caches.passes:
            return NEIGHBOURS
        return self.part_length if self.sub_block_cache else self.block_length

    def step_loops(self, block: int) -> list[StepLoop]:
        """The loops over the denoising steps of a block, counted from 0, in their order."""
        if self.caches.warm_up > 1:
            whole, first = {"first": 0, "length": self.block_length, "skips": True}, self.caches.first_steps(block)
            return [
                StepLoop(**whole, most=first),
                StepLoop(**whole, most=self.most_steps - first, number=first),
            ]
        if self.sub_blocks == 1:
            return [StepLoop(first=0, length=self.block_length, most=self.most_steps)]
        length, kinds = self.part_length, (False, True) if self.sub_block_cache else (False,)
        return [
            StepLoop(first=part * length, length=length, most=length, alone=alone, number=number * length, skips=True)
            for number, (part, alone) in enumerate(product(range(self.sub_blocks), kinds))
        ]

    @property
    def guided(self) -> bool:
        """A second pass of each step guides the first."""
        return self.guidance > 0

    @property
    def forwarded_sequences(self) -> int:
        """Sequences that a pass forwards: the batch, and where it is guided the batch once more with its prompts masked."""
        return self.batch * (1 + self.guided)

    @property
    def edits(self) -> bool:
        """Steps also replace tokens that their block committed before."""
        return self.edit_threshold is not None

    @property
    def ranks_at_random(self) -> bool:
        """Positions are ranked by random numbers."""
        return Score(self.score) is Score.RANDOM

    @property
    def draws(self) -> bool:
        """Random numbers decide about tokens or commits."""
        return self.temperature > 0 or self.ranks_at_random

    @property
    def streams(self) -> int:
        """Streams of random numbers of a position of the block: one for each block and step, and one for what a block begins
        with: its first token where that is no step's doing, or random tokens."""
        return (self.blocks + 1) * (self.most_steps + 1)

    @property
    def most_steps(self) -> int:
        """Denoising steps of a block at most."""
        if self.is_uniform:
            return self.steps_per_block
        return self.block_length * (1 + self.sub_block_cache) + (EDITS + 1 if self.edits else 0)

    @property
    def steps_per_block(self) -> int:
        """Denoising steps scheduled for each block."""
        return self.steps // self.blocks

    @property
    def samples_only(self) -> bool:
        """Only the sampling stage of one step is run, its logits given."""
        return self.stage == "sampling"

    @property
    def caches(self) -> CachePolicy:
        """The cache policy."""
        return CACHE_POLICIES[self.cache]

    @property
    def commits(self) -> CommitPolicy:
        """The commit policy."""
        return COMMIT_POLICIES[self.commit]

    def scheduled_steps(self, masks: int) -> int:
        """Denoising steps that the schedule takes for so many masks of a block: that of quotas, or all."""
        if self.is_uniform:
            return self.steps_per_block
        filled = list(accumulate(self.quotas()))
        return next(steps for steps, tokens in enumerate(filled, 1) if tokens >= masks)

    def scheduled_loops(self, block: int, masks: int) -> list[int]:
        """Denoising steps that each of a block's `step_loops` takes where its last `masks` positions are masks and commits keep
        to a schedule. Where parts are forwarded alone, one step over the whole block tells the first token of each."""
        if self.sub_blocks == 1:
            steps, loops = self.scheduled_steps(masks), self.step_loops(block)
            return [min(steps, loops[0].most), *(steps - min(steps, loops[0].most) for _ in loops[1:])]
        found, given, begun = [], self.block_length - masks, False
        for loop in self.step_loops(block):
            left = min(loop.length, loop.first + loop.length - given)
            steps = -(-left * self.steps_per_block // self.block_length) if left > 0 else 0
            if loop.alone:
                found.append(steps - found[-1])
            else:
                whole = min(steps, int(left == loop.length or not begun)) if self.sub_block_cache else steps
                begun = begun or whole > 0
                found.append(whole)
        return found

    def quotas(self) -> list[int]:
        """Tokens committed at each step of a block: m // T each, the first m % T one more (LLaDA)."""
        share, extra = divmod(self.block_length, self.steps_per_block)
        return [share + (step < extra) for step in range(self.steps_per_block)]


def with_defaults(values: Mapping[str, object], decoding: Decoding) -> dict[str, object]:
    """The fields of a workload, those that are null as the model is decoded; steps are `steps_per_block` for each block.

    Raises:
        TripathError: `steps_per_block` is no number of steps, or stands beside `steps`.
    """
    found, given = dict(values), values.get("steps_per_block")
    for each in fields(Decoding):
        if each.name in found and found[each.name] is None:
            found[each.name] = getattr(decoding, each.name)
    per_block = found.pop("steps_per_block", decoding.steps_per_block)
    if per_block is not None and (not isinstance(per_block, int) or isinstance(per_block, bool) or per_block < 1):
        raise TripathError(f"workload.steps_per_block: must be an integer of at least 1, got {per_block!r}")
    if given is not None and found.get("steps") is not None:
        raise TripathError(
            f"workload.steps_per_block: {given} stands beside workload.steps {found['steps']}; give workload.steps=null"
        )
    generation, block = found.get("generation_length"), found.get("block_length")
    part = decoding.sub_block_length
    if part is not None and values.get("sub_block_length") is None and isinstance(block, int) and block > 0:
        found["sub_block_length"] = min(part, block)
    if found.get("steps", 0) is None and isinstance(generation, int) and isinstance(block, int) and block > 0:
        most = block if given is None else per_block or block  # a model's own steps are cut to a shorter block
        found["steps"] = generation // block * min(per_block or block, most)
    return found


def reference_only(workload: Workload, numerics: Numerics) -> str:
    """The first choice that no program carries out, as `key=value`: the reference path alone does. Empty: there is none."""
    smoothing = numerics.smoothing
    static = smoothing.smoother is Smoother.STATIC  # its calibration is that of keys after RoPE, with their means
    # Keys that are turned late pass Vector SRAM as rows: not blocks along tokens; their means are not given back there.
    rotatable = numerics.k_axis == "channels" and not static and not (smoothing.centre and "keys" in smoothing.sides)
    choices = {
        "workload.cache": (workload.cache, [name for name, policy in CACHE_POLICIES.items() if policy.by_data is None]),
        "workload.commit": (
            workload.commit,
            [name for name, policy in COMMIT_POLICIES.items() if ON_MACHINE.issuperset(policy.takes)],
        ),
        "workload.score": (workload.score, [each.value for each in ON_MACHINE if isinstance(each, Score)]),
        "numerics.smoothing.scheme": (
            smoothing.scheme,
            [each.value for each in ON_MACHINE if isinstance(each, Smoother)],
        ),
        "numerics.smoothing.centre": (smoothing.centre, (False, not static)),
        "numerics.smoothing.pre_rope": (smoothing.pre_rope, (False, rotatable)),
        "numerics.confidences": (numerics.confidences, ("bf16",)),
    }
    return next((f"{key}={str(value).lower()}" for key, (value, known) in choices.items() if value not in known), "")
