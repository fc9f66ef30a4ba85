"""Quality of a checkpoint in FP32 torch, batched: `python -m accuracy.training.evaluate FOLDER`."""

import argparse
import json
import math
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from accuracy.training.corpus import ANSWER_TOKENS, Problem
from accuracy.training.model import DiffusionTransformer
from tripath.model import ModelSpec

BLOCK = 8


@torch.no_grad()
def decode(
    model: DiffusionTransformer, tokenizer: Tokenizer, batch: list[Problem], *, steps: int, threshold: float | None = None
) -> list[str]:
    """Answers by semi-autoregressive denoising without a cache: quota (steps in all), or threshold."""
    spec = model.spec
    prompts = [tokenizer.encode(problem.prompt).ids for problem in batch]
    longest = max(map(len, prompts))
    rows = [[spec.eos_id] * (longest - len(p)) + p + [spec.mask_id] * ANSWER_TOKENS for p in prompts]
    tokens = torch.tensor(rows)
    starts = torch.tensor([longest - len(p) for p in prompts])
    visible = torch.arange(tokens.shape[1])[None] >= starts[:, None]
    blocks = ANSWER_TOKENS // BLOCK
    share, extra = divmod(BLOCK, steps // blocks)
    for block in range(blocks):
        place = slice(longest + block * BLOCK, longest + (block + 1) * BLOCK)
        for step in range(BLOCK if threshold else steps // blocks):
            masked = tokens[:, place] == spec.mask_id
            if not masked.any():
                break
            probability = model(tokens, visible, last=ANSWER_TOKENS)[:, block * BLOCK : (block + 1) * BLOCK].softmax(-1)
            confidence, best = probability.max(-1)
            confidence = confidence.masked_fill(~masked, -1.0)
            count = 1 if threshold else share + (step < extra)
            chosen = torch.zeros_like(masked).scatter(1, confidence.topk(count, -1).indices, True)
            if threshold:
                chosen |= confidence >= threshold
            tokens[:, place] = torch.where(chosen & masked, best, tokens[:, place])
    return [tokenizer.decode(row[longest:].tolist()) for row in tokens]


def final_number(text: str) -> int | None:
    """The number after `####`."""
    match = re.search(r"####\s*(-?\d+)", text)
    return int(match.group(1)) if match else None


def exact_match(batch: list[Problem], texts: list[str]) -> dict[str, tuple[int, int]]:
    """Right answers and problems, by kind."""
    kinds: dict[str, tuple[int, int]] = {}
    for problem, text in zip(batch, texts, strict=True):
        good, count = kinds.get(problem.kind, (0, 0))
        kinds[problem.kind] = (good + (final_number(text) == problem.result), count + 1)
    return kinds


def wilson_interval(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson)."""
    share, square = good / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return middle - half, middle + half


def load(folder: Path) -> tuple[DiffusionTransformer, Tokenizer, list[Problem]]:
    """Model, tokenizer and test set of a checkpoint folder."""
    config = json.loads((folder / "config.json").read_text())
    spec = ModelSpec(
        name=folder.name, layers=config["n_layers"], hidden=config["d_model"], heads=config["n_heads"],
        kv_heads=config["n_kv_heads"], head_dim=config["d_model"] // config["n_heads"], ffn=config["mlp_hidden_size"],
        vocab=config["vocab_size"], rope_theta=config["rope_theta"], rms_eps=config["rms_norm_eps"],
        mask_id=config["mask_token_id"], eos_id=config["eos_token_id"], max_sequence=config["max_sequence_length"],
    )  # fmt: skip
    model = DiffusionTransformer(spec)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model.transformer."): value for name, value in tensors.items()})
    test = [Problem(**json.loads(line)) for line in (folder / "test.jsonl").read_text().splitlines()]
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), test


def main() -> None:
    """Print exact match by kind for several decoding policies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1] / "checkpoints" / "wordmath")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, test = load(options.folder)
    for name, policy in (
        ("32 steps", {"steps": 32}), ("16 steps", {"steps": 16}), ("8 steps", {"steps": 8}),
        ("threshold 0.9", {"steps": 32, "threshold": 0.9}), ("threshold 0.7", {"steps": 32, "threshold": 0.7}),
    ):  # fmt: skip
        kinds = exact_match(test, decode(model, tokenizer, test, **policy))
        good, count = (sum(column) for column in zip(*kinds.values(), strict=True))
        low, high = wilson_interval(good, count)
        detail = ", ".join(f"{kind} {g}/{n}" for kind, (g, n) in sorted(kinds.items()))
        print(f"{name:14} {good / count:.3f} (95 % {low:.3f} to {high:.3f})  {detail}")


if __name__ == "__main__":
    main()
