"""A LLaDA-style transformer in torch, under LLaDA's tensor names."""

import torch
from torch import nn
from torch.nn import functional

from dllm.model import ModelSpec


def rope_tables(positions: int, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, head_dim], both halves alike."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency)
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim]."""
    low, high = x.chunk(2, -1)
    return x * cosine + torch.cat([-high, low], -1) * sine


class Block(nn.Module):
    """One layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.heads * spec.head_dim
        self.attn_norm = nn.RMSNorm(spec.hidden, eps=spec.rms_eps)
        self.q_proj = nn.Linear(spec.hidden, width, bias=False)
        self.k_proj = nn.Linear(spec.hidden, spec.kv_width, bias=False)
        self.v_proj = nn.Linear(spec.hidden, spec.kv_width, bias=False)
        self.attn_out = nn.Linear(width, spec.hidden, bias=False)
        self.ff_norm = nn.RMSNorm(spec.hidden, eps=spec.rms_eps)
        self.ff_proj = nn.Linear(spec.hidden, spec.ffn, bias=False)
        self.up_proj = nn.Linear(spec.hidden, spec.ffn, bias=False)
        self.ff_out = nn.Linear(spec.ffn, spec.hidden, bias=False)

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """X [batch, tokens, hidden]; mask [batch, 1, 1, tokens], true where a key may be seen."""
        batch, tokens, _ = x.shape
        h = self.attn_norm(x)

        def heads(y: torch.Tensor, count: int) -> torch.Tensor:
            return y.view(batch, tokens, count, self.spec.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(h), self.spec.heads), *rope)
        k = rotate(heads(self.k_proj(h), self.spec.kv_heads), *rope)
        v = heads(self.v_proj(h), self.spec.kv_heads)
        group = self.spec.heads // self.spec.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attn_out(attended.transpose(1, 2).reshape(batch, tokens, -1))
        h = self.ff_norm(x)
        return x + self.ff_out(functional.silu(self.ff_proj(h)) * self.up_proj(h))


class DiffusionTransformer(nn.Module):
    """Embedding, layers, final norm, untied LM head."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.wte = nn.Embedding(spec.vocab, spec.hidden)
        blocks = [Block(spec) for _ in range(spec.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_f = nn.RMSNorm(spec.hidden, eps=spec.rms_eps)
        self.ff_out = nn.Linear(spec.hidden, spec.vocab, bias=False)
        self.rope = rope_tables(spec.max_sequence, spec.head_dim, spec.rope_theta)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in blocks:
            for layer in (block.attn_out, block.ff_out):
                nn.init.normal_(layer.weight, std=0.02 / (2 * spec.layers) ** 0.5)

    def forward(self, tokens: torch.Tensor, visible: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """Logits [batch, last or all tokens, vocab]; `visible` [batch, tokens] is false for padding."""
        x = self.wte(tokens)
        rope = tuple(table[: tokens.shape[1]] for table in self.rope)
        mask = visible[:, None, None, :]
        for block in self.blocks:
            x = block(x, rope, mask)
        if last:
            x = x[:, -last:]
        return self.ff_out(self.ln_f(x))

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """Weights under LLaDA's names."""
        return {f"model.transformer.{name}": value for name, value in self.state_dict().items()}
