"""One lowering for each operator: the rows that it needs beside its input, and its stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dllm.network import leaves, norms_of
from dllm.operators import (
    Attention,
    Channelwise,
    Embedding,
    GatedMlp,
    HeadNorm,
    Linear,
    LmHead,
    Moe,
    Norm,
    Operator,
    Residual,
    Rope,
    SelfConditioning,
    Step,
    Sum,
)
from npu.formats import FORMATS
from npu_compiler.attention import attend
from npu_compiler.context import Context
from npu_compiler.experts import mixture
from npu_compiler.flow import Flow
from npu_compiler.gated import DENSE, SOFT, gated_mlp
from npu_compiler.rows import Chunk, segments, times
from npu_compiler.soft_tokens import add_slice, clear_soft_tokens, store_soft_tokens
from npu_compiler.stable_max import StableMax
from npu_compiler.stages import Level, Place, Steps


def load(operators: Sequence[Operator], c: Context, flow: Flow) -> None:
    """Load what operators need beside the rows of the stream, in their order."""
    flow.norms = {each.name: number for number, each in enumerate(norms_of(operators))}
    for operator in leaves(operators):
        if (needed := LOAD.get(type(operator))) is not None:
            needed(operator, c, flow)


def lower(operators: Sequence[Operator], c: Context, flow: Flow) -> None:
    """The stages of operators, one after the other."""
    for operator in operators:
        LOWER[type(operator)](operator, c, flow)


def _load_norm(op: Norm, c: Context, flow: Flow) -> None:
    c.load_row(flow, op.name, "norm_weight", op.width, flow.norms[op.name] * op.width)


def _load_bias(op: Linear, c: Context, flow: Flow) -> None:
    if op.bias:
        c.load_row(flow, op.bias, "bias", op.outputs)


def _load_head_norm(op: HeadNorm, c: Context, flow: Flow) -> None:
    for number, name in enumerate(("q_norm", "k_norm")):
        c.load_row(flow, name, "head_norm", op.head_dim, number * op.head_dim)


def _load_angles(op: Rope, c: Context, flow: Flow) -> None:
    c.transfer_rows(flow.chunk, "H_LOAD_V", "rope", "rope", op.rotary_dim)


def _load_router(op: Moe, c: Context, flow: Flow) -> None:
    experts = op.experts
    if experts.bias:
        c.load_row(flow, "router_bias", "router_bias", experts.count)
    if experts.router_norm:
        _load_norm(op.norm, c, flow)
    if experts.factors:
        c.load_row(flow, "expert_factors", "expert_factors", experts.count)
    c.load_valid(flow.chunk)


def _load_layer_scale(op: Residual, c: Context, flow: Flow) -> None:
    if op.scaled:
        tensor = flow.tensor("layer_scale")
        own = op.clean_scaled and c.clean
        source = c.hbm(tensor, FORMATS["fp32"].row_bytes(own, 1), flow.layers(c.tensor(tensor).row_bytes))
        c.e.emit("H_LOAD_F", dst=c.fp("layer_scale"), src=source, n=1)


def _load_soft(op: SelfConditioning, c: Context, flow: Flow) -> None:
    _load_norm(op.norm, c, flow)
    c.transfer_rows(flow.chunk, "H_LOAD_V", "soft", "h", op.width)


LOAD: Mapping[type[Operator], Callable[[Any, Context, Flow], None]] = {
    Norm: _load_norm, Linear: _load_bias, HeadNorm: _load_head_norm, Rope: _load_angles,
    Moe: _load_router, Residual: _load_layer_scale, SelfConditioning: _load_soft,
}  # fmt: skip
"""Loads of operators beside their input; the others load nothing, or as they go."""


def _embed(op: Embedding, c: Context, flow: Flow) -> None:
    """x := table[tokens], for a chunk."""
    e, chunk, tokens, table = c.e, flow.chunk, c.tensor("tokens"), c.tensor("embedding")
    with e.stage("load token ids"), chunk.runs(e) as (rows, local, canvas):
        steps = chunk.canvas_steps(4, tokens.row_bytes)
        steps += [(level, seq * tokens.row_bytes + row * 4) for level, seq, row in canvas]
        e.emit("H_LOAD_I", dst=c.integer("ids", 0, local), src=c.hbm("tokens", 0, steps), n=rows)
    with e.stage("gather rows"), chunk.runs(e) as (rows, local, _):
        e.emit("H_GATHER_V", dst=c.vector("x", 0, times(local, op.width), rows=op.width),
               table=c.hbm("embedding", rows=table.row_bytes), index=c.integer("ids", 0, local),
               cols=op.width, rows=rows)  # fmt: skip
    if op.scale != 1:
        with e.stage("scale rows"):
            c.scale_rows(chunk, "x", op.width, "embedding_scale")


def _self_conditioning(op: SelfConditioning, c: Context, flow: Flow) -> None:
    """x := norm of x plus the MLP of the soft tokens, which lie in `h`."""
    with c.e.stage(op.norm.name):
        c.rms_norm(flow, "h", "h", "norm_weight", flow.norms[op.norm.name] * op.width)
    flow.value = "h"
    gated_mlp(c, flow, SOFT, op.width, op.inner, op.activation)
    with c.e.stage("add soft tokens"):
        c.add_rows(flow.chunk, "x", flow.value, op.width)
    with c.e.stage("norm of the sum"):
        c.rms_norm(flow, "x", "x")
    flow.value = "x"


def _norm(op: Norm, c: Context, flow: Flow) -> None:
    """h := norm(x), or the last result's in place."""
    source, target = (flow.value, flow.value) if op.of_result else ("x", "h")
    with c.e.stage(op.name):
        c.rms_norm(flow, source, target, "norm_weight", flow.norms[op.name] * op.width)
    flow.value = target


def _channelwise(op: Channelwise, c: Context, flow: Flow) -> None:
    """The steps in place; where the flow says so, what is added to rows of padding goes again."""
    e, learned = c.e, [weight.name for weight in op.weights]
    with e.stage(f"load {op.name}"):
        for number, name in enumerate(learned):
            c.load_row(flow, name, "channelwise", op.width, number * op.width)
    with e.stage(op.name):
        for step, tensor in op.steps:
            own = learned.index(f"{op.name}_{tensor}") * op.width if tensor else 0
            for first, piece, lanes in c.wide(op.width):
                with flow.chunk.each(e) as rows:
                    row = c.vector(flow.value, first, [*piece, *times(rows, op.width)])
                    number = c.vector("channelwise", own + first, piece)
                    match step:
                        case Step.SCALE:
                            e.emit("V_MUL_VV", dst=row, a=row, b=number, n=lanes)
                        case Step.SHIFT:
                            e.emit("V_ADD_VV", dst=row, a=row, b=number, n=lanes)
                        case Step.TANH:
                            e.emit("V_TANH_V", dst=row, a=row, n=lanes)
                if step is Step.SHIFT and flow.zero_padding:
                    with flow.chunk.each(e) as rows:
                        row = c.vector(flow.value, first, [*piece, *times(rows, op.width)])
                        e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("valid", 0, rows), n=lanes)


def _linear(op: Linear, c: Context, flow: Flow) -> None:
    """The projection into the buffer for results; then its biases."""
    pitch = c.geometry.qkv_width if flow.result == "qkv" else op.outputs
    c.project(flow, weights=op.name, outputs=op.outputs, inputs=op.inputs, dst=flow.result, pitch=pitch)
    flow.value = flow.result
    add_bias(op, c, flow)


def add_bias(op: Linear, c: Context, flow: Flow) -> None:
    """The biases of a projection, where it has some."""
    if op.bias:
        with c.e.stage(op.bias):
            _add_bias(op, c, flow)


def _add_bias(op: Linear, c: Context, flow: Flow) -> None:
    """Biases of Q, K and V; rows of padding stay zero (RoPE makes those that it turns zero again)."""
    e, width, chunk = c.e, op.outputs, flow.chunk
    for first, piece, lanes in c.wide(width):
        with chunk.each(e) as rows:
            row = c.vector(flow.value, first, [*piece, *times(rows, width)])
            e.emit("V_ADD_VV", dst=row, a=row, b=c.vector("bias", first, piece), n=lanes)
    if chunk.has_padding:
        turned = _turned_width(c)
        for first, piece, lanes in c.wide(width - turned):
            with chunk.each(e) as rows:
                row = c.vector(flow.value, turned + first, [*piece, *times(rows, width)])
                e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("valid", 0, rows), n=lanes)


def _row_of_head(c: Context, flow: Flow, column: int, head: Level, rows: Steps) -> Mapping[str, Place]:
    """The part of a head in a row of Q or K, from `column` on, and the sum of its squares."""
    steps = [(head, c.geometry.head_dim), *times(rows, c.geometry.qkv_width)]
    return {"row": c.vector(flow.value, column, steps), "sum": c.fp("square_sum", 0, rows)}


def _head_norm(op: HeadNorm, c: Context, flow: Flow) -> None:
    """An RMS norm of each head of Q, of K, and of V without factors where it has one, in place; a head of padding stays zero."""
    e, hd, chunk = c.e, op.head_dim, flow.chunk
    with e.stage("q_norm, k_norm"):
        mean = c.fp("inverse_head_dim" if hd == c.model.head_dim else "inverse_full_head_dim")
        queries, keys, values = (0, op.heads, 0), (op.heads, op.kv_heads, op.heads), op.heads + op.kv_heads
        sides = [(None, values, op.kv_heads, op.heads if op.shared else values)] if op.values else []
        for number, first, heads, source in (*sides, (0, *queries), (1, *keys)):
            with e.loop(heads) as head:

                def places(
                    rows: Steps, first: int = first, source: int = source, head: Level = head
                ) -> Mapping[str, Place]:
                    return {**_row_of_head(c, flow, first * hd, head, rows),
                            "source": _row_of_head(c, flow, source * hd, head, rows)["row"]}  # fmt: skip

                each = e.one_by_one(lambda: chunk.each(e), places)
                each("S_MOV_FP", dst="sum", a=c.fp("zero"))
                each("V_RED_SUMSQ", dst="sum", a="source", n=hd)
                each("S_MUL_FP", dst="sum", a="sum", b=mean)
                each("S_ADD_FP", dst="sum", a="sum", b=c.fp("epsilon"))
                each("S_RSQRT_FP", dst="sum", a="sum")
                each("V_MUL_VF", dst="row", a="source", scalar="sum", n=hd)
                if number is not None:
                    each("V_MUL_VV", dst="row", a="row", b=c.vector("head_norm", number * hd), n=hd)


def _turned_width(c: Context) -> int:
    """Columns of Q K V that RoPE turns before they are stored: Q, and K unless the cache keeps it as it was."""
    return c.geometry.query_width + (0 if c.numerics.smoothing.pre_rope else c.geometry.kv_width)


def turn(c: Context, chunk: Chunk, buffer: str, table: str, turned: int, width: int) -> None:
    """RoPE on the first `turned` of the `width` columns of a buffer, in place."""
    hd, channels = c.geometry.head_dim, c.geometry.turned_channels
    limit = (
        c.vlen // hd * hd if channels == hd else hd
    )  # heads side by side turn at once where all of their channels do
    for first, count, lanes in segments(turned, limit):
        with c.e.loop(count) as piece, chunk.each(c.e) as rows:
            row = c.vector(buffer, first, [(piece, lanes), *times(rows, width)])
            angles, n = c.vector(table, 0, times(rows, channels)), lanes if channels == hd else channels
            c.e.emit("V_ROPE_V", dst=row, a=row, table=angles, n=n, head_dim=channels)


def _rope(op: Rope, c: Context, flow: Flow) -> None:
    """RoPE on Q and K in place, and the attention scale on Q."""
    e, width = c.e, c.geometry.qkv_width
    with e.stage("rope"):
        turn(c, flow.chunk, flow.value, "rope", _turned_width(c), width)
        if c.model.scores_scale == 1:
            return
        for first, count, lanes in segments(op.heads * op.head_dim, c.vlen):
            with e.loop(count) as piece, flow.chunk.each(e) as rows:
                row = c.vector(flow.value, first, [(piece, lanes), *times(rows, width)])
                e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("attention_scale"), n=lanes)


def _residual(op: Residual, c: Context, flow: Flow) -> None:
    """x += the last result, times the number of the layer where it has one."""
    with c.e.stage("residual"):
        c.add_rows(flow.chunk, "x", flow.value, op.width)
    if op.scaled:
        with c.e.stage("layer scale"):
            c.scale_rows(flow.chunk, "x", op.width, "layer_scale")


def _gated_mlp(op: GatedMlp, c: Context, flow: Flow) -> None:
    gated_mlp(c, flow, DENSE, op.width, op.inner, op.activation)


def _sum(op: Sum, c: Context, flow: Flow) -> None:
    """The first branch into the buffer for results, each other one into the buffer beside it, and added."""
    result, (first, *others) = flow.result, op.branches
    lower(first, c, flow)
    for branch in others:
        flow.result = "beside"
        lower(branch, c, flow)
        with c.e.stage("add the branch"):
            c.add_rows(flow.chunk, result, "beside", op.width)
    flow.value = flow.result = result


def _lm_head(op: LmHead, c: Context, flow: Flow) -> None:
    """Logits of a chunk, a slice of the vocabulary at a time: sampled as they come, or to HBM in the logit format."""
    if c.tiling.arrangement.fuses_sampling:
        _sample_as_they_come(op, c, flow)
    else:
        _store_logits(op, c, flow)


def _logits(op: LmHead, c: Context, flow: Flow, first: int, part: Level, lanes: int) -> None:
    """A slice of the logits."""
    apart = flow.chunk.size * c.tiling.slice
    c.project(flow, weights="lm_head", first_row=first, outputs=lanes, inputs=op.width, dst="logits",
              steps=[(part, lanes)], slot_stride=apart)  # fmt: skip
    each = c.e.one_by_one(
        lambda: flow.chunk.each(c.e),
        lambda rows: {"row": c.vector("logits", 0, times(rows, lanes), slot_stride=apart)},
    )
    if op.softcap is not None:
        with c.e.stage("cap logits"):
            each("V_MUL_VF", dst="row", a="row", scalar=c.fp("inverse_softcap"), n=lanes)
            each("V_TANH_V", dst="row", a="row", n=lanes)
            each("V_MUL_VF", dst="row", a="row", scalar=c.fp("softcap"), n=lanes)
    if c.workload.is_uniform:
        with c.e.stage("over temperature"):
            each("V_MUL_VF", dst="row", a="row", scalar=c.fp("coolness", 0, c.cooling), n=lanes)


def _sample_as_they_come(op: LmHead, c: Context, flow: Flow) -> None:
    """Token and confidence of the rows of a chunk, without those of the logits that fill the vocabulary up."""
    running = StableMax(c=c, chunk=flow.chunk)
    running.begin()
    if c.conditions:
        clear_soft_tokens(c, flow)
    for first, count, lanes in segments(c.vocab, c.tiling.slice):
        with c.e.loop(count) as part:
            width = min(c.tiling.slice, op.vocab - first)
            _logits(op, c, flow, first, part, width)
            running.update(first, part, width, lanes)
            if c.conditions:
                add_slice(c, flow, first, part, width, lanes)
            c.advance("logits")
    running.end()
    if c.conditions:
        store_soft_tokens(c, flow)


def _store_logits(op: LmHead, c: Context, flow: Flow) -> None:
    """Logits of a chunk in the logit format to HBM."""
    e, chunk, logits, width, rows = c.e, flow.chunk, c.tensor("logits"), c.tiling.slice, flow.chunk.size
    fmt, sequence_bytes = FORMATS[c.numerics.logits], chunk.span.rows * logits.row_bytes
    for first, count, lanes in segments(op.vocab, width):
        with e.loop(count) as part:
            _logits(op, c, flow, first, part, lanes)
            steps = [*chunk.batch_steps(sequence_bytes), *chunk.row_steps(logits.row_bytes),
                     (part, fmt.row_bytes(lanes, c.numerics.block_size))]  # fmt: skip
            with e.stage("store logits"):
                at = c.hbm("logits", fmt.row_bytes(first, c.numerics.block_size), steps, rows=logits.row_bytes)
                e.emit("H_STORE_V", dst=at, src=c.vector("logits", rows=lanes, slot_stride=rows * width), rows=rows, cols=lanes,
                       format=fmt.code, block=c.log2_block)  # fmt: skip
            c.advance("logits")


LOWER: Mapping[type[Operator], Callable[[Any, Context, Flow], None]] = {
    Embedding: _embed, Norm: _norm, Channelwise: _channelwise, Linear: _linear, HeadNorm: _head_norm, Rope: _rope,
    Attention: attend, GatedMlp: _gated_mlp, Moe: mixture, Sum: _sum, Residual: _residual,
    SelfConditioning: _self_conditioning, LmHead: _lm_head,
}  # fmt: skip
"""The stages of each operator, for one chunk."""
