"""The software that drives a GPU: the host's cost of a launch, the passes that are fused, and the rows that get logits."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm.devices.operation import Operation

BF16_READ_AND_WRITE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Software on a GPU.

    Attributes:
        eager: The host dispatches each launch, in `dispatch_seconds` of the device.
        gap_seconds: Otherwise, between two launches that the GPU takes from a recorded graph.
        step_seconds: Of the host for each step, between two graphs.
        fuses: Chains of elementwise passes are one kernel that reads and writes once.
        every_row: LM head and sampling take every row that is forwarded, not the block alone.
        source: Where that is from.
    """

    eager: bool
    gap_seconds: float = 0.0
    step_seconds: float = 0.0
    fuses: bool = False
    every_row: bool = True
    source: str


GRAPH_GAP_SECONDS = 0.6e-6
ENGINES = {
    "eager": Engine(eager=True, source="PyTorch, LLaDA's and Dream's modelling code: softmax over all rows that forward returns"),
    "graphs": Engine(
        eager=False, gap_seconds=GRAPH_GAP_SECONDS,
        source="the same in CUDA graphs: 206,149 launches on an A800 leave 120 ms between kernels (a800_eager_share)",
    ),
    "serving": Engine(
        eager=False, gap_seconds=GRAPH_GAP_SECONDS, step_seconds=3.0e-3, fuses=True, every_row=False,
        source="vLLM, SGLang, dInfer: graphs, fused norms and gates, logits of the block; 3 ms by qwen25_7b_ar_h100",
    ),
}  # fmt: skip
"""Engines by name."""


def driven(engine: Engine, operations: "list[Operation]") -> "list[Operation]":
    """The operations as an engine launches them."""
    if not engine.fuses:
        return operations
    return [_fused(row) if row.product is None and row.launches > 1 else row for row in operations]


def _fused(row: "Operation") -> "Operation":
    elements = row.work / row.launches
    return replace(row, moved_bytes=min(row.moved_bytes, BF16_READ_AND_WRITE * elements), launches=1)
