"""Bidirectional FlashAttention over the whole cache: softmax(q K^T + mask) V, head by head, a tile of keys at a time."""

from dllm.operators import Attention
from npu_compiler.cache import load_tile, multiply_tile
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.mixing import mix_attended
from npu_compiler.rows import times
from npu_compiler.smoothing import multiply, uncentre
from npu_compiler.stages import Level, Place, Steps


def attend(op: Attention, c: Context, flow: Flow) -> None:
    """`attended` := attention of the queries in `q`. Smoothed, it is softmax(q s ((K - m) / s)^T) ((V - m) / s) s + m.

    q m is the same for all keys, which softmax does not see.
    """
    e, chunk = c.e, flow.chunk
    if c.smooths:
        with e.stage("scale Q"):
            multiply(c, chunk, "keys", "fold", "q", 0, op.query_width)
    with e.loop(chunk.span.sequences) as sequence, e.loop(op.kv_heads) as head:
        _attend_head(op, c, flow, sequence, head)
    with e.stage("from the terms of the cache"):
        multiply(c, chunk, "values", "fold", "attended", 0, op.query_width)
        uncentre(c, chunk, "attended")
    mix_attended(c, chunk)
    flow.value = "attended"


def _attend_head(op: Attention, c: Context, flow: Flow, sequence: Level, head: Level) -> None:
    """All query heads and row tiles that share one KV head of one sequence."""
    e, tiling, chunk, hd, width = c.e, c.tiling, flow.chunk, op.head_dim, op.query_width
    group, rows, blen, layer = op.heads // op.kv_heads, c.tiling.row_tile, c.hardware.blen, flow.layer
    tiles = chunk.span.chunk_rows.divided(rows)
    local = [(sequence, chunk.span.rows)]
    assert layer is not None

    def state(name: str, steps: Steps) -> Place:
        return c.fp(name, 0, steps)

    def output(steps: Steps, query: Level, tile: Level) -> Place:
        base = [(head, group * hd), (query, hd), *times([*local, (tile, rows)], width)]
        return c.vector("attended", 0, [*base, *steps], rows=width)

    with e.stage("clear the output"), e.loop(group) as query, e.loop(tiles) as tile, e.loop(rows) as row:
        at = [(query, chunk.span.sequences * chunk.span.rows), *local, (tile, rows), (row, 1)]
        e.emit("S_MOV_FP", dst=state("running_max", at), a=c.fp("lowest"))
        e.emit("S_MOV_FP", dst=state("running_sum", at), a=c.fp("zero"))
        e.emit("V_FILL_VF", dst=output([(row, width)], query, tile), scalar=c.fp("zero"), n=hd)
    with e.loop(tiling.cache_tokens // tiling.key_tile) as part:
        with e.stage("load keys, values"):
            for side in ("keys", "values"):
                load_tile(c, side, chunk, (layer, sequence, head), part)
        with e.loop(group) as query, e.loop(tiles) as tile:
            at = [(query, chunk.span.sequences * chunk.span.rows), *local, (tile, rows)]
            with e.stage("Q times keys"), e.loop(tiling.key_tile // blen) as n:
                q_steps = [(head, group * hd), (query, hd), *times([*local, (tile, rows)], width)]
                multiply_tile(c, "keys", n, rows, c.vector("q", 0, q_steps, rows=width))
                e.emit("M_OUT", dst=c.vector("scores", 0, [(n, blen)], rows=c.vlen), rows=rows, cols=blen)
            with e.stage("softmax"):
                _softmax(c, sequence, part, at)
            with e.stage("weights times values"), e.loop(hd // blen) as n:
                multiply_tile(c, "values", n, rows, c.vector("scores", rows=c.vlen))
                e.emit("M_OUT", dst=c.vector("partial", 0, [(n, blen)], rows=hd), rows=rows, cols=blen)
            with e.stage("correct the output"), e.loop(rows) as row:
                out = output([(row, width)], query, tile)
                e.emit("V_MUL_VF", dst=out, a=out, scalar=c.fp("correction", 0, [(row, 1)]), n=hd)
            with e.stage("add to the output"), e.loop(rows) as row:
                out = output([(row, width)], query, tile)
                e.emit("V_ADD_VV", dst=out, a=out, b=c.vector("partial", 0, [(row, hd)]), n=hd)
        c.advance("keys_values")
    with e.stage("divide by the sum"), e.loop(group) as query, e.loop(tiles) as tile:
        at = [(query, chunk.span.sequences * chunk.span.rows), *local, (tile, rows)]
        with e.loop(rows) as row:
            total = state("running_sum", [*at, (row, 1)])
            e.emit("S_RECI_FP", dst=total, a=total)
        with e.loop(rows) as row:
            out = output([(row, width)], query, tile)
            e.emit("V_MUL_VF", dst=out, a=out, scalar=state("running_sum", [*at, (row, 1)]), n=hd)


def _softmax(c: Context, sequence: Level, part: Level, at: Steps) -> None:
    """Online softmax of one tile of scores in place; leaves exp(old max - new max) in `correction`."""
    e, tiling = c.e, c.tiling
    n, rows = tiling.key_tile, tiling.row_tile

    def each(mnemonic: str, **operands: Place | int | str) -> None:
        """One loop over the rows of the tile; names stand for the state and scores of the row."""
        with e.loop(rows) as row:
            places = {
                "scores": c.vector("scores", 0, [(row, c.vlen)]), "new": c.fp("new_max", 0, [(row, 1)]),
                "correction": c.fp("correction", 0, [(row, 1)]),
                "max": c.fp("running_max", 0, [*at, (row, 1)]), "sum": c.fp("running_sum", 0, [*at, (row, 1)]),
            }  # fmt: skip
            e.emit(mnemonic, **{k: places[v] if isinstance(v, str) else v for k, v in operands.items()})

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
