"""The working sets of a program: every buffer in an SRAM, with its size, and the stream that it belongs to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dllm.constants import CONSTANTS
from dllm.model import ModelSpec
from dllm.operators import most_norms
from dllm.workload import Numerics, Workload
from npu.formats import FORMATS
from npu.hardware import HardwareConfig
from npu.isa import Memory
from npu_compiler.stages import Buffer, Stream
from npu_compiler.tiling import CONTRACTED, STREAM_SLOTS, Tiling, cache_tile, panel_bytes, smoothing_widths

STREAMS = ("weights", "keys_values", "gated", "logits", "logit_rows", "mixed")
SAMPLING_PHASES = ("setup", "sampling", "commit")
"""Phases of `workload.stage=sampling`."""
COMMIT_ROWS = ("confidence", "masked", "chosen", "best", "left")
"""Rows of the commit buffer, one VLEN row each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffers:
    """Buffers by memory and name, and streams by name."""

    by_name: Mapping[tuple[Memory, str], Buffer]
    streams: Mapping[str, Stream]

    def __getitem__(self, key: tuple[Memory, str]) -> Buffer:
        return self.by_name[key]


def working_sets(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, tiling: Tiling
) -> Buffers:
    """All buffers for chunks of `tiling.chunk_rows` rows; in Vector SRAM each is whole rows of VLEN elements."""
    streams = {name: Stream(name=name, slots=STREAM_SLOTS) for name in STREAMS}
    found: dict[tuple[Memory, str], Buffer] = {}
    plans = {
        Memory.VECTOR: _vector(model, workload, hardware, numerics, tiling), Memory.FP: _fp(model, workload, numerics, tiling),
        Memory.INT: _integer(workload, tiling), Memory.MATRIX: _matrix(model, hardware, numerics, tiling),
    }  # fmt: skip
    for memory, plan in plans.items():
        for name, elements, phase, stream in plan:
            if tiling.stage == "generation" or memory in (Memory.INT, Memory.MATRIX) or phase in SAMPLING_PHASES:
                size = -(-elements // hardware.vlen) * hardware.vlen if memory is Memory.VECTOR else elements
                found[memory, name] = Buffer(
                    name=name, memory=memory, elements=size, phase=phase, stream=streams[stream] if stream else None
                )
    return Buffers(by_name=found, streams=streams)


Plan = Iterator[tuple[str, int, str, str]]
"""Name, elements, phase, stream."""


def _vector(model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, tiling: Tiling) -> Plan:
    rows, smoothing = tiling.chunk_rows, numerics.smoothing
    sequences, sliced = tiling.chunk_sequences, STREAM_SLOTS * rows * tiling.slice
    yield from (
        ("x", rows * model.hidden, "embed", ""),
        ("norm_weight", most_norms(model.network) * model.hidden, "qkv", ""),
        ("h", rows * model.hidden, "qkv", ""),
        ("rope", rows * model.turned_channels, "qkv", ""),
        ("bias", model.qkv_width if model.qkv_bias else 0, "qkv", ""),
        ("head_norm", 2 * model.head_dim if model.qk_norm else 0, "qkv", ""),
        ("qkv", rows * model.qkv_width, "qkv", ""),
        ("q", rows * model.query_width, "attention", ""),
        ("mask", sequences * tiling.cache_tokens, "attention", ""),
        ("edge", 2 * tiling.cache_tokens if workload.caches.appends else 0, "attention", ""),
        ("scores", tiling.row_tile * hardware.vlen, "attention", ""),
        ("partial", tiling.row_tile * model.head_dim, "attention", ""),
        ("attended", rows * model.query_width, "attention", ""),
        ("y", rows * model.hidden, "out", ""),
        ("gate", sliced, "ffn", "gated"),
        ("up", sliced, "ffn", "gated"),
        ("act", rows * tiling.slice, "ffn", ""),
        ("inner", rows * model.ffn, "ffn", ""),
        ("logits", sliced, "lm_head", "logits"),
        ("logit_row", STREAM_SLOTS * model.vocab, "sampling", "logit_rows"),
        ("shifted", min(hardware.vlen, model.vocab), "sampling", ""),
        ("commit", len(COMMIT_ROWS) * hardware.vlen, "commit", ""),
    )
    if smoothing.sides:
        inverse, fold = smoothing_widths(model, smoothing)
        measured, channels = bool(smoothing.measured), tiling.batch * 2 * model.kv_width
        yield from (
            ("channel_max", channels if measured else 0, "qkv", ""),
            ("channel_mean", channels if smoothing.centres else 0, "qkv", ""),
            ("inverse", sequences * inverse, "qkv", ""),
            ("smoothing", inverse + fold if measured else 0, "smooth", ""),
            ("kv", rows * 2 * model.kv_width if measured else 0, "smooth", ""),
            ("fold", sequences * fold, "attention", ""),
        )
    if smoothing.mixed:
        yield "mixed", STREAM_SLOTS * tiling.row_tile * model.head_dim, "qkv", "mixed"
    if smoothing.pre_rope:
        yield "cached_keys", rows * model.kv_width, "rotate", ""
        yield "key_rope", rows * model.turned_channels, "rotate", ""


def _fp(model: ModelSpec, workload: Workload, numerics: Numerics, tiling: Tiling) -> Plan:
    """Constants, one sum and validity per row, softmax state per query head and row."""
    rows, group, smoothing = tiling.chunk_rows, model.heads // model.kv_heads, numerics.smoothing
    yield from (
        ("constants", len(CONSTANTS), "setup", ""),
        ("square_sum", rows, "qkv", ""),
        ("valid", rows, "qkv", ""),
        ("running_max", group * rows, "attention", ""),
        ("running_sum", group * rows, "attention", ""),
        ("new_max", tiling.row_tile, "attention", ""),
        ("correction", tiling.row_tile, "attention", ""),
        ("head_state", 2 * 2 * model.kv_heads if smoothing.measured else 0, "smooth", ""),
        ("inverse_tokens", tiling.batch if smoothing.centres else 0, "smooth", ""),
        ("best", 1, "sampling", ""),
        ("confidence", workload.batch * workload.block_length, "sampling", ""),
    )


def _integer(workload: Workload, tiling: Tiling) -> Plan:
    sampled = workload.batch * workload.block_length
    # The step loop's last trip only leaves, but its address moves on: a place of its own keeps accesses apart.
    yield from (
        ("constants", 2, "setup", ""), ("quota", workload.block_length + 1, "setup", ""), ("remaining", 1, "commit", ""),
        ("ids", tiling.chunk_rows, "embed", ""), ("tokens", sampled, "sampling", ""), ("sampled", sampled, "sampling", ""),
    )  # fmt: skip


def _matrix(model: ModelSpec, hardware: HardwareConfig, numerics: Numerics, tiling: Tiling) -> Plan:
    yield "weights", STREAM_SLOTS * panel_bytes(model, hardware, numerics), "ffn", "weights"
    if numerics.smoothing.mixed:
        yield "hadamard", model.head_dim * FORMATS["bf16"].row_bytes(model.head_dim), "setup", ""
    for side in CONTRACTED:
        yield side, STREAM_SLOTS * cache_tile(model, numerics, tiling, side).size_bytes, "attention", "keys_values"
