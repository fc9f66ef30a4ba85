"""Measures K in its blocks, and its error on the two four-bit grids: `python benchmarks/kv_blocks.py` prints a table.

On the shipped model (warm step of the last block of 40 held-out problems, as it generates them) and on SmolLM2-135M-Instruct (the
first two texts of experiment=kv_outliers), all in FP32: K in blocks of 32 channels, plain, smoothed (BAOS, alpha 1) and rotated
(Hadamard). S is the power of two of a block's largest element, which lies in [S, 2 S).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from accuracy.quality.decode import decode
from accuracy.quality.model import Batch, StudyModel
from accuracy.quality.problems import load_problems
from accuracy.quality.quantise import fake_quantise
from accuracy.quality.schemes import channel_maxima, hadamard, smoothing_factors
from dllm.checkpoint import load_tensors
from dllm.constants import LOWEST
from dllm.numerics import Smoothing
from dllm.operators import Attention
from tripath.api import compose_experiment

PROBLEMS, TEXTS, BLOCK = 40, 2, 32
SATURATES = 1.75
"""Of S: what FP4 rounds down to 1.5 S though it lies nearer to 2 S, where its largest value ends."""
FORMATS = ("mxint4", "mxfp4_e2m1")
Passed = tuple[Tensor, Tensor, Tensor]
"""Q (scaled) [B, heads, R, D] and K [B, H, T, D], both after RoPE, and what each row sees [B, R or 1, T]."""


class Recorder(StudyModel):
    """Keeps Q and K of every layer of the last pass over all rows."""

    passed: dict[int, Passed]

    def attend(
        self, op: Attention, heads: tuple[Tensor, Tensor, Tensor], layer: int, rows: slice, batch: Batch, block: int
    ) -> Tensor:
        """As the model does."""
        if heads[0].shape[2] == batch.real.shape[1]:
            self.passed[layer] = (*heads[:2], self._visible(op, rows, batch))
        return super().attend(op, heads, layer, rows, batch, block)


def of_problems() -> list[Passed]:
    """Of the shipped model."""
    x = compose_experiment("paths=[analytical]")
    model, prompts = Recorder(x.model, load_tensors(x.model)), load_problems(x.model)[:PROBLEMS]
    model.passed = {}
    decode(model, [each.prompt for each in prompts], x.workload)
    return list(model.passed.values())


def of_texts() -> list[Passed]:
    """Of SmolLM2."""
    x = compose_experiment("experiment=kv_outliers")
    lines = Path(str(x.workload.prompts_file)).read_text(encoding="utf-8").splitlines()[:TEXTS]
    tokens = torch.tensor([json.loads(line)["token_ids"][:-1] for line in lines])
    model = Recorder(x.model, load_tensors(x.model))
    model.passed = {}
    model.forward(
        tokens, slice(0, tokens.shape[1]), model.new_batch(torch.zeros(TEXTS, dtype=torch.int64), tokens.shape[1])
    )
    return list(model.passed.values())


def changed(keys: Tensor, real: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """K as a scheme hands it to rounding, and the matrix that brings it back [B, H, D, D]."""
    size = keys.shape[-1]
    if scheme == "hadamard":
        return keys @ hadamard(size), hadamard(size).T.expand(*keys.shape[:2], size, size)
    s = torch.ones_like(keys[:, :, :1])
    if scheme == "baos":
        s = smoothing_factors(channel_maxima(keys, real), Smoothing(scheme="baos"))
    return keys / s, torch.diag_embed(s[:, :, 0])


def attention_kl(q: Tensor, keys: Tensor, wrong: Tensor, visible: Tensor) -> float:
    """Mean KL in nats of the attention weights with `wrong` keys from those with `keys`, over rows that are no padding."""
    group = q.shape[1] // keys.shape[1]
    shares = []
    for each in (keys, wrong):
        scores = q @ each.repeat_interleave(group, 1).transpose(-1, -2)
        shares.append(scores.masked_fill(~visible[:, None], LOWEST).double().log_softmax(-1))
    divergence = (shares[0].exp() * (shares[0] - shares[1])).sum(-1)
    rows = visible.any(-1) if visible.shape[1] > 1 else visible[:, 0]
    return float(divergence[rows[:, None].expand_as(divergence)].mean())


def row_of(passed: Sequence[Passed], scheme: str) -> list[float]:
    """The figures of a scheme, means over layers."""
    found = []
    for q, keys, visible in passed:
        real = visible[:, -1]
        sent, back = changed(keys, real, scheme)
        rows = real[:, None].expand(keys.shape[:3])
        blocks = sent[rows].unflatten(-1, (-1, BLOCK)).abs()
        largest = blocks.amax(-1, keepdim=True)
        share = blocks / largest.log2().floor().exp2()  # of S
        figures = [
            float((largest[..., 0] / blocks.square().mean(-1).sqrt()).mean()),
            *(
                float(part.float().mean())
                for part in (share >= 1, (share >= 0.5) & (share < 1), share < 0.5, share.amax(-1) > SATURATES)
            ),
        ]
        for name in FORMATS:
            rounded = fake_quantise(sent, name, block=BLOCK)
            missed = (rounded - sent)[rows].unflatten(-1, (-1, BLOCK)).square()
            kept = rounded @ back
            error = (kept - keys)[rows].square().sum() / keys[rows].square().sum()
            figures += [
                float(error.sqrt()),
                float(missed[share >= 1].sum() / missed.sum()),
                attention_kl(q, keys, kept, visible),
            ]
        found.append(figures)
    return torch.tensor(found).mean(0).tolist()


@torch.no_grad()
def main() -> None:
    """Print the table."""
    heading = ["model", "K", "max / RMS", "in [S, 2 S)", "in [S/2, S)", "below S/2", "blocks above 1.75 S", "INT4: error of K",
               "of it in [S, 2 S)", "attention KL", "FP4: error of K", "of it in [S, 2 S)", "attention KL"]  # fmt: skip
    print_row(heading)
    print_row(["---"] * len(heading))
    for name, passed in (("shipped", of_problems()), ("SmolLM2", of_texts())):
        maxima = [channel_maxima(keys, visible[:, -1]).squeeze(2) for _, keys, visible in passed]
        ratio = torch.stack([(each.amax(-1) / each.median(-1).values).mean() for each in maxima]).mean()
        for scheme in ("plain", "baos", "hadamard"):
            spread, *shares, int_error, int_top, int_kl, fp_error, fp_top, fp_kl = row_of(passed, scheme)
            print_row([f"{name} ({ratio:.1f})", scheme, f"{spread:.2f}", *(f"{share:.1%}" for share in shares),
                       f"{int_error:.3f}", f"{int_top:.0%}", f"{int_kl:.4f}",
                       f"{fp_error:.3f}", f"{fp_top:.0%}", f"{fp_kl:.4f}"])  # fmt: skip


def print_row(cells: Sequence[str]) -> None:
    """A line of the table."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
