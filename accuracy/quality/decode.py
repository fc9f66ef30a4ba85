"""Block diffusion decoding of a batch on the reference path: cache policies, commit policies, what each step did.

Sources: LLaDA (arXiv:2502.09992) for quotas, Fast-dLLM (arXiv:2505.22618) for caches, threshold and factor, Dream
(arXiv:2508.15487, `diffusion_generate` of its model card) for the linspace schedule and the three scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from accuracy.quality.model import StudyModel
from accuracy.quality.reuse import Step, reuse_of
from accuracy.quality.schemes import Batch, Probe
from dllm.model import ModelSpec
from dllm.policies import Score, Take
from dllm.workload import Workload

DREAM_EPSILON = 1e-3
"""Where Dream's schedule of times ends (its default `eps`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepView:
    """One denoising step of the batch, before its commits are written.

    `canvas` [B, T] tokens, `place` where the block lies, `masked` [B, L], `logits` [B, L, vocab], `token_ids` [B, L],
    `confidence` [B, L] the score that ranks, `committed` [B, L].
    """

    block: int
    step: int
    canvas: Tensor
    place: slice
    masked: Tensor
    logits: Tensor
    token_ids: Tensor
    confidence: Tensor
    committed: Tensor
    batch: Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """Generated tokens [B, generation_length], and denoising steps that each sequence took in each block [B, blocks]."""

    token_ids: Tensor
    trip_counts: Tensor


def layout(prompts: Sequence[Sequence[int]], workload: Workload, model: StudyModel) -> tuple[Tensor, Tensor]:
    """Left-padded canvas [B, T] of masks after the prompts, and each sequence's first real token [B]."""
    longest = -(-max(map(len, prompts)) // workload.block_length) * workload.block_length
    spec, first = model.spec, torch.tensor([longest - len(prompt) for prompt in prompts])
    rows = [[spec.eos_id] * (longest - len(p)) + list(p) + [spec.mask_id] * workload.generation_length for p in prompts]
    return torch.tensor(rows), first


@torch.no_grad()
def decode(
    model: StudyModel, prompts: Sequence[Sequence[int]], workload: Workload, *,
    force: Callable[[int, int], Tensor | None] | None = None, observe: Callable[[StepView], None] | None = None,
    probe: Probe | None = None,
) -> Decoding:  # fmt: skip
    """Decode prompts (token ids) together; each gets what it would get alone, up to the order of FP32 sums.

    A block is left when no sequence has a mask in it, after `block_length` steps at the latest. `force(block, step)` may
    give the canvas [B, T] to use, or None where the other decoder has left the block. `probe` is called in every layer
    (`StudyModel.forward`).
    """
    tokens, first = layout(prompts, workload, model)
    canvas, length = tokens.shape[1], workload.block_length
    batch = model.new_batch(first, canvas)
    batch.probe, batch.reuse = probe, reuse_of(workload.caches, canvas - workload.generation_length)
    trips = torch.zeros(len(prompts), workload.blocks, dtype=torch.int64)
    for block in range(workload.blocks):
        start = canvas - workload.generation_length + block * length
        place = slice(start, start + length)
        edge = torch.empty(0)  # hidden state of the row before the block, as the warm step left it
        for step in range(length):
            if force is not None:
                forced = force(block, step)
                if forced is None:
                    break
                tokens = forced.clone()
            masked = tokens[:, place] == model.spec.mask_id
            if not masked.any():
                break
            batch.reuse.begin(Step(number=step, place=place, masked=tokens == model.spec.mask_id, real=batch.real))
            rows = workload.caches.rows(block, step).of(place.start, length, canvas)
            hidden = model.forward(tokens, rows, batch, block=block)
            own, edge = logit_rows(model.spec, hidden, start - rows.start, length, edge)
            logits = model.logits(own)
            token_ids, confidence = sample(logits, workload.score, model.numerics.confidences)
            chosen = commit(confidence, masked, workload, step)
            if observe is not None:
                observe(StepView(block=block, step=step, canvas=tokens, place=place, masked=masked, logits=logits,
                                 token_ids=token_ids, confidence=confidence, committed=chosen, batch=batch))  # fmt: skip
            trips[:, block] += masked.any(1)
            tokens = tokens.clone()
            tokens[:, place] = torch.where(chosen, token_ids, tokens[:, place])
    return Decoding(token_ids=tokens[:, canvas - workload.generation_length :], trip_counts=trips)


def logit_rows(spec: ModelSpec, hidden: Tensor, start: int, length: int, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [B, length, hidden] whose logits belong to the positions from row `start` of `hidden` on, and that of the row
    before these: `edge` where `hidden` begins with them. Of a model with shifted logits each lies one row ahead."""
    own = hidden[:, start : start + length]
    if not spec.shifted_logits:
        return own, edge
    edge = hidden[:, start - 1 : start] if start else edge
    return torch.cat([edge, own[:, :-1]], 1), edge


def sample(logits: Tensor, score: str, sampling: str) -> tuple[Tensor, Tensor]:
    """Greedy token (lowest index wins ties) and confidence of each position.

    `sampling` bf16 is the machine's Stable-Max: differences and exponentials in BF16, their sum and the confidence in
    FP32, ranked as BF16; other scores than maskgit_plus take the probabilities from it.
    """
    if sampling == "bf16":
        largest, ids = logits.max(-1)
        shifted = (logits - largest[..., None]).to(torch.bfloat16).to(torch.float32)
        weight = shifted.exp().to(torch.bfloat16).to(torch.float32)
        probability = weight / weight.sum(-1, keepdim=True)
    else:
        kind = torch.float64 if sampling == "fp64" else torch.float32
        probability, ids = logits.to(kind).softmax(-1), logits.argmax(-1)
    match Score(score):
        case Score.MASKGIT_PLUS:
            confidence = probability.amax(-1)
        case Score.TOPK_MARGIN:
            top = probability.topk(2, -1).values
            confidence = top[..., 0] - top[..., 1]
        case Score.ENTROPY:
            confidence = torch.special.xlogy(probability, probability).sum(-1)
        case Score.RANDOM:
            raise AssertionError("the quality path refuses random numbers")
        case unknown:
            assert_never(unknown)
    return ids, confidence.to(torch.bfloat16).to(torch.float32) if sampling == "bf16" else confidence


def commit(confidence: Tensor, masked: Tensor, workload: Workload, step: int) -> Tensor:
    """Positions to commit [B, L]; ties go to the lowest position."""
    order = confidence.masked_fill(~masked, -torch.inf).sort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order.indices).scatter_(-1, order.indices, _places(confidence))
    left = masked.sum(-1, keepdim=True)

    def taken(take: Take) -> Tensor:
        match take:
            case Take.BEST:
                return rank == 0
            case Take.SURE:
                return confidence >= workload.threshold
            case Take.EVERY:
                return masked
            case Take.QUOTA:
                quotas = workload.quotas()
                return rank < (quotas[step] if step < len(quotas) else 0)
            case Take.FACTOR:
                n = _places(confidence) + 1
                fits = ((n + 1) * (1 - order.values) < workload.factor) & (n <= left)
                return rank < (fits * n).amax(-1, keepdim=True).clamp(min=1)
            case Take.DREAM:
                return rank < _dream_count(left, step, workload.steps_per_block)
            case Take.WITHIN_BOUND:
                raise AssertionError("the quality path refuses bounds of entropies")
            case unknown:
                assert_never(unknown)

    return torch.stack([taken(take) for take in workload.commits.takes]).any(0) & masked


def _places(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1]).expand_as(like)


def _dream_count(left: Tensor, step: int, steps: int) -> Tensor:
    """Dream: of the masks left, the share 1 - s/t of its linspace schedule, rounded down; all at the last step."""
    times = torch.linspace(1, DREAM_EPSILON, steps + 1, dtype=torch.float64)
    if step >= steps - 1:
        return left
    return (left * (1 - times[step + 1] / times[step])).floor().to(torch.int64)
