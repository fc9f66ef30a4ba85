"""The transformer: embedding gather, and per layer QKV, attention, output projection and FFN over chunks of rows.

Data that crosses chunks (hidden states, Q, the KV cache) lives in HBM; within a chunk, phases hand buffers from unit to
unit through channels. docs/timing.md lists them.
"""

from npu.formats import FORMATS
from npu_compiler.cache import load_tile, move_keys, multiply_tile, store_cache
from npu_compiler.emit import Level
from npu_compiler.lower import LOG2_ROW_BLOCK, Context, Steps, segments
from npu_compiler.mixing import mix_attended, mix_projected
from npu_compiler.rows import Chunk, Span, full_span, times
from npu_compiler.smoothing import (
    clear_channels,
    load_factors,
    measure,
    multiply,
    smooth,
    to_cache_domain,
    uncentre,
)


def forward(c: Context, span: Span, block: Level, *, measuring: bool) -> None:
    """Forward the rows of `span` through embedding and all layers; the result is the tensor `x` in HBM.

    A `measuring` pass forwards the whole canvas, and looks at the channels of K and V before it stores them.
    """
    embed(c, span, block)
    with c.e.loop(c.model.layers) as layer:
        with c.e.phase("qkv"):
            c.e.sync("dma_in", wait=c.semaphores["x_stored"])
            if measuring:
                clear_channels(c)
            with c.chunks(span, block) as chunk:
                project_qkv(c, chunk, layer, measuring=measuring)
        if measuring:
            with c.e.phase("smooth"):
                smooth(c, span, block, layer)
        with c.e.phase("qkv"):
            c.e.sync("dma_out", signal=c.semaphores["kv_stored"])
        if c.numerics.smoothing.pre_rope:
            with c.e.phase("rotate"):
                rotate_keys(c, layer)
        else:
            with c.e.phase("attention"):
                c.e.sync("dma_in", wait=c.semaphores["kv_stored"])
        with c.chunks(span, block) as chunk:
            with c.e.phase("attention"):
                attend(c, chunk, layer)
            with c.e.phase("out"):
                project_out(c, chunk, layer)
            with c.e.phase("ffn"):
                feed_forward(c, chunk, layer)
        with c.e.phase("ffn"):
            c.e.sync("dma_out", signal=c.semaphores["x_stored"])


def embed(c: Context, span: Span, block: Level) -> None:
    """x := embedding[tokens] for the rows of a span."""
    e, ids, rows_out = c.e, c.channels["ids"], c.channels["embedded"]
    hidden, tokens, table = c.model.hidden, c.layout.tensor("tokens"), c.layout.tensor("embedding")
    with e.phase("embed"):
        e.sync("dma_in", wait=c.semaphores["tokens_stored"])
        with c.chunks(span, block) as chunk:
            e.sync("dma_in", wait=(ids.free, rows_out.free))
            with chunk.runs(e, c.workload.block_length) as (rows, local, canvas):
                steps = chunk.canvas_steps(4, tokens.row_bytes)
                steps += [(level, seq * tokens.row_bytes + row * 4) for level, seq, row in canvas]
                e.emit("H_LOAD_I", dst=c.integer("ids", 0, local), src=c.hbm("tokens", span.first * 4, steps), n=rows)
            e.sync("dma_in", signal=ids.full)
            e.sync("dma_in", wait=ids.full)
            with chunk.runs(e, c.workload.block_length) as (rows, local, _):
                e.emit("H_GATHER_V", dst=c.vector("x", 0, times(local, hidden), rows=hidden),
                       table=c.hbm("embedding", rows=table.row_bytes), index=c.integer("ids", 0, local),
                       cols=hidden, rows=rows)  # fmt: skip
            e.sync("dma_in", signal=(ids.free, rows_out.full))
            e.sync("dma_out", wait=rows_out.full)
            c.transfer_rows(chunk, "H_STORE_V", "x", "x", hidden)
            e.sync("dma_out", signal=rows_out.free)
        e.sync("dma_out", signal=c.semaphores["x_stored"])


def project_qkv(c: Context, chunk: Chunk, layer: Level, *, measuring: bool) -> None:
    """Norm, Q K V projections, RoPE; Q goes to HBM as BF16, K and V into the cache in its format.

    Where the pass is `measuring` the channels, K and V go to HBM as BF16 instead, to be read again once all are known.
    """
    e, model, channels = c.e, c.model, c.channels
    width = model.qkv_width
    source, produced, rotated = channels["qkv_in"], channels["qkv"], c.semaphores["rotated"]
    e.sync("dma_in", wait=source.free)
    c.transfer_rows(chunk, "H_LOAD_V", "x", "x", model.hidden)
    c.transfer_rows(chunk, "H_LOAD_V", "rope", "rope", model.head_dim)
    if model.qkv_bias:
        c.load_row("qkv_bias", "bias", width, [(layer, c.layout.tensor("qkv_bias").row_bytes)])
    c.load_row("attention_norm", "norm_weight", model.hidden, [(layer, c.layout.tensor("attention_norm").row_bytes)])
    c.load_valid(chunk)
    if c.smooths and not measuring:
        load_factors(c, chunk, layer, "inverse")
    e.sync("dma_in", signal=source.full)
    e.sync("vector", wait=source.full)
    c.rms_norm(chunk, "x", "h", zero_padding=chunk.span.has_padding)
    e.sync("vector", signal=c.semaphores["qkv_normed"])
    e.sync("matrix", wait=(c.semaphores["qkv_normed"], produced.free))
    weights = c.layout.tensor("w_qkv")
    c.project(chunk, weights="w_qkv", outputs=width, inputs=model.hidden, acts="h", dst="qkv", dst_width=width,
              steps=[(layer, weights.stride_bytes(0))])  # fmt: skip
    e.sync("matrix", signal=produced.full)
    e.sync("vector", wait=produced.full)
    if model.qkv_bias:
        _add_bias(c, chunk, width)
    _rotate(c, chunk, width)
    mix_projected(c, chunk)
    if measuring:
        measure(c, chunk, "qkv", model.query_width, width)
    else:
        to_cache_domain(c, chunk, "qkv", model.query_width, width)
    e.sync("vector", signal=(source.free, rotated))
    e.sync("dma_out", wait=rotated)
    c.transfer_rows(chunk, "H_STORE_V", "q", "qkv", model.query_width, pitch=width)
    if measuring:
        c.transfer_rows(chunk, "H_STORE_V", "kv_raw", "qkv", 2 * model.kv_width, offset=model.query_width, pitch=width)
    else:
        store_cache(c, chunk, layer, "qkv", model.query_width, width)
    e.sync("dma_out", signal=produced.free)


def _add_bias(c: Context, chunk: Chunk, width: int) -> None:
    """Biases of Q, K and V; rows of padding stay zero (RoPE makes those that it turns zero again)."""
    e, tile = c.e, c.layout.tiling.row_tile
    for first, piece, lanes in c.wide(width):
        with chunk.each(e, tile) as rows:
            row = c.vector("qkv", first, [*piece, *times(rows, width)])
            e.emit("V_ADD_VV", dst=row, a=row, b=c.vector("bias", first, piece), n=lanes)
    if chunk.span.has_padding:
        turned = _turned_width(c)
        for first, piece, lanes in c.wide(width - turned):
            with chunk.each(e, tile) as rows:
                row = c.vector("qkv", turned + first, [*piece, *times(rows, width)])
                e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("valid", 0, rows), n=lanes)


def _turned_width(c: Context) -> int:
    """Columns of Q K V that RoPE turns before they are stored: Q, and K unless the cache keeps it as it was."""
    return c.model.query_width + (0 if c.numerics.smoothing.pre_rope else c.model.kv_width)


def _turn(c: Context, chunk: Chunk, buffer: str, table: str, turned: int, width: int) -> None:
    """RoPE on the first `turned` of the `width` columns of a buffer, in place."""
    limit = c.vlen // c.model.head_dim * c.model.head_dim
    for first, count, lanes in segments(turned, limit):
        with c.e.loop(count) as piece, chunk.each(c.e, c.layout.tiling.row_tile) as rows:
            row = c.vector(buffer, first, [(piece, lanes), *times(rows, width)])
            angles = c.vector(table, 0, times(rows, c.model.head_dim))
            c.e.emit("V_ROPE_V", dst=row, a=row, table=angles, n=lanes, head_dim=c.model.head_dim)


def _rotate(c: Context, chunk: Chunk, width: int) -> None:
    """RoPE on Q and K in place, and the attention scale on Q."""
    e, model, tile = c.e, c.model, c.layout.tiling.row_tile
    _turn(c, chunk, "qkv", "rope", _turned_width(c), width)
    for first, count, lanes in segments(model.query_width, c.vlen):
        with e.loop(count) as piece, chunk.each(e, tile) as rows:
            row = c.vector("qkv", first, [(piece, lanes), *times(rows, width)])
            e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("attention_scale"), n=lanes)


def rotate_keys(c: Context, layer: Level) -> None:
    """The keys of a layer, cached before RoPE, de-quantised and turned: all rows of the canvas into `rotated_keys`."""
    e, channel, width, once = c.e, c.channels["keys_in"], c.model.kv_width, Level(number=None)
    e.sync("dma_in", wait=c.semaphores["kv_stored"])
    with c.chunks(full_span(c.workload, c.layout.tiling), once) as chunk:
        e.sync("dma_in", wait=channel.free)
        move_keys(c, chunk, "H_LOAD_V", "keys", "cached_keys", layer)
        c.transfer_rows(chunk, "H_LOAD_V", "rope", "key_rope", c.model.head_dim)
        e.sync("dma_in", signal=channel.full)
        e.sync("vector", wait=channel.full)
        _turn(c, chunk, "cached_keys", "key_rope", width, width)
        e.sync("vector", signal=c.semaphores["keys_rotated"])
        e.sync("dma_out", wait=c.semaphores["keys_rotated"])
        move_keys(c, chunk, "H_STORE_V", "rotated_keys", "cached_keys", once)
        e.sync("dma_out", signal=channel.free)
    e.sync("dma_out", signal=c.semaphores["rotated_stored"])
    e.sync("dma_in", wait=c.semaphores["rotated_stored"])


def attend(c: Context, chunk: Chunk, layer: Level) -> None:
    """Bidirectional FlashAttention over the whole cache: `attended` := softmax(q K^T + mask) V, head by head."""
    e, model, tiling, channels = c.e, c.model, c.layout.tiling, c.channels
    mask, queries, rest = c.layout.tensor("mask"), channels["queries"], channels["post_in"]
    e.sync("dma_in", wait=queries.free)
    c.transfer_rows(chunk, "H_LOAD_V", "q", "q", model.query_width)
    e.sync("dma_in", signal=queries.full)
    e.sync("dma_in", wait=rest.free)
    with e.loop(chunk.span.sequences) as sequence:
        step = [(chunk.batch_loop, chunk.span.sequences * mask.row_bytes), (sequence, mask.row_bytes)]
        e.emit("H_LOAD_V", dst=c.vector("mask", 0, [(sequence, tiling.cache_tokens)]), src=c.hbm("mask", 0, step),
               rows=1, cols=tiling.cache_tokens, format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK)  # fmt: skip
    c.transfer_rows(chunk, "H_LOAD_V", "x", "x", model.hidden)
    c.load_row("ffn_norm", "norm_weight", model.hidden, [(layer, c.layout.tensor("ffn_norm").row_bytes)])
    if c.smooths:
        load_factors(c, chunk, layer, "fold")
    e.sync("dma_in", signal=rest.full)
    if c.smooths:  # softmax(q s ((K - m) / s)^T) ((V - m) / s) s + m: q m is the same for all keys
        e.sync("vector", wait=(queries.full, rest.full))
        multiply(c, chunk, "keys", "fold", "q", 0, model.query_width)
        e.sync("vector", signal=c.semaphores["queries_scaled"])
        e.sync("matrix", wait=c.semaphores["queries_scaled"])
    else:
        e.sync("matrix", wait=queries.full)
        e.sync("vector", wait=rest.full)
    with e.loop(chunk.span.sequences) as sequence, e.loop(model.kv_heads) as head:
        _attend_head(c, chunk, layer, sequence, head)
    multiply(c, chunk, "values", "fold", "attended", 0, model.query_width)
    uncentre(c, chunk, "attended")
    mix_attended(c, chunk)
    e.sync("vector", signal=c.semaphores["attended"])


def _attend_head(c: Context, chunk: Chunk, layer: Level, sequence: Level, head: Level) -> None:
    """All query heads and row tiles that share one KV head of one sequence."""
    e, model, tiling = c.e, c.model, c.layout.tiling
    group, hd, rows, width = model.heads // model.kv_heads, model.head_dim, tiling.row_tile, model.query_width
    tiles = chunk.span.chunk_rows.divided(rows)
    stream = c.channels["keys_values"]
    local = [(sequence, chunk.span.rows)]

    def state(name: str, steps: Steps) -> int:
        return c.fp(name, 0, steps)

    def output(offset: int, steps: Steps, query: Level, tile: Level) -> int:
        base = [(head, group * hd), (query, hd), *times([*local, (tile, rows)], width)]
        return c.vector("attended", offset, [*base, *steps], rows=width)

    with e.loop(group) as query, e.loop(tiles) as tile, e.loop(rows) as row:
        place = [(query, chunk.span.sequences * chunk.span.rows), *local, (tile, rows), (row, 1)]
        e.emit("S_MOV_FP", dst=state("running_max", place), a=c.fp("lowest"))
        e.emit("S_MOV_FP", dst=state("running_sum", place), a=c.fp("zero"))
        e.emit("V_FILL_VF", dst=output(0, [(row, width)], query, tile), scalar=c.fp("zero"), n=hd)
    with e.loop(tiling.cache_tokens // tiling.key_tile) as part:
        for side, tokens in (("keys", {"wait": stream.free}), ("values", {"signal": stream.full})):
            load_tile(c, side, chunk, (layer, sequence, head), part, **tokens)
        e.sync("matrix", wait=stream.full)
        with e.loop(group) as query, e.loop(tiles) as tile:
            place = [(query, chunk.span.sequences * chunk.span.rows), *local, (tile, rows)]
            with e.loop(tiling.key_tile // c.hardware.blen) as n:
                q_steps = [(head, group * hd), (query, hd), *times([*local, (tile, rows)], width)]
                multiply_tile(c, "keys", n, rows, c.vector("q", 0, q_steps, rows=width))
                scores = c.vector("scores", 0, [(n, c.hardware.blen)], rows=c.vlen)
                e.emit("M_OUT", dst=scores, rows=rows, cols=c.hardware.blen)
            e.sync("matrix", signal=c.semaphores["scores"])
            e.sync("vector", wait=c.semaphores["scores"])
            _softmax(c, sequence, part, place)
            e.sync("vector", signal=c.semaphores["weighted"])
            e.sync("matrix", wait=c.semaphores["weighted"])
            with e.loop(hd // c.hardware.blen) as n:
                multiply_tile(c, "values", n, rows, c.vector("scores", rows=c.vlen))
                e.emit("M_OUT", dst=c.vector("partial", 0, [(n, c.hardware.blen)], rows=hd), rows=rows,
                       cols=c.hardware.blen)  # fmt: skip
            e.sync("matrix", signal=c.semaphores["partial"])
            with e.loop(rows) as row:
                out = output(0, [(row, width)], query, tile)
                e.emit("V_MUL_VF", dst=out, a=out, scalar=c.fp("correction", 0, [(row, 1)]), n=hd)
            e.sync("vector", wait=c.semaphores["partial"])
            with e.loop(rows) as row:
                out = output(0, [(row, width)], query, tile)
                e.emit("V_ADD_VV", dst=out, a=out, b=c.vector("partial", 0, [(row, hd)]), n=hd)
        e.sync("matrix", signal=stream.free)
        e.emit("A_NEXT", ring=stream.ring)
    with e.loop(group) as query, e.loop(tiles) as tile:
        place = [(query, chunk.span.sequences * chunk.span.rows), *local, (tile, rows)]
        with e.loop(rows) as row:
            total = state("running_sum", [*place, (row, 1)])
            e.emit("S_RECI_FP", dst=total, a=total)
        with e.loop(rows) as row:
            out = output(0, [(row, width)], query, tile)
            e.emit("V_MUL_VF", dst=out, a=out, scalar=state("running_sum", [*place, (row, 1)]), n=hd)


def _softmax(c: Context, sequence: Level, part: Level, place: Steps) -> None:
    """Online softmax of one tile of scores in place; leaves exp(old max - new max) in `correction`."""
    e, tiling = c.e, c.layout.tiling
    n, rows = tiling.key_tile, tiling.row_tile

    def each(mnemonic: str, **operands: int | str) -> None:
        """One loop over the rows of the tile; names stand for the state and scores of the row."""
        with e.loop(rows) as row:
            registers = {
                "scores": c.vector("scores", 0, [(row, c.vlen)]), "new": c.fp("new_max", 0, [(row, 1)]),
                "correction": c.fp("correction", 0, [(row, 1)]),
                "max": c.fp("running_max", 0, [*place, (row, 1)]), "sum": c.fp("running_sum", 0, [*place, (row, 1)]),
            }  # fmt: skip
            e.emit(mnemonic, **{k: registers[v] if isinstance(v, str) else v for k, v in operands.items()})

    mask = c.vector("mask", 0, [(sequence, tiling.cache_tokens), (part, n)])
    each("V_ADD_VV", dst="scores", a="scores", b=mask, n=n)
    each("S_MOV_FP", dst="new", a="max")
    each("V_RED_MAX", dst="new", a="scores", n=n)
    each("S_SUB_FP", dst="correction", a="max", b="new")
    each("S_EXP_FP", dst="correction", a="correction")
    each("S_MOV_FP", dst="max", a="new")
    each("V_SUB_VF", dst="scores", a="scores", scalar="new", n=n)
    each("V_EXP_V", dst="scores", a="scores", n=n)
    each("S_MUL_FP", dst="sum", a="sum", b="correction")
    each("V_RED_SUM", dst="sum", a="scores", n=n)


def project_out(c: Context, chunk: Chunk, layer: Level) -> None:
    """x += attended W_out."""
    e, model = c.e, c.model
    e.sync("matrix", wait=c.semaphores["attended"], signal=c.channels["queries"].free)
    c.project(chunk, weights="w_out", outputs=model.hidden, inputs=model.query_width, acts="attended", dst="y",
              dst_width=model.hidden, steps=[(layer, c.layout.tensor("w_out").stride_bytes(0))])  # fmt: skip
    e.sync("matrix", signal=c.semaphores["projected"])
    e.sync("vector", wait=c.semaphores["projected"])
    c.add_rows(chunk, "x", "y", model.hidden)


def feed_forward(c: Context, chunk: Chunk, layer: Level) -> None:
    """x += (silu(h W_gate) * (h W_up)) W_down with h = norm(x); then the chunk goes back to HBM."""
    e, model, rest = c.e, c.model, c.channels["post_in"]
    c.rms_norm(chunk, "x", "h")
    e.sync("vector", signal=c.semaphores["ffn_normed"])
    e.sync("matrix", wait=c.semaphores["ffn_normed"])
    for first, count, width in segments(model.ffn, c.layout.tiling.slice):
        with e.loop(count) as part:
            _gated_slice(c, chunk, layer, part, first, width)
    e.sync("vector", signal=c.semaphores["inner"])
    e.sync("matrix", wait=c.semaphores["inner"])
    c.project(chunk, weights="w_down", outputs=model.hidden, inputs=model.ffn, acts="inner", dst="y",
              dst_width=model.hidden, steps=[(layer, c.layout.tensor("w_down").stride_bytes(0))])  # fmt: skip
    e.sync("matrix", signal=c.semaphores["projected"])
    e.sync("vector", wait=c.semaphores["projected"])
    c.add_rows(chunk, "x", "y", model.hidden)
    e.sync("vector", signal=c.semaphores["post_out"])
    e.sync("dma_out", wait=c.semaphores["post_out"])
    c.transfer_rows(chunk, "H_STORE_V", "x", "x", model.hidden)
    e.sync("dma_out", signal=rest.free)


def _gated_slice(c: Context, chunk: Chunk, layer: Level, part: Level, first: int, width: int) -> None:
    """Columns of the FFN: gate and up projections, then inner[:, slice] := silu(gate) * up on the vector unit."""
    e, model, stream = c.e, c.model, c.channels["gated"]
    buffer = chunk.span.sequences * chunk.span.rows * c.layout.tiling.slice
    e.sync("matrix", wait=stream.free)
    for name, weights in (("gate", "w_gate"), ("up", "w_up")):
        facts = c.layout.tensor(weights)
        c.project(chunk, weights=weights, first_row=first, outputs=width, inputs=model.hidden, acts="h", dst=name,
                  dst_width=width, steps=[(layer, facts.stride_bytes(0)), (part, width * facts.row_bytes)],
                  ring="gated", ring_stride=buffer)  # fmt: skip
    e.sync("matrix", signal=stream.full)
    e.sync("vector", wait=stream.full)

    def each(mnemonic: str, **operands: int | str) -> None:
        with chunk.each(e, c.layout.tiling.row_tile) as rows:
            steps = times(rows, width)
            registers = {
                "gate": c.vector("gate", 0, steps, ring="gated", ring_stride=buffer),
                "up": c.vector("up", 0, steps, ring="gated", ring_stride=buffer), "act": c.vector("act", 0, steps),
                "inner": c.vector("inner", first, [(part, width), *times(rows, model.ffn)]),
            }  # fmt: skip
            e.emit(mnemonic, n=width, **{k: registers[v] if isinstance(v, str) else v for k, v in operands.items()})

    each("V_MUL_VF", dst="act", a="gate", scalar=c.fp("minus_one"))
    each("V_EXP_V", dst="act", a="act")
    each("V_ADD_VF", dst="act", a="act", scalar=c.fp("one"))
    each("V_RECI_V", dst="act", a="act")
    each("V_MUL_VV", dst="act", a="act", b="gate")
    each("V_MUL_VV", dst="inner", a="act", b="up")
    e.sync("vector", signal=stream.free)
    e.emit("A_NEXT", ring=stream.ring)
