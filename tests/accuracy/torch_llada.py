"""LLaDA's model and decoding in torch: an oracle for tests, written apart from `accuracy.reference` and sharing none of it.

Attention is torch's own scaled dot product, RoPE is a product of complex numbers, the cache is rebuilt functionally.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchDecoding:
    """Generated tokens, steps per block, and per step (block, canvas before it [S], logits of the block [L, V])."""

    token_ids: list[int]
    trip_counts: list[int]
    steps: list[tuple[int, np.ndarray, np.ndarray]]


class TorchLlada:
    """The network over one unpadded sequence; `dtype` is that of weights and activations (norms run in float32)."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], *, heads: int, kv_heads: int, rope_theta: float, rms_eps: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.weights = {name: torch.from_numpy(np.array(value)).to(dtype) for name, value in tensors.items()}
        self.layers = 1 + max(int(name.split(".")[3]) for name in tensors if ".blocks." in name)
        self.heads, self.kv_heads, self.theta, self.eps, self.dtype = heads, kv_heads, rope_theta, rms_eps, dtype

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.weights[f"model.transformer.{name}.weight"].float()
        return F.rms_norm(x.float(), (x.shape[-1],), weight, self.eps).to(self.dtype)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"model.transformer.{name}.weight"])

    def _turn(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """RoPE of x [heads, tokens, head_dim]: (channel j, channel j + half) is one complex number."""
        half = x.shape[-1] // 2
        inverse = 1.0 / self.theta ** (torch.arange(half, dtype=torch.float64) / half)
        phase = torch.polar(torch.ones(1, dtype=torch.float64), position.double()[:, None] * inverse).to(torch.complex64)
        turned = torch.complex(x[..., :half].float(), x[..., half:].float()) * phase
        return torch.cat([turned.real, turned.imag], dim=-1).to(self.dtype)

    @torch.no_grad()
    def __call__(
        self, tokens: torch.Tensor, position: torch.Tensor, old: list[tuple[torch.Tensor, torch.Tensor]] | None
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Logits [len(position), V] of the tokens at `position`, and the K/V of all tokens: `old` with those rows new."""
        x = F.embedding(tokens[position], self.weights["model.transformer.wte.weight"])
        new = []
        for layer in range(self.layers):
            at = f"blocks.{layer}"
            h = self._norm(x, f"{at}.attn_norm")
            q, k, v = (
                self._linear(h, f"{at}.{name}").unflatten(-1, (count, -1)).transpose(0, 1)
                for name, count in (("q_proj", self.heads), ("k_proj", self.kv_heads), ("v_proj", self.kv_heads))
            )
            q, k = self._turn(q, position), self._turn(k, position)
            if old is not None:
                k, v = old[layer][0].index_copy(1, position, k), old[layer][1].index_copy(1, position, v)
            new.append((k, v))
            mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=True)[0]
            x = x + self._linear(mixed.transpose(0, 1).flatten(1), f"{at}.attn_out")
            h = self._norm(x, f"{at}.ff_norm")
            gate, up = self._linear(h, f"{at}.ff_proj"), self._linear(h, f"{at}.up_proj")
            x = x + self._linear(F.silu(gate) * up, f"{at}.ff_out")
        return self._linear(self._norm(x, "ln_f"), "ff_out").float(), new


def torch_decode(
    model: TorchLlada, prompt: list[int], *, mask_id: int, generation_length: int, block_length: int, steps: int, cache: str,
    commit: str, threshold: float,
) -> TorchDecoding:  # fmt: skip
    """Greedy semi-autoregressive decoding of one sequence."""
    canvas = F.pad(torch.tensor(prompt), (0, generation_length), value=mask_id)
    everything = torch.arange(len(canvas))
    blocks = generation_length // block_length
    transfer = torch.full((steps // blocks,), block_length // (steps // blocks))
    transfer[: block_length % (steps // blocks)] += 1
    trips, records = [], []
    for block, here in enumerate(everything[len(prompt) :].split(block_length)):
        warm, trip = None, 0
        while trip < block_length and bool((canvas[here] == mask_id).any()):
            rows = everything
            if warm is not None and cache == "prefix":
                rows = everything[here[0] :]
            elif warm is not None and cache == "dual":
                rows = here
            logits, fresh = model(canvas, rows, warm if len(rows) < len(canvas) else None)
            warm = fresh
            logits = logits[torch.isin(rows, here)]
            records.append((block, canvas.numpy().copy(), logits.numpy()))
            confidence, token = logits.softmax(-1).max(-1)
            confidence = torch.where(canvas[here] == mask_id, confidence, -torch.inf)
            ranked = confidence.sort(descending=True, stable=True).indices
            if commit == "quota":
                count = int(transfer[trip]) if trip < len(transfer) else 0
            else:
                count = max(1, int((confidence >= threshold).sum()))
            count = min(count, int((canvas[here] == mask_id).sum()))
            canvas[here[ranked[:count]]] = token[ranked[:count]]
            trip += 1
        trips.append(trip)
    return TorchDecoding(token_ids=canvas[len(prompt) :].tolist(), trip_counts=trips, steps=records)
