"""The phases of `dllm.devices` in torch, to be timed on a GPU or a CPU: the operators of a model over random weights and rows.

A forward is that of eager code: each operator its own kernels, attention as `scaled_dot_product_attention` without a mask, since
rows see the whole canvas. Sampling is LLaDA's: softmax in FP64, arg max, and the probability of what it chose.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from dllm.model import ModelSpec
from dllm.operators import Attention, Operator
from dllm_training.model import COMPUTE, DiffusionTransformer, Flow
from npu.errors import TripathError

Call = Callable[[], object]
WARMUP = 3


class Phases:
    """A model with random weights on a device, and a cache of K and V for each layer."""

    def __init__(self, spec: ModelSpec, *, batch: int, canvas: int, block: int, device: str, dtype: str) -> None:
        if len(spec.geometries) > 1:
            raise TripathError(f"model: phases of {spec.name} are not timed, its layers are of two kinds")
        self.spec, self.batch, self.canvas, self.block = spec, batch, canvas, block
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            with torch.device(device):
                torch.manual_seed(0)
                self.model = DiffusionTransformer(spec).eval()
                self.hidden = torch.randn(batch, canvas, spec.hidden)
                self.tokens = torch.randint(spec.vocab, (batch, canvas))
                shape = (batch, spec.kv_heads, canvas, spec.head_dim)
                self.caches = [(torch.randn(shape), torch.randn(shape)) for _ in range(spec.layers)]
                self.logits = torch.randn(batch, block, spec.vocab)
                self.tables = {
                    op: (cosine.to(self.hidden), sine.to(self.hidden))
                    for op, (cosine, sine) in self.model.tables.items()
                }
        finally:
            torch.set_default_dtype(before)

    def calls(self) -> Iterator[tuple[str, Call]]:
        """Name and call of each phase."""
        yield "prefill", partial(self.forward, self.canvas)
        yield "refine", partial(self.forward, self.block)
        yield "lm_head", self.lm_head
        yield "sampling", self.sampling
        yield "softmax", lambda: self.logits.to(torch.float64).softmax(-1)
        yield "norm", lambda: cast("nn.Module", self.model.ln_f)(self.hidden)

    @torch.inference_mode()
    def forward(self, rows: int) -> torch.Tensor:
        """Hidden states of the last `rows` of the canvas, whose K and V go into the cache."""
        first = self.canvas - rows
        rope = {
            op: (cosine[first : self.canvas], sine[first : self.canvas]) for op, (cosine, sine) in self.tables.items()
        }
        flow = Flow(
            tokens=self.tokens[:, first:], masks={}, rope=rope, x=self.tokens, places=torch.arange(first, self.canvas)
        )
        self._run(flow, self.spec.network.stem, self.model, first, None)
        for layer, ((_, pattern), block) in enumerate(zip(self.spec.network.layers(), self.model.blocks, strict=True)):
            self._run(flow, pattern, block, first, layer)
        return flow.x

    @torch.inference_mode()
    def lm_head(self) -> torch.Tensor:
        """Logits of a block."""
        flow = Flow(
            tokens=self.tokens, masks={}, rope={}, x=self.hidden[:, : self.block], places=torch.arange(self.block)
        )
        self._run(flow, self.spec.network.head, self.model, 0, None)
        return flow.h[0]

    @torch.inference_mode()
    def sampling(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and confidence of each position of a block."""
        chosen = self.logits.argmax(-1)
        return chosen, self.logits.to(torch.float64).softmax(-1).gather(-1, chosen[..., None])[..., 0]

    def _run(
        self, flow: Flow, operators: tuple[Operator, ...], owner: nn.Module, first: int, layer: int | None
    ) -> None:
        flow.modules = dict(owner.named_children())
        for operator in operators:
            if isinstance(operator, Attention):
                assert layer is not None
                self._attend(operator, flow, first, layer)
            else:
                COMPUTE[type(operator)](operator, flow)

    def _attend(self, op: Attention, flow: Flow, first: int, layer: int) -> None:
        q, k, v = flow.h
        for cache, fresh in zip(self.caches[layer], (k, v), strict=True):
            cache[:, :, first:] = fresh
        grouped = op.heads != op.kv_heads
        attended = functional.scaled_dot_product_attention(q, *self.caches[layer], enable_gqa=grouped)
        flow.h = [attended.transpose(1, 2).flatten(2)]


def is_there(device: str) -> bool:
    """True unless the device is CUDA and torch has none."""
    return not device.startswith("cuda") or torch.cuda.is_available()


def timed(call: Call, device: str, repeats: int) -> list[float]:
    """Seconds of each of `repeats` executions, after WARMUP; on a GPU by its own events, queue empty before each."""
    for _ in range(WARMUP):
        call()
    found = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
    return found


def name_of(device: str) -> str:
    """The measured software and device, for the column `source`."""
    what = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    return f"torch {torch.__version__} eager, {what}"
