"""A model's operators in torch, with gradients, under our names of tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dllm.experts import Scoring
from dllm.families import PREFIX
from dllm.model import ModelSpec
from dllm.operators import (
    ALL_TRAITS,
    Activation,
    Attention,
    Channelwise,
    Embedding,
    GatedMlp,
    HeadNorm,
    Linear,
    LmHead,
    Mask,
    Moe,
    Norm,
    Operator,
    Residual,
    Rope,
    SelfConditioning,
    Step,
    Sum,
)
from npu.errors import TripathError


def rope_tables(positions: int, frequencies: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, channels], both halves alike."""
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), torch.tensor(frequencies, dtype=torch.float32))
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim], of as many channels as the tables have."""
    turned, kept = x[..., : cosine.shape[-1]], x[..., cosine.shape[-1] :]
    low, high = turned.chunk(2, -1)
    return torch.cat([turned * cosine + torch.cat([-high, low], -1) * sine, kept], -1)


@dataclass(kw_only=True)
class Flow:
    """A forward on its way: the residual stream `x` [batch, tokens, hidden], and `h`, the parts that the last operator left.

    `masks` [batch, 1, 1 or rows, rows] are true where a row sees a key; `modules` are those of the layer, by name. `soft`
    [batch, tokens, hidden] are soft tokens; None: a pass over finished tokens. Rows whose `places` [rows] are in one block choose
    experts together.
    """

    tokens: torch.Tensor
    masks: Mapping[tuple[Mask, int | None], torch.Tensor]
    rope: Mapping[Rope, tuple[torch.Tensor, torch.Tensor]]
    x: torch.Tensor
    places: torch.Tensor
    h: list[torch.Tensor] = field(default_factory=list)
    soft: torch.Tensor | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)


def heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Heads side by side as [batch, heads, tokens, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def admitted(mask: Mask, positions: torch.Tensor, block: int, window: int | None = None) -> torch.Tensor:
    """The keys [1 or rows, keys] that rows at `positions` see, among keys at the same positions."""
    rows, keys = positions[:, None], positions[None]
    if window is not None:
        begins = rows // block * block if mask is Mask.BLOCK_CAUSAL else rows
        inside = keys > begins - window
        inside = inside & (keys < begins + window) if mask is Mask.FULL else inside
        return inside & admitted(mask, positions, block)
    match mask:
        case Mask.FULL:
            return torch.ones(1, len(positions), dtype=torch.bool)
        case Mask.BLOCK_CAUSAL:
            return keys // block <= rows // block
        case Mask.CAUSAL:
            return keys <= rows
        case unknown:
            assert_never(unknown)


def _embed(op: Embedding, f: Flow) -> None:
    f.x = f.modules["wte"](f.tokens)
    if op.scale != 1:
        f.x = f.x * op.scale


def _norm(op: Norm, f: Flow) -> None:
    f.h = [f.modules[op.part](f.h[0] if op.of_result else f.x)]


def _channelwise(op: Channelwise, f: Flow) -> None:
    (h,) = f.h
    for step, tensor in op.steps:
        match step:
            case Step.SCALE:
                h = h * f.modules[op.part].get_parameter(tensor)
            case Step.SHIFT:
                h = h + f.modules[op.part].get_parameter(tensor)
            case Step.TANH:
                h = h.tanh()
    f.h = [h]


def _linear(op: Linear, f: Flow) -> None:
    (h,) = f.h
    f.h = [f.modules[part](h) for part, _ in op.parts]


def _head_norm(op: HeadNorm, f: Flow) -> None:
    q, k, *values = f.h
    v = k if op.shared else values[0]
    normed = (f.modules[name](x.unflatten(-1, (-1, op.head_dim))) for x, name in ((q, "q_norm"), (k, "k_norm")))
    if op.values:
        v = functional.rms_norm(v.unflatten(-1, (-1, op.head_dim)), (op.head_dim,), eps=op.epsilon).flatten(-2)
    f.h = [*(x.flatten(-2) for x in normed), v]


def _rope(op: Rope, f: Flow) -> None:
    q, k, v = (heads(x, op.head_dim) for x in f.h)
    f.h = [rotate(q, *f.rope[op]), rotate(k, *f.rope[op]), v]


def _attention(op: Attention, f: Flow) -> None:
    q, k, v = f.h
    group = op.heads // op.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=f.masks[op.mask, op.window], scale=op.scale)
    f.h = [attended.transpose(1, 2).flatten(2)]


ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: functional.silu, Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
}  # fmt: skip
"""Activations of gated MLPs."""


def _gated(h: torch.Tensor, modules: Mapping[str, nn.Module], activation: Activation) -> torch.Tensor:
    return modules["ff_out"](ACTIVATIONS[activation](modules["ff_proj"](h)) * modules["up_proj"](h))


def _gated_mlp(op: GatedMlp, f: Flow) -> None:
    f.h = [_gated(f.h[0], f.modules, op.activation)]


class Router(nn.Module):
    """Scores and choice of experts; `expert_bias`, where there is one, takes part in the choice alone.

    `norm` is its own norm of the residual stream, `factors` those of the weights; each is there where experts say so.
    The bias has no gradient. While the module trains, each pass with gradients moves it by `BALANCE` towards the experts that
    few rows took (arXiv:2408.15664).
    """

    BALANCE = 1e-3

    def __init__(self, op: Moe) -> None:
        super().__init__()
        self.experts = op.experts
        self.weight = nn.Parameter(torch.empty(op.experts.count, op.width))
        self.expert_bias = nn.Parameter(torch.zeros(op.experts.count), requires_grad=False) if op.experts.bias else None
        self.norm = nn.RMSNorm(op.width, eps=op.epsilon) if op.experts.router_norm else None
        self.factors = nn.Parameter(torch.ones(op.experts.count)) if op.experts.factors else None

    def forward(self, h: torch.Tensor, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Weights [batch, rows, experts] of the experts that rows take, 0 for the others; `h` are the rows as experts read them,
        `x` as they stand in the residual stream, at `places` [rows]."""
        seen = h if self.norm is None else self.norm(x) * x.shape[-1] ** -0.5
        experts, logits = self.experts, functional.linear(seen, self.weight)
        match experts.scoring:
            case Scoring.SOFTMAX:
                scores = logits.softmax(-1)
            case Scoring.SIGMOID:
                scores = logits.sigmoid()
            case unknown:
                assert_never(unknown)
        ranks = scores.detach() if self.expert_bias is None else scores.detach() + self.expert_bias
        taken = self._taken(ranks, places)
        if self.training and torch.is_grad_enabled() and self.expert_bias is not None:
            load = taken.flatten(0, -2).float().mean(0)
            with torch.no_grad():
                self.expert_bias += self.BALANCE * (load.mean() - load).sign()
        weights = scores * taken
        if experts.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * experts.scale
        return weights if self.factors is None else weights * self.factors

    def _taken(self, ranks: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """1 for the experts that rows take, else 0."""
        experts = self.experts
        if experts.groups > 1:
            by_group = ranks.unflatten(-1, (experts.groups, -1))
            best = by_group.topk(2, -1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter(
                -1, best.topk(experts.kept_groups, -1).indices, True
            )
            ranks = by_group.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        if experts.block_capacity:
            blocks = places // experts.block_tokens
            best = ranks.new_full((len(ranks), int(blocks.max()) + 1, experts.count), -torch.inf)
            best = best.scatter_reduce(1, blocks[:, None].expand_as(ranks), ranks, "amax")
            kept = torch.zeros_like(best).scatter(-1, best.topk(experts.block_capacity, -1).indices, 1.0)
            ranks = ranks.masked_fill(kept[:, blocks] == 0, -torch.inf)
        return torch.zeros_like(ranks).scatter(-1, ranks.topk(experts.chosen, -1).indices, 1.0)


def _moe(op: Moe, f: Flow) -> None:
    """All experts side by side as one wide MLP, of which a row's weights leave those that it takes."""
    (h,) = f.h
    weights, own = f.modules["router"](h, f.x, f.places), cast("nn.ModuleList", f.modules["experts"])
    gate, up = (torch.cat([each.get_parameter(f"{name}.weight") for each in own]) for name in ("ff_proj", "up_proj"))
    down = torch.cat([each.get_parameter("ff_out.weight") for each in own], dim=1)
    inner = ACTIVATIONS[op.activation](functional.linear(h, gate)) * functional.linear(h, up)
    result = functional.linear(inner * weights.repeat_interleave(op.experts.inner, -1), down)
    if op.experts.shared:
        result = result + _gated(h, dict(f.modules["shared_experts"].named_children()), op.activation)
    f.h = [result]


def _sum(op: Sum, f: Flow) -> None:
    results = []
    for branch in op.branches:
        for operator in branch:
            COMPUTE[type(operator)](operator, f)
        results.append(f.h[0])
    f.h = [torch.stack(results).sum(0)]


class Factors(nn.Module):
    """Learned factors, under the name of the module."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Channels(nn.Module):
    """The learned numbers of steps by channel, which at first change nothing."""

    def __init__(self, op: Channelwise) -> None:
        super().__init__()
        for step, tensor in op.steps:
            if tensor:
                start = torch.ones(op.width) if step is Step.SCALE else torch.zeros(op.width)
                self.register_parameter(tensor, nn.Parameter(start))


def _residual(op: Residual, f: Flow) -> None:
    f.x = f.x + f.h[0]
    if op.scaled:
        clean = op.clean_scaled and f.soft is None
        f.x = f.x * f.modules["clean_layer_scale" if clean else "layer_scale"].get_parameter("weight")


def _self_conditioning(op: SelfConditioning, f: Flow) -> None:
    assert f.soft is not None
    own = dict(f.modules["self_conditioning"].named_children())
    f.x = functional.rms_norm(f.x + _gated(own["norm"](f.soft), own, op.activation), (op.width,), eps=op.epsilon)


def _lm_head(op: LmHead, f: Flow) -> None:
    logits = functional.linear(f.h[0], f.modules[op.part].get_parameter("weight"))
    f.h = [logits if op.softcap is None else op.softcap * torch.tanh(logits / op.softcap)]


COMPUTE: Mapping[type[Operator], Callable[[Any, Flow], None]] = {
    Embedding: _embed, Norm: _norm, Channelwise: _channelwise, Linear: _linear, HeadNorm: _head_norm, Rope: _rope,
    Attention: _attention, GatedMlp: _gated_mlp, Moe: _moe, Sum: _sum, Residual: _residual,
    SelfConditioning: _self_conditioning, LmHead: _lm_head,
}  # fmt: skip
"""The function of each operator in training."""


def _gated_modules(width: int, inner: int) -> Iterator[tuple[str, nn.Module]]:
    yield "ff_proj", nn.Linear(width, inner, bias=False)
    yield "up_proj", nn.Linear(width, inner, bias=False)
    yield "ff_out", nn.Linear(inner, width, bias=False)


def _modules(operators: Sequence[Operator]) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every part that some operators have."""
    for each in operators:
        match each:
            case Embedding():
                yield "wte", nn.Embedding(each.vocab, each.width)
            case Norm():
                yield each.part, nn.RMSNorm(each.width, eps=each.epsilon)
            case Channelwise():
                yield each.part, Channels(each)
            case Linear():
                yield from ((part, nn.Linear(each.inputs, rows, bias=bool(each.bias))) for part, rows in each.parts)
            case HeadNorm():
                yield from ((name, nn.RMSNorm(each.head_dim, eps=each.epsilon)) for name in ("q_norm", "k_norm"))
            case GatedMlp():
                yield from _gated_modules(each.width, each.inner)
            case Moe():
                experts = each.experts
                own = (dict(_gated_modules(each.width, experts.inner)) for _ in range(experts.count))
                yield "router", Router(each)
                yield "experts", nn.ModuleList(map(nn.ModuleDict, own))
                if experts.shared:
                    yield "shared_experts", nn.ModuleDict(dict(_gated_modules(each.width, experts.shared)))
            case LmHead() if each.tied:
                pass
            case LmHead():
                yield "ff_out", nn.Linear(each.width, each.vocab, bias=False)
            case Sum():
                for branch in each.branches:
                    yield from _modules(branch)
            case Residual() if each.scaled:
                yield "layer_scale", Factors()
                if each.clean_scaled:
                    yield "clean_layer_scale", Factors()
            case SelfConditioning():
                own = {"norm": nn.RMSNorm(each.width, eps=each.epsilon), **dict(_gated_modules(each.width, each.inner))}
                yield "self_conditioning", nn.ModuleDict(own)
            case Rope() | Attention() | Residual():
                pass
            case unknown:
                assert_never(unknown)


class DiffusionTransformer(nn.Module):
    """The operators of a model, with weights to train; `block` is the length of a block-causal mask's blocks."""

    def __init__(self, spec: ModelSpec, block: int = 8) -> None:
        super().__init__()
        self.spec, self.network, self.block = spec, spec.network, block
        self.network.check(COMPUTE, "training", traits=ALL_TRAITS)
        if (experts := spec.experts) is not None and experts.block_capacity and block % experts.block_tokens:
            raise TripathError(
                f"model.experts.block_tokens: {experts.block_tokens} does not divide the {block} tokens of a block in training"
            )
        for name, module in _modules((*self.network.stem, *self.network.conditioning)):
            self.add_module(name, module)
        self.blocks = nn.ModuleList(nn.ModuleDict(dict(_modules(pattern))) for _, pattern in self.network.layers())
        for name, module in _modules(self.network.head):
            self.add_module(name, module)
        operators = [each for _, pattern in self.network.layers() for each in pattern]
        ropes = {each for each in operators if isinstance(each, Rope)}
        self.tables = {each: rope_tables(spec.max_sequence, each.frequencies) for each in ropes}
        self.masks = {(each.mask, each.window) for each in operators if isinstance(each, Attention)}
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attn_out.weight", "ff_out.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * spec.layers) ** 0.5)

    def forward(
        self, tokens: torch.Tensor, visible: torch.Tensor, last: int | None = None, noisy: torch.Tensor | None = None,
        soft: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits [batch, last or all rows, vocab]; `visible` [batch, tokens] is false for padding.

        Padding stands on the left, by whole blocks where the mask is block-causal. `noisy` [batch, n] is another version of
        the last n tokens, whole blocks, whose rows follow those of `tokens`. Such a row sees the keys that the row it
        stands for sees, those of its own block in the noisy version; no row of `tokens` sees it. `soft` [batch, rows, hidden]
        are soft tokens of a self-conditioned model; None: all tokens are finished ones.
        """
        positions = torch.arange(tokens.shape[1])
        own = torch.zeros(len(positions), dtype=torch.bool)
        if noisy is not None:
            count = noisy.shape[1]
            tokens, visible = torch.cat([tokens, noisy], 1), torch.cat([visible, visible[:, -count:]], 1)
            positions, own = torch.cat([positions, positions[-count:]]), torch.cat([own, torch.ones(count).bool()])
        rope = {op: (cosine[positions], sine[positions]) for op, (cosine, sine) in self.tables.items()}
        masks = {key: self._visible(*key, positions, own, visible) for key in self.masks}
        behind = -(-len(positions) // self.block) * self.block  # where blocks of noisy rows count from
        flow = Flow(tokens=tokens, masks=masks, rope=rope, x=tokens, places=positions + behind * own, soft=soft)
        self._run(flow, self.network.stem, self)
        if soft is not None:
            self._run(flow, self.network.conditioning, self)
        for (_, pattern), block in zip(self.network.layers(), self.blocks, strict=True):
            self._run(flow, pattern, block)
        if last:
            flow.x = flow.x[:, -last:]
        self._run(flow, self.network.head, self)
        return flow.h[0]

    def _visible(
        self, mask: Mask, window: int | None, positions: torch.Tensor, noisy: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """The keys that each row sees; rows of padding see padding, so that no softmax is empty."""
        keys = admitted(mask, positions, self.block, window)
        if noisy.any():
            same_block = positions[:, None] // self.block == positions[None] // self.block
            keys = keys & torch.where(noisy[:, None] & same_block, noisy[None], ~noisy[None])
        seen = visible[:, None, None, :]
        return seen if len(keys) == 1 else keys & (seen | ~visible[:, None, :, None])

    def _run(self, flow: Flow, operators: Sequence[Operator], owner: nn.Module) -> None:
        flow.modules = dict(owner.named_children())
        for operator in operators:
            COMPUTE[type(operator)](operator, flow)

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """Weights under our names."""
        return {f"{PREFIX}{name}": value for name, value in self.state_dict().items()}
