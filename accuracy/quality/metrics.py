"""Metrics of a configuration in the study: against the unquantised model on the same canvases, and of its own cache."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from accuracy.quality.decode import StepView, commit, logit_rows, sample
from accuracy.quality.model import StudyModel
from accuracy.quality.reuse import Step, reuse_of
from accuracy.quality.schemes import Batch, channel_maxima, smoothing_factors
from dllm.model import ModelSpec
from dllm.numerics import SIDES, Numerics, Smoothing
from dllm.workload import Workload
from npu.formats import FORMATS

_DRIFT = Smoothing(scheme="baos")


def kv_bytes_per_token(
    spec: ModelSpec, numerics: Numerics, block_length: int, *, canvas: float, quantised: Sequence[str] = SIDES
) -> float:
    """Bytes of K and V per token over all layers: elements, block scales, and s and m shared out over the canvas; sides
    that are not `quantised` are in BF16."""
    width, smoothing = spec.layers * spec.kv_width, numerics.smoothing
    total = 0.0
    for side in SIDES:
        row = FORMATS[numerics.kv if side in quantised else "bf16"]
        along_channels = numerics.axis_of(side) == "channels"
        block = numerics.block_size if along_channels else numerics.token_block(block_length)
        total += width * row.record_bytes(block) / block
        if side in smoothing.sides:
            total += width * ((1 if smoothing.power_of_two else 2) + 2 * smoothing.centre) / canvas
    return total


class Comparison:
    """Observer of a decoding: give `observe` and `probe` to `decode`, then read `summary`.

    The reference decodes on the same canvases with its own cache, under the same cache policy.
    """

    def __init__(self, reference: StudyModel, workload: Workload) -> None:
        self.reference, self.workload = reference, workload
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self._batch: Batch | None = None
        self._edge = torch.empty(0)
        self._warm: dict[tuple[int, str], Tensor] = {}
        self._divergence: list[Tensor] = []
        """Per batch [2, B]: sum of logit KL over each sequence's masked positions, and their number."""

    def add(self, name: str, values: Tensor) -> None:
        """Enter values into the mean called `name`."""
        self.sums[name] += float(values.double().sum())
        self.counts[name] += values.numel()

    @property
    def summary(self) -> dict[str, float]:
        """Means of everything that was observed; attention_error is a ratio of norms, logit_kl_error the standard error
        of logit_kl over sequences (they differ far more than positions do)."""
        means = {name: total / max(1.0, self.counts[name]) for name, total in self.sums.items()}
        total, positions = torch.cat(self._divergence, 1)
        residual = total - means["logit_kl"] * positions
        spread = residual.square().sum() * len(residual) / max(1, len(residual) - 1)
        means["logit_kl_error"] = float(spread.sqrt() / positions.sum())
        means["attention_error"] = math.sqrt(means.pop("attention_difference") / means.pop("attention_exact"))
        return means

    def probe(self, layer: int, attended: Tensor, exact: Tensor) -> None:
        """Squared norms of the attention output's error and of what an unquantised cache gives."""
        del layer
        self.add("attention_difference", (attended - exact).square())
        self.add("attention_exact", exact.square())

    def observe(self, view: StepView) -> None:
        """Compare one step: logit_kl (nats, mean over masked positions of KL(reference || this)), argmax_flips, and
        transfer_overlap (Jaccard index of the committed sets, mean over sequences that still have masks)."""
        if view.block == 0 and view.step == 0:
            self._batch, self._warm = self._fresh(view), {}
            self._divergence.append(torch.zeros(2, len(view.canvas), dtype=torch.float64))
        assert self._batch is not None
        length, masked = self.workload.block_length, view.canvas == self.reference.spec.mask_id
        self._batch.reuse.begin(Step(number=view.step, place=view.place, masked=masked, real=self._batch.real))
        rows = self.workload.caches.rows(view.block, view.step).of(view.place.start, length, view.canvas.shape[1])
        hidden = self.reference.forward(view.canvas, rows, self._batch, block=view.block)
        start = view.place.start - rows.start
        own, self._edge = logit_rows(self.reference.spec, hidden, start, length, self._edge)
        logits = self.reference.logits(own)
        ids, confidence = sample(logits, self.workload.score, self.reference.numerics.confidences)
        chosen = commit(confidence, view.masked, self.workload, view.step)
        p, q = logits.double().log_softmax(-1), view.logits.double().log_softmax(-1)
        divergence = (p.exp() * (p - q)).sum(-1) * view.masked
        self.add("logit_kl", divergence[view.masked])
        self._divergence[-1] += torch.stack([divergence.sum(1), view.masked.sum(1)])
        self.add("argmax_flips", (ids != view.token_ids)[view.masked])
        active = view.masked.any(1)
        both, either = ((chosen & view.committed).sum(1), (chosen | view.committed).sum(1))
        self.add("transfer_overlap", (both / either.clamp(min=1))[active & (either > 0)])
        self._drift(view, active)

    def _fresh(self, view: StepView) -> Batch:
        first, canvas = (~view.batch.real).sum(1), view.canvas.shape[1]
        batch = self.reference.new_batch(first, canvas)
        batch.reuse = reuse_of(self.workload.caches, canvas - self.workload.generation_length)
        return batch

    def _drift(self, view: StepView, active: Tensor) -> None:
        """|log2| of how s (alpha 1) of the current cache differs from the block's warm step, and that from the block before."""
        for layer, sides in enumerate(view.batch.sides):
            for side, kept in sides.items():
                s = smoothing_factors(channel_maxima(kept.raw, kept.real), _DRIFT).log2()
                before = self._warm.get((layer, side))
                if view.step == 0:
                    self._warm[layer, side] = s
                if before is not None:
                    kind = "blocks" if view.step == 0 else "steps"
                    self.add(f"drift_{kind}_{side[0]}", (s - before).abs()[active])


def collect(views: list[tuple[Tensor, Tensor]], smoothing: Smoothing, *, pairs: bool) -> tuple[Tensor, Tensor]:
    """Channel maxima and means [1, H, 1, D] over (raw [B, H, T, D], real [B, T]) of many warm steps."""
    total = sum((x * real[:, None, :, None]).sum((0, 2), keepdim=True) for x, real in views)
    mean = torch.as_tensor(total) / sum(int(real.sum()) for _, real in views)
    centred = [(x - mean if smoothing.centre else x, real) for x, real in views]
    maxima = torch.cat([channel_maxima(x, real, pairs=pairs) for x, real in centred]).amax(0, keepdim=True)
    return maxima, mean
