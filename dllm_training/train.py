"""Trains the shipped models: `python -m dllm_training.train --recipe NAME`. One seed, one thread, resumable.

The prompt is never masked; each answer position is masked with probability t; cross entropy on masked positions is weighted
1 / t. `full` is LLaDA's recipe in its fine-tuning form (arXiv:2502.09992, algorithm 2): one t for an answer. `block_causal` is
block diffusion (BD3-LM, arXiv:2503.09573; SDAR, arXiv:2510.06303): a t for each block, which sees the blocks before it clean.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch.nn import functional

from dllm.experts import Experts
from dllm.families import LLADA, LLADA2, QWEN, Family, tensor_name
from dllm.model import ModelSpec
from dllm.operators import Mask
from dllm_training.corpus import ANSWER_TOKENS, EOS, MASK, VOCABULARY, Problem, build_tokenizer, problems
from dllm_training.evaluate import BLOCK, CHECKPOINT, decode, load, score
from dllm_training.model import DiffusionTransformer
from npu.files import write_atomically

SEED, PEAK_RATE, WARMUP_STEPS, EMA = 20260131, 3e-3, 300, 0.999
SECOND_CYCLE, SECOND_MORE = 1 / 3, ("mul",) * 3
TEST_PROBLEMS, JUDGED_PROBLEMS = 600, 128


def _llada(spec: ModelSpec, _: "Recipe") -> dict[str, object]:
    return {
        "model_type": "llada", "d_model": spec.hidden, "n_heads": spec.heads, "n_kv_heads": spec.kv_heads,
        "n_layers": spec.layers, "mlp_hidden_size": spec.ffn, "vocab_size": spec.vocab, "embedding_size": spec.vocab,
        "rope_theta": spec.rope_theta, "rms_norm_eps": spec.rms_eps, "mask_token_id": spec.mask_id,
        "eos_token_id": spec.eos_id, "max_sequence_length": spec.max_sequence, "weight_tying": False,
    }  # fmt: skip


def _hugging_face(spec: ModelSpec) -> dict[str, object]:
    return {
        "hidden_size": spec.hidden, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim, "num_hidden_layers": spec.layers, "intermediate_size": spec.ffn, "vocab_size": spec.vocab,
        "rope_theta": spec.rope_theta, "rms_norm_eps": spec.rms_eps, "mask_token_id": spec.mask_id,
        "eos_token_id": spec.eos_id, "max_position_embeddings": spec.max_sequence, "tie_word_embeddings": False,
    }  # fmt: skip


def _sdar(spec: ModelSpec, recipe: "Recipe") -> dict[str, object]:
    own = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": recipe.diffused}
    return {**_hugging_face(spec), **own}


def _llada2(spec: ModelSpec, _: "Recipe") -> dict[str, object]:
    experts = spec.experts
    assert experts is not None
    routed = {"expert_capacity": experts.block_capacity, "block_size": experts.block_tokens}
    return {
        **(routed if experts.block_capacity else {}),
        **_hugging_face(spec), "model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"],
        "partial_rotary_factor": 1.0, "num_experts": experts.count, "num_experts_per_tok": experts.chosen,
        "moe_intermediate_size": experts.inner, "score_function": experts.score, "norm_topk_prob": experts.normalised,
        "moe_router_enable_expert_bias": experts.bias, "n_group": experts.groups, "topk_group": experts.kept_groups,
        "routed_scaling_factor": experts.scale, "num_shared_experts": experts.shared // experts.inner,
        "first_k_dense_replace": experts.first_layer, "use_qk_norm": spec.qk_norm,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A model and how it is trained.

    `start`: the recipe whose shipped weights it goes on from, where there are such; empty: none. `diffused` are the answer
    tokens that share a t. `shuffled`: the strata of t are dealt out at random; else the sequences of a batch, short prompts
    first, take them in order.
    """

    name: str
    mask: Mask
    qk_norm: bool
    diffused: int
    shuffled: bool
    steps: int
    batch: int
    start: str = ""
    family: Family
    config: Callable[[ModelSpec, "Recipe"], dict[str, object]]
    experts: Experts | None = None

    @property
    def by_block(self) -> bool:
        """Noisy blocks see the blocks before them clean."""
        return self.mask is Mask.BLOCK_CAUSAL

    @property
    def out(self) -> Path:
        """Folder of the checkpoint."""
        return CHECKPOINT.with_name(self.name)

    def spec(self, tokenizer: Tokenizer) -> ModelSpec:
        """Shape of the model."""
        ids = tokenizer.get_vocab()
        return ModelSpec(
            name=self.name, layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=VOCABULARY,
            rope_theta=10_000.0, rms_eps=1e-5, mask_id=ids[MASK], eos_id=ids[EOS], max_sequence=256,
            qk_norm=self.qk_norm, attention_mask=self.mask.value, experts=self.experts,
        )  # fmt: skip

    def model(self, tokenizer: Tokenizer) -> DiffusionTransformer:
        """The model with the weights that training begins with."""
        model = DiffusionTransformer(self.spec(tokenizer), self.diffused)
        if self.start:
            known = load(RECIPES[self.start].out)[0].state_dict()
            model.load_state_dict({name: _begun(name, value, known) for name, value in model.state_dict().items()})
        return model


def _begun(name: str, value: torch.Tensor, known: dict[str, torch.Tensor]) -> torch.Tensor:
    """A weight to begin with: that of the model before; for experts slices of its MLP, the first one for the shared expert,
    the others in turn for the experts (arXiv:2212.05055)."""
    if name in known:
        return known[name]
    before, _, own = name.partition("experts.")
    if not own:
        return value
    shared = before.endswith("shared_")
    number, part = ("0", own) if shared else own.split(".", 1)
    whole, inner = known[before.removesuffix("shared_") + part], min(value.shape)
    slices = whole.split(inner, dim=whole.shape.index(max(whole.shape)))
    return slices[0 if shared else 1 + int(number) % (len(slices) - 1)]


RECIPES = {
    "full": Recipe(
        name="wordmath", mask=Mask.FULL, qk_norm=False, diffused=ANSWER_TOKENS, shuffled=False, steps=26_000,
        batch=48, family=LLADA, config=_llada,
    ),
    "block_causal": Recipe(
        name="wordmath_block", mask=Mask.BLOCK_CAUSAL, qk_norm=True, diffused=BLOCK, shuffled=True, steps=4_000,
        batch=32, start="full", family=QWEN, config=_sdar,
    ),
    "experts": Recipe(
        name="wordmath_moe", mask=Mask.BLOCK_CAUSAL, qk_norm=True, diffused=BLOCK, shuffled=True, steps=4_000, batch=32,
        start="block_causal", family=LLADA2, config=_llada2,
        experts=Experts(
            count=16, chosen=4, inner=64, score="sigmoid", bias=True, groups=4, kept_groups=2, scale=2.5, shared=64,
            first_layer=1,
        ),
    ),
}  # fmt: skip
"""By their names on the command line."""


def batch_of(tokenizer: Tokenizer, step: int, size: int, more: tuple[str, ...] = ()) -> list[Problem]:
    """Problems of one step: of twice as many, even steps take the shorter half, odd steps the longer."""
    pool = list(itertools.islice(problems(SEED * 7 + step // 2, held_out=False, more=more), 2 * size))
    pool.sort(key=lambda problem: len(tokenizer.encode(problem.prompt).ids))
    return pool[size:] if step % 2 else pool[:size]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Sequences side by side: `tokens` [batch, T], those that are no padding, those of answers; noise begins at `begin`."""

    tokens: torch.Tensor
    visible: torch.Tensor
    answer: torch.Tensor
    begin: int


def pack(tokenizer: Tokenizer, batch: list[Problem], eos: int, recipe: Recipe) -> Packed:
    """Problems padded on the left, by whole blocks under a block-causal mask.

    An answer is filled up with EOS, to ANSWER_TOKENS or on to the end of the block.
    """
    unit = recipe.diffused if recipe.by_block else 1
    prompts = [tokenizer.encode(problem.prompt).ids for problem in batch]
    answers = [tokenizer.encode(problem.answer).ids for problem in batch]
    begin = max(len(p) // unit for p in prompts) * unit
    canvas = begin + -(-(max(len(p) % unit for p in prompts) + ANSWER_TOKENS) // unit) * unit
    padding = [begin - len(p) // unit * unit for p in prompts]
    rows = [[eos] * left + p + a for left, p, a in zip(padding, prompts, answers, strict=True)]
    starts = torch.tensor(padding)[:, None]
    places = torch.arange(canvas)[None] - starts
    return Packed(
        tokens=torch.tensor([row + [eos] * (canvas - len(row)) for row in rows]), visible=places >= 0,
        answer=places >= torch.tensor([len(p) for p in prompts])[:, None], begin=begin,
    )  # fmt: skip


def loss_of(model: DiffusionTransformer, packed: Packed, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Masked cross entropy of one batch, weighted 1 / t."""
    prompt, target = packed.tokens[:, : packed.begin], packed.tokens[:, packed.begin :]
    answer = packed.answer[:, packed.begin :]
    strata = target.numel() // recipe.diffused
    order = torch.randperm(strata, generator=generator) if recipe.shuffled else torch.arange(strata)
    t = ((order + torch.rand(strata, generator=generator)) / strata).view(len(target), -1)
    t = t.clamp(min=1 / recipe.diffused).repeat_interleave(recipe.diffused, 1)
    masked = (torch.rand(target.shape, generator=generator) < t) & answer
    noisy = torch.where(masked, model.spec.mask_id, target)
    if recipe.by_block:
        logits = model(packed.tokens, packed.visible, last=target.shape[1], noisy=noisy)
    else:
        logits = model(torch.cat([prompt, noisy], 1), packed.visible, last=target.shape[1])
    entropy = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return (entropy * masked / t).sum() / answer.sum()


def learning_rate(step: int, steps: int) -> float:
    """Two cycles. Linear warm-up and a cosine, left after 17/26 of `steps` for a line down to 1 % of the peak at `restart_of`;
    then warm-up to a third of the peak, and a line down to 1 % again."""
    cooldown, restart = steps * 17 // 26, restart_of(steps)
    share = 0.01 + 0.99 * (1 + math.cos(math.pi * min(step, cooldown) / steps)) / 2
    if step > cooldown:
        first, end, top = (cooldown, restart, share) if step < restart else (restart, steps, SECOND_CYCLE)
        share = 0.01 + (end - 1 - step) / max(1, end - 1 - first) * (top - 0.01)
    return PEAK_RATE * share * min(1.0, (step % restart + 1) / WARMUP_STEPS)


def restart_of(steps: int) -> int:
    """The first step of the second cycle, in which multiplications, slow to be learnt, are SECOND_MORE more likely."""
    return max(1, steps * 22 // 26)


def export(folder: Path, recipe: Recipe, tokenizer: Tokenizer, model: DiffusionTransformer) -> None:
    """Write config, tokenizer, weights and test set in the layout of the recipe's family, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    ours: dict[str, torch.Tensor] = model.named_tensors()
    tensors: dict[str, list[torch.Tensor]] = {}
    for stored in model.network.weights():
        for _, layer in stored.of_layers():
            for part in stored.weight.parts:
                tensors.setdefault(recipe.family.name_of(part.name, layer), []).append(
                    ours[tensor_name(part.name, layer)]
                )
    config = recipe.config(model.spec, recipe)
    rows = itertools.islice(problems(SEED + 1, held_out=True), TEST_PROBLEMS)
    lines = [json.dumps({"prompt": p.prompt, "answer": p.answer, "result": p.result, "kind": p.kind}) for p in rows]
    for name, content in (
        ("config.json", (json.dumps(config, indent=1) + "\n").encode()),
        ("tokenizer.json", tokenizer.to_str(pretty=True).encode()),
        ("model.safetensors", save({name: torch.cat(parts) for name, parts in tensors.items()})),
        ("test.jsonl", ("\n".join(lines) + "\n").encode()),
    ):  # fmt: skip
        write_atomically(folder / name, content)


def train(
    recipe: Recipe, *, steps: int, work: Path, out: Path, save_every: int, stop_at: int | None = None,
    batch_size: int | None = None, judged_problems: int = JUDGED_PROBLEMS,
) -> list[float]:  # fmt: skip
    """Train (or go on from the state in `work`) to step `steps`, or to `stop_at`; the loss of each step taken here.

    Every `save_every` steps, and at the end, the state is kept in `work` and the averaged weights exported to `out`.
    The learning rate follows `steps`, so an interrupted run must be resumed with the same value.
    """
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = recipe.model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    state, first, last = work / "state.safetensors", 0, min(steps, stop_at or steps)
    if state.exists():
        first = _restore(state, model, optimizer, average)
        print(f"resumed at step {first}", flush=True)
    test = list(itertools.islice(problems(SEED + 1, held_out=True), judged_problems))
    began, losses = time.monotonic(), []
    for step in range(first, last):
        # Every step draws from its own seeds, so that a resumed run sees the same data.
        generator = torch.Generator().manual_seed(SEED + step)
        more = SECOND_MORE if step >= restart_of(steps) else ()
        packed = pack(tokenizer, batch_of(tokenizer, step, batch_size or recipe.batch, more), model.spec.eos_id, recipe)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        loss = loss_of(model, packed, recipe, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - min(EMA, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if (step + 1) % save_every == 0 or step + 1 == last:
            _keep(state, model, optimizer, average, step + 1)
            judged = recipe.model(tokenizer)
            judged.load_state_dict(average)
            judged.eval()
            export(out, recipe, tokenizer, judged)
            recent = losses[-save_every:]
            speed = (time.monotonic() - began) / (step + 1 - first)
            print(f"step {step + 1} loss {sum(recent) / len(recent):.4f} {speed:.3f} s/step", end=" ", flush=True)
            print(_judge(judged, tokenizer, test), flush=True)
    return losses


def _judge(model: DiffusionTransformer, tokenizer: Tokenizer, test: list[Problem]) -> str:
    if not test:
        return ""
    scores = score(test, decode(model, tokenizer, test, steps=ANSWER_TOKENS).answers)
    return " ".join(f"{kind} {s.result_right}/{s.problems}" for kind, s in scores.items())


def _keep(
    path: Path, model: DiffusionTransformer, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor],
    step: int,
) -> None:  # fmt: skip
    """Write the whole training state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"step": torch.tensor(step)}
    for name, value in model.state_dict().items():
        tensors[f"model.{name}"], tensors[f"average.{name}"] = value, average[name]
    for number, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in entry.items()}
    write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}))


def _restore(
    path: Path, model: DiffusionTransformer, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor]
) -> int:
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


def main() -> None:
    """Train, resume, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="full")
    parser.add_argument("--steps", type=int, default=None, help="default: those of the recipe")
    parser.add_argument(
        "--work", type=Path, default=None, help="where the resumable state is kept: runs/training/RECIPE"
    )
    parser.add_argument("--out", type=Path, default=None, help="default: the shipped checkpoint")
    parser.add_argument("--save-every", type=int, default=1_000)
    parser.add_argument("--stop-at", type=int, default=None, help="stop early, as an interruption would")
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    train(
        recipe, steps=options.steps or recipe.steps, work=options.work or Path("runs/training") / options.recipe,
        out=options.out or recipe.out, save_every=options.save_every, stop_at=options.stop_at,
    )  # fmt: skip


if __name__ == "__main__":
    main()
