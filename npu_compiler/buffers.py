"""The working sets of a program: every buffer in an SRAM, with its size, and the stream that it belongs to."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dllm.constants import CONSTANTS, further_constants
from dllm.model import ModelSpec
from dllm.network import leaves, most_norms
from dllm.numerics import Numerics
from dllm.operators import Channelwise, Sum
from dllm.workload import Workload
from npu.formats import FORMATS
from npu.hardware import HardwareConfig
from npu.isa import Memory
from npu_compiler.arrangement import Arrangement, Sampling
from npu_compiler.stages import Buffer, Stream
from npu_compiler.tiling import (
    CONTRACTED,
    STREAM_SLOTS,
    Tiling,
    cache_tile,
    panel_bytes,
    row_tile,
    smoothing_widths,
    whole_tiles,
    widest_ffn,
)

STREAMS = (
    "weights",
    "keys_values",
    "gated",
    "logits",
    "logit_rows",
    "mixed",
    "passing",
    "passed",
    "multiplied",
    "made",
)
MATRIX_WORD_BYTES = 16
SAMPLING_PHASES = ("setup", "sampling", "commit")
"""Phases of `workload.stage=sampling`."""
COMMIT_ROWS = ("confidence", "masked", "chosen", "best", "left")
"""Rows of the commit buffer, one VLEN row each."""
IN_ATTENTION = ("constants", "running_max", "running_sum")
"""Buffers of FP SRAM that are alive together in every attention: the numbers that it needs, and the state of its softmax."""
PASSED_ROWS = 2
"""Rows of VLEN elements that a row of results takes at most, where weights stay."""
MADE_ROWS = 8
"""Rows of VLEN elements of gate and of up that are made at a time, where weights stay."""
EDIT_ROWS = ("placed", "sure", "same")
"""Rows of the buffer for edits: positions whose tokens this block committed, those of high confidence, those that stay alike."""


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
    slots = dict.fromkeys(STREAMS, STREAM_SLOTS) | {"weights": tiling.arrangement.weight_slots}
    streams = {name: Stream(name=name, slots=count) for name, count in slots.items()}
    found: dict[tuple[Memory, str], Buffer] = {}
    plans = {
        Memory.VECTOR: _vector(model, workload, hardware, numerics, tiling), Memory.FP: _fp(model, workload, numerics, tiling),
        Memory.INT: _integer(model, workload, tiling), Memory.MATRIX: _matrix(model, hardware, numerics, tiling),
    }  # fmt: skip
    if tiling.arrangement.weights_stay:
        plans[Memory.MATRIX] = _rest(plans[Memory.MATRIX], hardware)
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
    tiled = rows if model.experts is None else whole_tiles(rows, row_tile(hardware))
    gated, sampling = STREAM_SLOTS * tiled * tiling.ffn_slice, tiling.arrangement.sampling
    stored, on_host = sampling is Sampling.STORED, sampling is Sampling.HOST
    entropy, conditions = workload.commits.measures_entropy, model.self_conditioning is not None
    yield from (
        ("x", rows * model.hidden, "embed", ""),
        ("norm_weight", most_norms(model.network) * model.hidden, "qkv", ""),
        ("h", rows * model.hidden, "qkv", ""),
        ("rope", rows * most(model, "turned_channels"), "qkv", ""),
        ("bias", most(model, "qkv_width") if model.qkv_bias else 0, "qkv", ""),
        ("head_norm", 2 * most(model, "head_dim") if model.qk_norm else 0, "qkv", ""),
        ("qkv", rows * most(model, "qkv_width"), "qkv", ""),
        ("q", rows * most(model, "query_width"), "attention", ""),
        ("mask", sequences * tiling.cache_tokens, "attention", ""),
        ("window", tiling.window_elements(model.geometries), "attention", ""),
        ("edge", 2 * tiling.cache_tokens if workload.caches.appends else 0, "attention", ""),
        *(
            (name, tiling.row_tile * hardware.vlen, "attention", "")
            for name in alternating("scores", tiling.arrangement)
        ),
        *(
            (name, tiling.row_tile * most(model, "head_dim"), "attention", "")
            for name in alternating("partial", tiling.arrangement)
        ),
        ("attended", rows * most(model, "query_width"), "attention", ""),
        ("y", rows * model.hidden, "out", ""),
        ("channelwise", _most_of_channels(model), "out", ""),
        ("beside", rows * model.hidden if _has_branches(model) else 0, "ffn", ""),
        ("gate", gated, "ffn", "gated"),
        ("up", gated, "ffn", "gated"),
        ("act", tiled * tiling.ffn_slice, "ffn", ""),
        ("inner", tiled * widest_ffn(model), "ffn", ""),
        ("logits", sliced, "lm_head", "logits"),
        ("logit_row", STREAM_SLOTS * model.vocab if stored else 0, "sampling", "logit_rows"),
        ("unguided", STREAM_SLOTS * model.vocab if workload.guided else 0, "sampling", "logit_rows"),
        ("shifted", min(hardware.vlen, model.vocab) if stored else 0, "sampling", ""),
        ("soft", rows * model.hidden if conditions else 0, "lm_head", ""),
        ("soft_part", rows * model.hidden if conditions else 0, "lm_head", ""),
        ("shares", entropy * (min(hardware.vlen, model.vocab) if stored else rows * tiling.slice), "sampling", ""),
        ("commit", 0 if on_host else len(COMMIT_ROWS) * hardware.vlen, "commit", ""),
        ("edit", len(EDIT_ROWS) * hardware.vlen if workload.edits else 0, "commit", ""),
    )
    if (experts := model.experts) is not None:
        yield from (
            *((name, rows * experts.count, "ffn", "") for name in ("gates", "picked", "left")),
            ("ranks", rows * experts.count if experts.bias else 0, "ffn", ""),
            ("router_bias", experts.count if experts.bias else 0, "ffn", ""),
            ("expert_factors", experts.count if experts.factors else 0, "ffn", ""),
            ("routed", rows * model.hidden if experts.router_norm else 0, "ffn", ""),
            *((f"group_{name}", rows * experts.groups if experts.groups > 1 else 0, "ffn", "")
              for name in ("ranks", "left", "picked")),
            *((f"block_{name}", rows // experts.block_tokens * experts.count if experts.block_capacity else 0, "ffn", "")
              for name in ("ranks", "left", "picked")),
            ("gathered", tiled * model.hidden, "ffn", ""),
            ("expert_out", tiled * model.hidden, "ffn", ""),
            ("gate_of_row", rows, "ffn", ""),
        )  # fmt: skip
    if smoothing.sides:
        inverse, fold = smoothing_widths(model, smoothing)
        measured, channels = bool(smoothing.measured), tiling.batch * 2 * most(model, "kv_width")
        yield from (
            ("channel_max", channels if measured else 0, "qkv", ""),
            ("channel_mean", channels if smoothing.centres else 0, "qkv", ""),
            ("inverse", sequences * inverse, "qkv", ""),
            ("smoothing", inverse + fold if measured else 0, "smooth", ""),
            ("kv", rows * 2 * most(model, "kv_width") if measured else 0, "smooth", ""),
            ("fold", sequences * fold, "attention", ""),
        )
    if tiling.arrangement.weights_stay:
        widest = max(model.hidden, most(model, "query_width"), model.ffn)
        unit = math.lcm(hardware.blen, numerics.block_size)
        made = STREAM_SLOTS * hardware.blen * max(unit, MADE_ROWS * hardware.vlen // hardware.blen // unit * unit)
        yield from (
            ("passing", STREAM_SLOTS * hardware.blen * widest, "ffn", "passing"),
            ("passed", STREAM_SLOTS * hardware.blen * PASSED_ROWS * hardware.vlen, "ffn", "passed"),
            ("made_gate", made, "ffn", "multiplied"),
            ("made_up", made, "ffn", "multiplied"),
            ("made_act", made // STREAM_SLOTS, "ffn", ""),
            ("made", made, "ffn", "made"),
        )
    if smoothing.mixed:
        yield "mixed", STREAM_SLOTS * tiling.row_tile * most(model, "head_dim"), "qkv", "mixed"
    if smoothing.pre_rope:
        yield "cached_keys", rows * most(model, "kv_width"), "rotate", ""
        yield "key_rope", rows * most(model, "turned_channels"), "rotate", ""


def _most_of_channels(model: ModelSpec) -> int:
    """Learned numbers of the channelwise operator that has most."""
    own = (each for group in model.network.groups for each in leaves(group.pattern) if isinstance(each, Channelwise))
    return max((len(each.weights) * each.width for each in own), default=0)


def _has_branches(model: ModelSpec) -> bool:
    return any(isinstance(each, Sum) for group in model.network.groups for each in group.pattern)


def _fp(model: ModelSpec, workload: Workload, numerics: Numerics, tiling: Tiling) -> Plan:
    """Constants, one sum and validity per row, softmax state per query head and row; the largest noisy logit of a position, and
    that logit; entropies, the sums of d exp(d) that they are made of, and by how much the largest logit grew."""
    rows, smoothing, arrangement = tiling.chunk_rows, numerics.smoothing, tiling.arrangement
    states = arrangement.kv_heads * (most(model, "group")) * rows
    fused, sampled = tiling.arrangement.fuses_sampling, workload.batch * workload.block_length
    drawn, entropy = workload.temperature > 0, workload.commits.measures_entropy
    yield from (
        ("constants", len(CONSTANTS), "setup", ""),
        ("further_constants", len(further_constants(model)), "setup", ""),
        ("layer_scale", int(model.layer_scales), "attention", ""),
        ("square_sum", rows, "qkv", ""),
        ("valid", rows, "qkv", ""),
        ("running_max", states, "attention", ""),
        ("running_sum", states, "attention", ""),
        ("new_max", tiling.row_tile, "attention", ""),
        ("correction", tiling.row_tile * arrangement.turns, "attention", ""),
        ("head_state", 2 * 2 * most(model, "kv_heads") if smoothing.measured else 0, "smooth", ""),
        ("inverse_tokens", tiling.batch if smoothing.centres else 0, "smooth", ""),
        ("expert_scale", int(model.experts is not None), "setup", ""),
        ("edit_threshold", int(workload.edits), "setup", ""),
        ("guidance", int(workload.guided), "setup", ""),
        ("noise_scale", int(drawn), "setup", ""),
        ("entropy_facts", 2 * entropy, "setup", ""),
        ("entropy", sampled * entropy, "sampling", ""),
        ("spread", (sampled if fused else 1) * entropy, "sampling", ""),
        ("shift", rows * fused * entropy, "sampling", ""),
        ("coolness", (workload.steps_per_block + 1) * workload.is_uniform, "setup", ""),
        ("stop_entropy", int(workload.stop_entropy is not None), "setup", ""),
        ("uncached", int(workload.sub_block_cache), "commit", ""),
        ("alive", workload.batch * workload.is_uniform, "commit", ""),
        ("entropy_sum", int(workload.is_uniform), "commit", ""),
        ("restless", int(workload.is_uniform), "commit", ""),
        ("noisy", 2 * (sampled if fused else 1) * drawn, "sampling", ""),
        ("best", sampled if fused else 1, "sampling", ""),
        ("rescale", rows if fused else 0, "sampling", ""),
        ("confidence", sampled, "sampling", ""),
    )


def _integer(model: ModelSpec, workload: Workload, tiling: Tiling) -> Plan:
    sampled = workload.batch * workload.block_length
    if workload.is_uniform:
        yield from (
            ("likeliest", sampled, "sampling", ""), ("settled", sampled, "commit", ""),
            ("fresh", workload.block_length, "commit", ""),
        )  # fmt: skip
    if workload.edits or workload.stop_at_end:
        yield "entered", sampled, "commit", ""
    if workload.sub_block_cache:
        yield "untold", 1, "commit", ""
    if workload.draws:
        yield "key", 6 if workload.is_uniform else 4, "setup", ""
    if workload.stop_at_end:
        ends = 1 + len(model.end_ids)
        yield from (("ends", workload.batch, "commit", ""), ("going", 1, "commit", ""), ("end_id", ends, "setup", ""))
    # The step loop's last trip only leaves, but its address moves on: a place of its own keeps accesses apart.
    yield from (
        ("constants", 2, "setup", ""), ("quota", workload.block_length + 1, "setup", ""), ("remaining", 1, "commit", ""),
        ("ids", tiling.chunk_rows, "embed", ""), ("tokens", sampled, "sampling", ""), ("sampled", sampled, "sampling", ""),
    )  # fmt: skip
    if (
        experts := model.experts
    ) is not None:  # a place in the list moves on with the rows of an expert, from where they begin
        yield from ((name, experts.count, "ffn", "") for name in ("counts", "starts", "ends"))
        yield "list", tiling.chunk_rows * (experts.chosen + 1), "ffn", ""
        if experts.block_capacity:
            yield "block_capacity", 1, "ffn", ""


def most(model: ModelSpec, what: str) -> int:
    """The most that the attention of any layer has of something."""
    return max(getattr(each, what) for each in model.geometries)


def alternating(buffer: str, arrangement: Arrangement) -> tuple[str, ...]:
    """The names of a buffer that heads in flight take in turns."""
    return (buffer, f"{buffer}_odd")[: arrangement.turns]


def aligned(size_bytes: int) -> int:
    """Bytes of a slot in Matrix SRAM: slots that share no word of it are written and read independently."""
    return -(-size_bytes // MATRIX_WORD_BYTES) * MATRIX_WORD_BYTES


def _matrix(model: ModelSpec, hardware: HardwareConfig, numerics: Numerics, tiling: Tiling) -> Plan:
    arrangement = tiling.arrangement
    yield "weights", arrangement.weight_slots * aligned(panel_bytes(model, hardware, numerics)), "ffn", "weights"
    if numerics.smoothing.mixed:
        yield "hadamard", most(model, "head_dim") * FORMATS["bf16"].row_bytes(most(model, "head_dim")), "setup", ""
    for side in CONTRACTED:
        yield (
            side,
            STREAM_SLOTS
            * arrangement.kv_heads
            * max(aligned(cache_tile(each, numerics, tiling, side).size_bytes) for each in model.geometries),
            "attention",
            "keys_values",
        )


def _rest(plan: Plan, hardware: HardwareConfig) -> Plan:
    """Buffers of Matrix SRAM, and behind them for weights that stay what they leave of it."""
    used = 0
    for each in plan:
        used += each[1]
        yield each
    left = max(0, hardware.sram.matrix_bytes - used) // MATRIX_WORD_BYTES * MATRIX_WORD_BYTES
    yield "staying", left, "ffn", ""
