"""The unquantised decoding loop: which positions of a block become tokens at a step, and what a sequence then is.

Shape suffixes: L positions of a block, V vocabulary. Cache policies and threshold commits: Fast-dLLM (arXiv:2505.22618).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from dllm.canvas import Canvas, canvas_of
from dllm.noise import Draws
from dllm.operators import Mask
from dllm.policies import Take
from dllm.reference import Cache, ReferenceModel, softmax
from dllm.workload import StepLoop, Workload
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One denoising step of one sequence: what was sampled at each position of the block, and what was committed.

    `canvas` [S] are the tokens before the step, `logits` [L, vocab], `token_ids` [L], `confidence` [L] in 0 to 1,
    `committed` [L] booleans; `entropy` [L] in nats, where commits go by it. Where `loop` is that of a part of the block, L are
    the positions of the part.
    """

    block: int
    step: int
    loop: StepLoop
    canvas: np.ndarray
    logits: np.ndarray
    token_ids: np.ndarray
    confidence: np.ndarray
    committed: np.ndarray
    entropy: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Generated tokens of one sequence, denoising steps per block, and every step."""

    token_ids: list[int]
    trip_counts: list[int]
    steps: list[Step] = field(default_factory=list)


Forced: TypeAlias = tuple[np.ndarray, StepLoop]
"""Of a step of another decoder, the canvas [S] before it and the loop that it is of."""


def sample(logits_LV: np.ndarray, noise_LV: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Token of each position, that of the largest logit plus noise (lowest index wins ties), and its probability without noise,
    both [L]."""
    ids = (logits_LV + noise_LV).argmax(axis=-1)
    return ids, softmax(logits_LV)[np.arange(len(ids)), ids]


def commit_quota(confidence: np.ndarray, masked: np.ndarray, count: int) -> np.ndarray:
    """The `count` most confident masked positions (all of them where fewer are masked); ties go to the lowest index."""
    order = np.lexsort((np.arange(len(masked)), -confidence, ~masked))
    chosen = np.zeros(len(masked), bool)
    chosen[order[:count]] = True
    return chosen & masked


def entropy_of(logits_LV: np.ndarray) -> np.ndarray:
    """Entropy of the softmax of each position, in nats [L]."""
    shifted = logits_LV - logits_LV.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=-1)
    return np.log(total) - (weights * shifted).sum(axis=-1) / total


def commit_entropy_bound(entropy: np.ndarray, masked: np.ndarray, bound: float) -> np.ndarray:
    """Masked positions in ascending order of entropy (ties to the lowest index), as long as the entropies before add up to at
    most `bound` (DiffusionGemma's sampler; Ben-Hamu et al., arXiv:2505.24857)."""
    order = np.lexsort((np.arange(len(masked)), entropy, ~masked))
    before = np.cumsum(entropy[order]) - entropy[order]
    chosen = np.zeros(len(masked), bool)
    chosen[order[before <= bound]] = True
    return chosen & masked


def _scheduled(confidence: np.ndarray, masked: np.ndarray, workload: Workload, step: int) -> np.ndarray:
    quotas = workload.quotas()
    return commit_quota(confidence, masked, quotas[step] if step < len(quotas) else 0)


TAKES: Mapping[Take, Callable[[np.ndarray, np.ndarray, Workload, int], np.ndarray]] = {
    Take.BEST: lambda confidence, masked, _workload, _step: commit_quota(confidence, masked, 1),
    Take.SURE: lambda confidence, masked, workload, _: (confidence >= workload.threshold) & masked,
    Take.QUOTA: _scheduled,
    Take.EVERY: lambda _confidence, masked, _workload, _step: masked,
    Take.WITHIN_BOUND: lambda entropy, masked, workload, _: commit_entropy_bound(
        entropy, masked, workload.entropy_bound
    ),
}
"""The masked positions of a block that a part of a commit policy takes, of their confidences (or entropies), at a step."""


def committed(rank: np.ndarray, masked: np.ndarray, workload: Workload, step: int) -> np.ndarray:
    """The masked positions of a block that become tokens under the workload's commit policy, by `rank`: their confidences, or
    entropies where it goes by those."""
    return np.logical_or.reduce([TAKES[take](rank, masked, workload, step) for take in workload.commits.takes])


def generate(
    model: ReferenceModel, prompt: Sequence[int], workload: Workload,
    force: Callable[[int, int], Forced | None] | None = None, blocks: int | None = None, sequence: int = 0,
) -> Generation:  # fmt: skip
    """Decode one sequence under the workload's cache and commit policies.

    The canvas is the prompt and then masks, to the end of the last block; a block is left when it holds no mask, after
    `block_length` steps at the latest (a model may commit the mask token itself).

    `force(block, step)` may give the canvas [S] to use at a step (another decoder's) and the loop that the step is of, or None
    where that one has left the block; the steps then say what the reference does on those canvases.

    Where the workload stops at the end token, the first block that generates one is the last; or exactly so many `blocks` are
    decoded, those of a batch that this sequence is one of. `sequence` is its number there: each has random numbers of its own.

    Raises:
        TripathError: the reference lacks the commit policy, or the cache policy.
    """
    if workload.caches.by_data is not None:
        raise TripathError(f"workload.cache={workload.cache}: the NumPy reference does not carry this out")
    if not TAKES.keys() >= set(workload.commits.takes):
        raise TripathError(f"workload.commit={workload.commit}: the NumPy reference does not carry this out")
    draws = Draws(workload=workload, sequence=sequence)
    decoder = _Decoder(model=model, workload=workload, prompt=prompt, force=force, blocks=blocks, draws=draws)
    if workload.caches.appends:
        decoder.append_blocks()
    else:
        decoder.refresh_blocks()
    steps = decoder.steps
    trips = [sum(record.block == block for record in steps) for block in range(decoder.decoded)]
    start = len(prompt)
    end = min(start + workload.generation_length, decoder.start(decoder.decoded))
    tokens = decoder.tokens[start:end]
    return Generation(token_ids=tokens.tolist(), trip_counts=trips, steps=steps)


@dataclass(kw_only=True)
class _Decoder:
    """A sequence while it is decoded; places count from its first token, `decoded` counts finished blocks.

    Where diffusion is uniform, `likeliest` are the tokens of the largest logits of the last step, `soft` what the distributions
    of that step expect, and the block is `settled` when its steps need not go on. K and V of all of the present block are in the
    cache once a `whole` step has been taken.
    """

    model: ReferenceModel
    workload: Workload
    prompt: Sequence[int]
    force: Callable[[int, int], Forced | None] | None
    blocks: int | None
    draws: Draws
    decoded: int = 0
    canvas: Canvas = field(init=False)
    tokens: np.ndarray = field(init=False)
    entered: np.ndarray = field(init=False)
    soft: np.ndarray | None = None
    likeliest: np.ndarray | None = None
    settled: bool = False
    whole: bool = False
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.canvas = canvas_of(self.model.spec, self.workload, [len(self.prompt)])
        masks = self.canvas.end(0) - self.canvas.first(0) - len(self.prompt)
        self.tokens = np.array([*self.prompt, *[self.model.spec.mask_id] * masks])

    def start(self, block: int) -> int:
        """First place of a block."""
        return self.canvas.prompt - self.canvas.first(0) + block * self.workload.block_length

    def refresh_blocks(self) -> None:
        """Every block's first step forwards the rows that its cache policy says, and later ones theirs."""
        length = self.workload.block_length
        passes, policy = 1 + self.workload.guided, self.workload.caches
        for block in range(self.canvas.blocks):
            caches, start = [self.model.new_cache() for _ in range(passes)], self.start(block)
            edge = np.zeros(
                (1, passes * self.model.spec.hidden), np.float32
            )  # the row before the block, as the warm step left it
            steps = (loop for loop in self.workload.step_loops(block) for _ in range(loop.most))
            for step, loop in enumerate(steps):
                if not self.goes_on(block, step, loop):
                    break
                rows = policy.rows(block, step).of(start, length, len(self.tokens))
                hidden = self.forward(rows, caches)
                first = start - rows.start
                edge = hidden[first - 1 : first] if first else edge
                self.commit(block, step, loop, hidden[first : first + length], edge, number=step)
            if self.is_last(block):
                break

    def append_blocks(self) -> None:
        """The prompt once, then block by block: its steps, and the clean forward whose K and V stay."""
        spec, length, model = self.model.spec, self.workload.block_length, self.model
        cache, mask, places = model.new_cache(), spec.mask, np.arange(len(self.tokens))
        before, edge = slice(0, self.start(0)), np.zeros((1, spec.hidden), np.float32)
        if before.stop:
            by_row = places[before] if mask is Mask.CAUSAL else places[before] // length * length
            seen = visible(mask, places, before, length)
            edge = model.forward(self.tokens, before, cache, seen, by_row, clean=True)[-1:]
        for block in range(self.canvas.blocks):
            start = self.start(block)
            own, seen, begins = slice(start, start + length), places[None] < start + length, np.full(length, start)
            loops = self.workload.step_loops(block)
            if spec.seeded_blocks and length == 1:  # one token a block: sampling is its only step
                if self.goes_on(block, 0, loops[0]):
                    self.commit(block, 0, loops[0], edge, edge, number=self.workload.most_steps)
            else:
                if spec.seeded_blocks and self.tokens[start] == spec.mask_id:
                    logits = model.logits(edge)
                    self.tokens[start] = sample(logits, self.noise(block, 1, self.workload.most_steps))[0][0]
                if self.workload.is_uniform:
                    self.begin_uniform(block, own)
                step, self.whole, states = 0, False, np.zeros((length, spec.hidden), np.float32)
                for loop, number in ((each, each.number + own) for each in loops for own in range(each.most)):
                    if not self.goes_on(block, step, loop):
                        continue
                    rows = slice(start + loop.first, start + loop.first + loop.length) if loop.alone else own
                    part = slice(rows.start - start, rows.stop - start)
                    states[part] = model.forward(self.tokens, rows, cache, seen, begins[part], soft=self.soft)
                    self.whole = True
                    if self.workload.is_uniform:
                        self.renoise(block, step, loop, states)
                    else:
                        before = states[loop.first - 1 : loop.first] if loop.first else edge
                        self.commit(block, step, loop, states[loop.positions], before, number=number)
                    step += 1
                if self.likeliest is not None:
                    self.tokens[own] = self.likeliest
            after = self.force(block + 1, 0) if self.force else None
            if after is not None:  # the other decoder's tokens are what its cache holds
                self.tokens[: own.stop] = after[0][: own.stop]
            if mask is Mask.CAUSAL:
                seen, begins = visible(mask, places, own, length), places[own]
            edge = model.forward(self.tokens, own, cache, seen, begins, clean=True)[-1:]
            if self.is_last(block):
                break

    def forward(self, rows: slice, caches: Sequence[Cache]) -> np.ndarray:
        """Hidden states of rows; where the workload is guided, those of a second pass with the prompt masked lie beside them."""
        unprompted = self.tokens.copy()
        unprompted[: len(self.prompt)] = self.model.spec.mask_id
        views = zip((self.tokens, unprompted), caches, strict=False)
        return np.concatenate([self.model.forward(tokens, rows, cache) for tokens, cache in views], axis=-1)

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Logits of hidden states, guided by those of a second pass beside them (LLaDA: z' + (1 + w) (z - z'))."""
        if not self.workload.guided:
            return self.model.logits(states)
        given, unprompted = map(self.model.logits, np.split(states, 2, axis=-1))
        return unprompted + np.float32(1 + self.workload.guidance) * (given - unprompted)

    def is_last(self, block: int) -> bool:
        """No block behind this one, which is finished, is decoded."""
        self.decoded = block + 1
        if self.blocks is not None:
            return self.decoded == self.blocks
        if not self.workload.stop_at_end:
            return False
        if self.force is not None:
            return self.force(block + 1, 0) is None
        return bool(np.isin(self.tokens[len(self.prompt) : self.start(block + 1)], self.model.spec.end_ids).any())

    def goes_on(self, block: int, step: int, loop: StepLoop) -> bool:
        """The next step is one of this loop: a mask is left among its positions, or the last step changed them where tokens are
        edited; the canvas is then that of the other decoder, if there is one."""
        if self.force is not None:
            forced = self.force(block, step)
            if forced is None or forced[1] != loop:
                return False
            self.tokens = forced[0].copy()
        if self.workload.is_uniform:
            return self.force is not None or not self.settled
        start = self.start(block)
        place = slice(start + loop.first, start + loop.first + loop.length)
        if step == 0:
            self.entered = self.tokens[place].copy()
        masked = self.tokens[place] == self.model.spec.mask_id
        if loop.skips and self.force is None:
            needs_whole = masked[0] or not self.whole
            return bool(masked.any() and (loop.alone or not self.workload.sub_block_cache or needs_whole))
        changed = self.workload.edits and step and self.steps[-1].canvas[place] != self.tokens[place]
        return bool(masked.any() or np.any(changed))

    def begin_uniform(self, block: int, own: slice) -> None:
        """A block of random tokens, of which nothing is known."""
        self.tokens[own] = self.draws.tokens(block, self.workload.most_steps, self.model.spec.vocab)
        self.soft, self.likeliest, self.settled = None, None, False

    def renoise(self, block: int, step: int, loop: StepLoop, hidden: np.ndarray) -> None:
        """A step of uniform diffusion: draw a token for every position, keep those that entropies admit, and random ones
        elsewhere."""
        workload, length, vocab = self.workload, self.workload.block_length, self.model.spec.vocab
        place = slice(self.start(block), self.start(block) + length)
        logits = self.model.logits(hidden) / np.float32(workload.temperatures()[step])
        ids, confidence = sample(logits, self.draws.gumbel(block, length, step, vocab))
        entropy, best = entropy_of(logits), logits.argmax(axis=-1)
        chosen = commit_entropy_bound(entropy, np.ones(length, bool), workload.entropy_bound)
        self.steps.append(Step(block=block, step=step, loop=loop, canvas=self.tokens.copy(), logits=logits, token_ids=ids,
                               confidence=confidence, committed=chosen, entropy=entropy))  # fmt: skip
        same = self.likeliest is not None and np.array_equal(best, self.likeliest)
        bound = workload.stop_entropy
        self.settled = bool(same and bound is not None and entropy.mean() < bound)
        self.tokens[place] = np.where(chosen, ids, self.draws.tokens(block, step, vocab))
        self.soft, self.likeliest = self.model.soft_tokens(softmax(logits)), best

    def noise(self, block: int, rows: int, number: int) -> np.ndarray | float:
        """Noise for the logits of the first `rows` rows of a block, for its draw number `number`; 0 at temperature 0."""
        temperature = self.workload.temperature
        if not temperature:
            return 0.0
        return temperature * self.draws.gumbel(block, rows, number, self.model.spec.vocab)

    def commit(
        self, block: int, step: int, loop: StepLoop, hidden: np.ndarray, edge: np.ndarray, number: int
    ) -> None:  # fmt: skip
        """Sample the positions of a loop from the hidden states [L, hidden] of their rows, and commit as the policy says; `edge`
        is the row before them, `number` that of the draw."""
        spec, start = self.model.spec, self.start(block) + loop.first
        place = slice(start, start + loop.length)
        if spec.shifted_logits:
            hidden = np.concatenate([edge, hidden[:-1]])
        masked = self.tokens[place] == spec.mask_id
        logits = self.logits(hidden)
        ids, confidence = sample(logits, self.noise(block, len(masked), number))
        entropy = entropy_of(logits) if self.workload.commits.measures_entropy else None
        rank = confidence if entropy is None else entropy
        if self.workload.ranks_at_random:
            rank = self.draws.uniform(block, len(masked), number)
        chosen = committed(rank, masked, self.workload, step)
        if self.workload.edits:
            placed = (self.entered == spec.mask_id) & ~masked
            chosen |= placed & (confidence >= np.float32(self.workload.edit_threshold)) & (ids != self.tokens[place])
        self.steps.append(Step(block=block, step=step, loop=loop, canvas=self.tokens.copy(), logits=logits, token_ids=ids,
                               confidence=confidence, committed=chosen, entropy=entropy))  # fmt: skip
        self.tokens[place] = np.where(chosen, ids, self.tokens[place])


def visible(mask: Mask, places: np.ndarray, rows: slice, block_length: int) -> np.ndarray:
    """Keys [R, S] that rows see; blocks count from the first token, and a row of a full mask sees up to the last row."""
    match mask:
        case Mask.FULL:
            return places[None] < rows.stop
        case Mask.CAUSAL:
            return places[None] <= places[rows, None]
        case Mask.BLOCK_CAUSAL:
            return places[None] // block_length <= places[rows, None] // block_length
