"""The cache policies that choose rows or keys by data: what of a step is computed anew, and which keys it attends to.

A step forwards more rows than such a policy would, and what the policy does not compute is dropped: K and V of a row that is not
due stay as they are cached, so no other row sees the difference.

Shape suffixes: B sequences, T tokens of the canvas, H KV heads, D head_dim, R rows computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from dllm.policies import CachePolicy, DelayedCaching, FeatureCaching, SparseAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A denoising step of the batch: its number in the block, whose place is given, and which tokens [B, T] are masked, and which
    are real."""

    number: int
    place: slice
    masked: Tensor
    real: Tensor


class Reuse:
    """Everything is computed anew, and all keys are seen."""

    def begin(self, step: Step) -> None:
        """Another step begins."""

    def due(self, layer: int, values: Tensor, kept: Tensor | None) -> Mapping[str, Tensor] | None:
        """The rows [B, T] whose `keys` and `values` are written; None: those that are forwarded. `values` [B, H, T, D] are V of
        the step, `kept` those of the cache."""
        del layer, values, kept
        return None

    def result(self, layer: int, result: Tensor) -> Tensor:
        """The result [B, T, width] that a layer's attention or MLP adds to the stream; rows that are not due reuse their last."""
        del layer
        return result

    def seen(self, layer: int, queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """The keys [B, R or 1, T] that rows see, of those that are visible; Q is [B, heads, R, D], the cached K [B, H, T, D]."""
        del layer, queries, keys
        return visible


class _Delayed(Reuse):
    """dKV-Cache-Decode: masks, and the rows that were masks a step before."""

    def __init__(self, policy: DelayedCaching) -> None:
        self.policy = policy
        self.rows = self.before = torch.empty(0)

    def begin(self, step: Step) -> None:
        whole = step.number < self.policy.full_steps or step.number % self.policy.interval == 0
        self.rows = step.real if whole else step.masked | self.before
        self.before = step.masked

    def due(self, layer: int, values: Tensor, kept: Tensor | None) -> Mapping[str, Tensor]:
        del layer, values, kept
        return {"keys": self.rows, "values": self.rows}


class _Features(Reuse):
    """dLLM-Cache: prompt and response are refreshed at intervals, each sequence by the steps that it took; between, a layer
    computes the rows of the response whose V changed most, and V of all of them."""

    def __init__(self, policy: FeatureCaching, response: int) -> None:
        self.policy, self.response = policy, response
        self.steps = torch.empty(0)
        self.rows = torch.empty(0)
        self.parts: dict[int, list[Tensor]] = {}
        self.part = 0

    def begin(self, step: Step) -> None:
        is_response = torch.arange(step.real.shape[1]) >= self.response
        self.prompt_rows, self.response_rows = step.real & ~is_response, step.real & is_response
        active = step.masked[:, step.place].any(1)
        taken = self.steps if len(self.steps) else torch.zeros(len(active), dtype=torch.int64)
        self.prompt_due = active & (taken % self.policy.prompt_interval == 0)
        self.response_due = active & (taken % self.policy.response_interval == 0)
        self.steps, self.active = taken + active, active

    def due(self, layer: int, values: Tensor, kept: Tensor | None) -> Mapping[str, Tensor]:
        whole = torch.full_like(self.active, layer < self.policy.full_layers)
        rows = self.prompt_rows & (self.prompt_due | whole)[:, None]
        rows |= self.response_rows & (self.response_due | whole)[:, None]
        if kept is not None:
            now, then = (each.transpose(1, 2).flatten(2)[:, self.response :] for each in (values, kept))
            alike = functional.cosine_similarity(now, then, dim=-1)
            least = alike.argsort(dim=-1, stable=True)[:, : int(self.policy.share * alike.shape[1])]
            rows[:, self.response :] |= torch.zeros_like(alike, dtype=torch.bool).scatter(-1, least, True)
        self.rows, self.part = rows & self.active[:, None], 0
        return {"keys": self.rows, "values": self.rows | (self.response_rows & self.active[:, None])}

    def result(self, layer: int, result: Tensor) -> Tensor:
        parts = self.parts.setdefault(layer, [])
        if self.part == len(parts):
            parts.append(torch.zeros_like(result))
        parts[self.part] = torch.where(self.rows[..., None], result, parts[self.part])
        self.part += 1
        return parts[self.part - 1]


class _Sparse(Reuse):
    """Sparse-dLLM: behind its full steps, a block sees the keys outside of it that scored highest in the last of them."""

    def __init__(self, policy: SparseAttention, full_steps: int) -> None:
        self.policy, self.full_steps = policy, full_steps
        self.kept: dict[int, Tensor] = {}

    def begin(self, step: Step) -> None:
        self.step = step

    def seen(self, layer: int, queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        if self.step.number == self.full_steps - 1:
            self.kept[layer] = self._best(queries, keys)
        if self.step.number < self.full_steps:
            return visible
        return visible & self.kept[layer][:, None]

    def _best(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The keys [B, T] that stay: those of the block, and the best share of the others."""
        place, real = self.step.place, self.step.real
        mean = queries[:, :, place].mean(2)
        scores = torch.einsum("bhgd,bhtd->bhgt", mean.unflatten(1, (keys.shape[1], -1)), keys).mean((1, 2))
        outside = torch.cat([torch.arange(place.start), torch.arange(place.stop, real.shape[1])])
        others, known = scores[:, outside], real[:, outside]
        others = others.masked_fill(~known, -torch.inf)
        pooled = functional.max_pool1d(others[:, None], self.policy.pool, stride=1, padding=self.policy.pool // 2)[:, 0]
        order = pooled.masked_fill(~known, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter(-1, order, torch.arange(order.shape[1]).expand_as(order))
        count = (known.sum(1, keepdim=True) * self.policy.kept).to(torch.int64)
        stay = torch.ones_like(real)
        stay[:, outside] = rank < count
        return stay


def reuse_of(policy: CachePolicy, response: int) -> Reuse:
    """The state of a policy for a batch whose generated tokens begin at `response`."""
    match policy.by_data:
        case None:
            return Reuse()
        case DelayedCaching() as delayed:
            return _Delayed(delayed)
        case FeatureCaching() as features:
            return _Features(features, response)
        case SparseAttention() as sparse:
            return _Sparse(sparse, policy.full_steps)
        case unknown:
            assert_never(unknown)
