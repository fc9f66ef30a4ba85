"""Quality of a checkpoint in FP32 torch, batched: `python -m dllm_training.evaluate [FOLDER]`.

Prints Markdown tables, which the model card quotes: exact match by kind for several decoding policies, and, of a model with full
attention, under the cache policies.
"""

import argparse
import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer

from accuracy.quality import problems
from accuracy.quality.model import StudyModel
from dllm.answers import ANSWER, answer_pattern, number_in, wilson
from dllm.checkpoint import load_tensors
from dllm.families import PREFIX
from dllm.folder import model_of
from dllm.operators import Mask
from dllm.policies import Decoding
from dllm.workload import Workload
from dllm_training.corpus import ANSWER_TOKENS, Problem
from dllm_training.model import DiffusionTransformer
from npu.errors import TripathError

BLOCK, CHUNK, CACHED_PROBLEMS = 8, 64, 300
CHECKPOINT = Path(str(files("accuracy"))) / "checkpoints" / "wordmath"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """Answer texts up to the first EOS, and the denoising steps each sequence took."""

    answers: list[str]
    steps: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Problems of a kind; of those, answers whose final number is right, and answers equal to the worked one."""

    problems: int
    result_right: int
    answer_equal: int


def decode(
    model: DiffusionTransformer, tokenizer: Tokenizer, batch: list[Problem], *, steps: int,
    threshold: float | None = None,
) -> Decoded:  # fmt: skip
    """Answers by semi-autoregressive denoising in blocks of BLOCK without a cache.

    `steps` in all (a multiple of the number of blocks) share the commits out; with `threshold` it is ignored. Under a
    block-causal mask blocks count from the first token of the prompt, and a sequence ends with the block that holds its EOS.
    """
    order = sorted(range(len(batch)), key=lambda index: len(tokenizer.encode(batch[index].prompt).ids))
    answers, taken = [""] * len(batch), [0] * len(batch)
    for first in range(0, len(order), CHUNK):
        members = order[first : first + CHUNK]
        prompts = [tokenizer.encode(batch[index].prompt).ids for index in members]
        tokens, counts = _decode_chunk(model, prompts, steps, threshold)
        for index, ids, count in zip(members, tokens, counts.tolist(), strict=True):
            end = ids.index(model.spec.eos_id) if model.spec.eos_id in ids else len(ids)
            answers[index], taken[index] = tokenizer.decode(ids[:end]), count
    return Decoded(answers=answers, steps=taken)


@torch.no_grad()
def _decode_chunk(
    model: DiffusionTransformer, prompts: list[list[int]], steps: int, threshold: float | None
) -> tuple[list[list[int]], torch.Tensor]:
    """Answer tokens, ANSWER_TOKENS of each prompt, and steps taken [batch]."""
    spec, mask = model.spec, model.spec.mask
    if mask is Mask.CAUSAL:
        raise TripathError("model.attention_mask: causal is not decoded block by block")
    by_block = mask is Mask.BLOCK_CAUSAL
    heads = [len(p) // BLOCK * BLOCK if by_block else len(p) for p in prompts]
    begin = max(heads)
    """Where the first block lies; under a block-causal mask it opens with what prompts have beyond whole blocks."""
    starts = [begin - head for head in heads]
    tail = max(len(p) - head for p, head in zip(prompts, heads, strict=True))
    canvas = begin + -(-(tail + ANSWER_TOKENS) // BLOCK) * BLOCK
    rows = [[spec.eos_id] * start + p for start, p in zip(starts, prompts, strict=True)]
    tokens = torch.tensor([row + [spec.mask_id] * (canvas - len(row)) for row in rows])
    visible = torch.arange(canvas)[None] >= torch.tensor(starts)[:, None]
    answer = torch.arange(canvas)[None] >= torch.tensor([len(row) for row in rows])[:, None]
    taken = torch.zeros(len(prompts), dtype=torch.long)
    blocks = ANSWER_TOKENS // BLOCK
    share, extra = divmod(BLOCK, steps // blocks)
    for first in range(begin, canvas, BLOCK):
        place, end = slice(first, first + BLOCK), first + BLOCK if by_block else canvas
        ended = by_block & ((tokens == spec.eos_id) & answer)[:, :first].any(-1, keepdim=True)
        for step in range(BLOCK if threshold else steps // blocks):
            masked = (tokens[:, place] == spec.mask_id) & ~ended
            if not masked.any():
                break
            taken += masked.any(-1)
            logits = model(tokens[:, :end], visible[:, :end], last=end - begin)[:, first - begin :]
            confidence, best = logits[:, :BLOCK].softmax(-1).max(-1)
            confidence = confidence.masked_fill(~masked, -1.0)
            count = 1 if threshold else share + (step < extra)
            chosen = torch.zeros_like(masked).scatter(1, confidence.topk(count, -1).indices, True)
            if threshold:
                chosen |= confidence >= threshold
            tokens[:, place] = torch.where(chosen & masked, best, tokens[:, place])
    return [ids[len(row) :][:ANSWER_TOKENS] for ids, row in zip(tokens.tolist(), rows, strict=True)], taken


def score(batch: list[Problem], answers: list[str]) -> dict[str, Score]:
    """Scores by kind, in alphabetical order."""
    scores, pattern = {}, answer_pattern(ANSWER)
    for kind in sorted({problem.kind for problem in batch}):
        pairs = [(p, text) for p, text in zip(batch, answers, strict=True) if p.kind == kind]
        scores[kind] = Score(
            problems=len(pairs), result_right=sum(number_in(text, pattern) == p.result for p, text in pairs),
            answer_equal=sum(text == p.answer for p, text in pairs),
        )  # fmt: skip
    return scores


def load(folder: Path) -> tuple[DiffusionTransformer, Tokenizer, list[Problem]]:
    """Model, tokenizer and test set of a checkpoint folder that training wrote."""
    spec = replace(model_of(folder), decoding=Decoding())
    model = DiffusionTransformer(spec, BLOCK)
    tensors = load_tensors(spec)
    model.load_state_dict({name.removeprefix(PREFIX): torch.from_numpy(value) for name, value in tensors.items()})
    test = [Problem(**json.loads(line)) for line in (folder / "test.jsonl").read_text().splitlines()]
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), test


def _cell(good: int, count: int) -> str:
    low, high = wilson(good, count)
    return f"{good / count:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print exact match by kind for several decoding policies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, test = load(options.folder)
    kinds = sorted({problem.kind for problem in test})
    print("| decoding | mean steps | result right | whole answer equal |", *(f" {kind} |" for kind in kinds), sep="")
    print("|---" * (4 + len(kinds)) + "|")
    for name, steps, threshold in (
        ("32 steps", 32, None), ("16 steps", 16, None), ("8 steps", 8, None), ("threshold 0.9", 32, 0.9),
        ("threshold 0.7", 32, 0.7),
    ):  # fmt: skip
        decoded = decode(model, tokenizer, test, steps=steps, threshold=threshold)
        scores = score(test, decoded.answers)
        right, equal = (sum(getattr(s, field) for s in scores.values()) for field in ("result_right", "answer_equal"))
        cells = [name, f"{sum(decoded.steps) / len(test):.1f}", _cell(right, len(test)), _cell(equal, len(test))]
        print("| " + " | ".join(cells + [f"{s.result_right}/{s.problems}" for s in scores.values()]) + " |", flush=True)
    if model.spec.mask is Mask.FULL:
        _print_caches(model)


def _print_caches(model: DiffusionTransformer) -> None:
    """Results right of the first CACHED_PROBLEMS under the cache policies, with the FP32 arithmetic of accuracy/quality."""
    study = StudyModel(model.spec, {name: value.numpy() for name, value in model.named_tensors().items()})
    known = problems.load_problems(model.spec)[:CACHED_PROBLEMS]
    print("\n| cache | commit | block | mean steps | result right |\n|---|---|---|---|---|")
    for cache, commit, block in (
        ("none", "quota", 8), ("prefix", "quota", 8), ("dual", "quota", 8), ("dual", "threshold", 8), ("dual", "quota", 32),
        ("dual", "threshold", 32),
    ):  # fmt: skip
        workload = Workload(
            generation_length=ANSWER_TOKENS, block_length=block, steps=ANSWER_TOKENS, cache=cache, commit=commit
        )  # fmt: skip
        right, trips = problems.score(study, known, workload)
        shown = commit if commit == "quota" else f"{commit} 0.9"
        mean = trips.sum().item() / len(known)
        print(f"| {cache} | {shown} | {block} | {mean:.1f} | {_cell(sum(right), len(known))} |", flush=True)


if __name__ == "__main__":
    main()
