"""Trains the shipped model: `python -m accuracy.training.train`. One seed, one thread, resumable.

LLaDA's recipe in its fine-tuning form: the prompt is never masked; each answer position is masked with probability t,
t stratified over the batch; cross entropy on masked positions is weighted 1 / t (arXiv:2502.09992, algorithm 2).
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from accuracy.training.corpus import ANSWER_TOKENS, EOS, MASK, VOCABULARY, Problem, build_tokenizer, problems
from accuracy.training.evaluate import decode, exact_match
from accuracy.training.model import DiffusionTransformer
from tripath.model import ModelSpec

SEED, BATCH, PEAK_RATE, WARMUP_STEPS, EMA = 20260131, 48, 3e-3, 300, 0.999
TEST_PROBLEMS = 600


def spec_of(tokenizer) -> ModelSpec:  # noqa: ANN001
    """Shape of the shipped model."""
    return ModelSpec(
        name="wordmath", layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=VOCABULARY,
        rope_theta=10_000.0, rms_eps=1e-5, mask_id=tokenizer.token_to_id(MASK), eos_id=tokenizer.token_to_id(EOS),
        max_sequence=256,
    )  # fmt: skip


def batch_of(tokenizer, step: int) -> list[Problem]:  # noqa: ANN001
    """Problems of one step: of twice as many, even steps take the shorter half and odd steps the longer (less padding)."""
    pool = list(itertools.islice(problems(SEED * 7 + step // 2, held_out=False), 2 * BATCH))
    pool.sort(key=lambda problem: len(tokenizer.encode(problem.prompt).ids))
    return pool[BATCH:] if step % 2 else pool[:BATCH]


def pack(tokenizer, batch: list[Problem], eos: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN001
    """Tokens [batch, longest prompt + ANSWER_TOKENS], prompts padded on the left; and which are not padding."""
    prompts = [tokenizer.encode(problem.prompt).ids for problem in batch]
    answers = [tokenizer.encode(problem.answer).ids for problem in batch]
    longest = max(map(len, prompts))
    rows = [
        [eos] * (longest - len(p)) + p + a + [eos] * (ANSWER_TOKENS - len(a)) for p, a in zip(prompts, answers, strict=True)
    ]
    starts = torch.tensor([longest - len(p) for p in prompts])
    tokens = torch.tensor(rows)
    return tokens, torch.arange(tokens.shape[1])[None] >= starts[:, None]


def loss_of(model, tokens, visible, mask_id: int, generator) -> torch.Tensor:  # noqa: ANN001
    """Masked cross entropy of one batch, weighted 1 / t."""
    batch = len(tokens)
    answer = tokens[:, -ANSWER_TOKENS:]
    t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t = t.clamp(min=1 / ANSWER_TOKENS)
    masked = torch.rand(answer.shape, generator=generator) < t[:, None]
    noisy = tokens.clone()
    noisy[:, -ANSWER_TOKENS:] = torch.where(masked, mask_id, answer)
    logits = model(noisy, visible, last=ANSWER_TOKENS)
    entropy = functional.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none").view_as(answer)
    return (entropy * masked / t[:, None]).sum() / answer.numel()


def export(folder: Path, spec: ModelSpec, tokenizer, tensors: dict[str, torch.Tensor]) -> None:  # noqa: ANN001
    """Write config, tokenizer, weights and test set in the layout of a LLaDA checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llada", "d_model": spec.hidden, "n_heads": spec.heads, "n_kv_heads": spec.kv_heads,
        "n_layers": spec.layers, "mlp_hidden_size": spec.ffn, "vocab_size": spec.vocab, "embedding_size": spec.vocab,
        "rope_theta": spec.rope_theta, "rms_norm_eps": spec.rms_eps, "mask_token_id": spec.mask_id,
        "eos_token_id": spec.eos_id, "max_sequence_length": spec.max_sequence, "weight_tying": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    rows = itertools.islice(problems(SEED + 1, held_out=True), TEST_PROBLEMS)
    lines = [json.dumps({"prompt": p.prompt, "answer": p.answer, "result": p.result, "kind": p.kind}) for p in rows]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Train, resume, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=27_000)
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="where the resumable state is kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "checkpoints" / "wordmath")
    parser.add_argument("--save-every", type=int, default=1_000)
    parser.add_argument("--stop-at", type=int, default=None, help="stop early, as an interruption would")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    spec = spec_of(tokenizer)
    model = DiffusionTransformer(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    state, first = options.work / "state.safetensors", 0
    if state.exists():
        first = _restore(state, model, optimizer, average)
        print(f"resumed at step {first}", flush=True)
    test = list(itertools.islice(problems(SEED + 1, held_out=True), 128))
    began, running = time.monotonic(), 0.0
    for step in range(first, min(options.steps, options.stop_at or options.steps)):
        # Every step draws from its own seeds, so that a resumed run sees the same data.
        batch = batch_of(tokenizer, step)
        generator = torch.Generator().manual_seed(SEED + step)
        tokens, visible = pack(tokenizer, batch, spec.eos_id)
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = PEAK_RATE * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / options.steps)) / 2)
        loss = loss_of(model, tokens, visible, spec.mask_id, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - min(EMA, (step + 1) / (step + 10)))
        running += loss.item()
        if (step + 1) % options.save_every == 0:
            _keep(state, model, optimizer, average, step + 1)
            judged = DiffusionTransformer(spec)
            judged.load_state_dict(average)
            export(options.out, spec, tokenizer, judged.named_tensors())
            kinds = exact_match(test, decode(judged, tokenizer, test, steps=ANSWER_TOKENS))
            score = sum(good for good, _ in kinds.values()) / len(test)
            text = " ".join(f"{kind} {good}/{count}" for kind, (good, count) in sorted(kinds.items()))
            speed = (time.monotonic() - began) / (step + 1 - first)
            print(f"step {step + 1} loss {running / options.save_every:.4f} exact {score:.3f} {speed:.3f} s/step {text}", flush=True)
            running = 0.0


def _keep(path: Path, model, optimizer, average: dict[str, torch.Tensor], step: int) -> None:  # noqa: ANN001
    """Write the whole training state atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"step": torch.tensor(step)}
    for name, value in model.state_dict().items():
        tensors[f"model.{name}"], tensors[f"average.{name}"] = value, average[name]
    for number, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in entry.items()}
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(path)


def _restore(path: Path, model, optimizer, average: dict[str, torch.Tensor]) -> int:  # noqa: ANN001
    """Load what `_keep` wrote; returns the step to go on with."""
    tensors = load_file(path)
    model.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
    average |= {n.removeprefix("average."): v for n, v in tensors.items() if n.startswith("average.")}
    state = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(state)
    return int(tensors["step"])


if __name__ == "__main__":
    main()
