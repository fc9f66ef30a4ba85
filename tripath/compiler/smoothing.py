"""Block-adaptive online smoothing of the KV cache (BAOS): measure, calibrate, scale (docs/kv_quantisation.md).

At a block's first step every layer runs in two phases: K and V go to HBM as BF16 while the maximum of each channel is
taken; then the factors are computed, and K and V are read again, divided by them and rounded into the cache. Later steps
divide by the same factors. Attention multiplies Q and its output by them.

The tensor `smoothing` keeps two rows per layer and sequence, K's part first: `inverse`, 1 / s of each KV channel; `fold`,
s of each query channel (a KV head's s once for each of its query heads).
"""

from tripath.compiler.cache import store_cache
from tripath.compiler.emit import Level
from tripath.compiler.layout import CONTRACTED
from tripath.compiler.lower import LOG2_ROW_BLOCK, Context
from tripath.compiler.rows import Chunk, Span, times
from tripath.formats import FORMATS


def clear_maxima(c: Context) -> None:
    """Channel maxima of all sequences := 0."""
    for offset, piece, lanes in c.wide(c.workload.batch * 2 * c.model.kv_width):
        c.e.emit("V_FILL_VF", dst=c.vector("channel_max", offset, piece), scalar=c.fp("zero"), n=lanes)


def measure(c: Context, chunk: Chunk, buffer: str, offset: int, pitch: int) -> None:
    """Channel maxima := max with |K| and |V| of a chunk's rows, which lie from column `offset` on; padding is zero."""
    width = 2 * c.model.kv_width
    with chunk.each_of_sequence(c.e, c.layout.tiling.row_tile) as (sequence, rows):
        for first, piece, lanes in c.wide(width):
            place = [(chunk.batch_loop, chunk.span.sequences * width), (sequence, width), *piece]
            largest = c.vector("channel_max", first, place)
            row = c.vector(buffer, offset + first, [*piece, *times(rows, pitch)])
            c.e.emit("V_MAX_ABS_VV", dst=largest, a=largest, b=row, n=lanes)


def smooth(c: Context, span: Span, block: Level, layer: Level) -> None:
    """The second phase of a layer: the factors of all sequences, then K and V divided by them into the cache."""
    e, channel, width = c.e, c.channels["kv_in"], 2 * c.model.kv_width
    with e.loop(c.workload.batch) as sequence:
        _calibrate(c, layer, sequence)
    e.sync("dma_out", signal=c.semaphores["factors_stored"])
    e.sync("dma_in", wait=c.semaphores["factors_stored"])
    with c.chunks(span, block) as chunk:
        e.sync("dma_in", wait=channel.free)
        c.transfer_rows(chunk, "H_LOAD_V", "kv_raw", "kv", width)
        load_factors(c, chunk, layer, "inverse")
        e.sync("dma_in", signal=channel.full)
        e.sync("vector", wait=channel.full)
        scale_cache_rows(c, chunk, "kv", 0, width)
        e.sync("vector", signal=c.semaphores["kv_scaled"])
        e.sync("dma_out", wait=c.semaphores["kv_scaled"])
        store_cache(c, chunk, layer, "kv", 0, width)
        e.sync("dma_out", signal=channel.free)


def _calibrate(c: Context, layer: Level, sequence: Level) -> None:
    """The factors of one sequence, from its channel maxima, into the tensor `smoothing`."""
    e, model, settings, channel = c.e, c.model, c.numerics.smoothing, c.channels["smoothing"]
    hd, group, facts = model.head_dim, model.heads // model.kv_heads, c.layout.tensor("smoothing")
    heads = len(settings.sides) * model.kv_heads
    first = 0 if settings.keys else model.kv_heads

    def each(mnemonic: str, **operands: int | str) -> None:
        """Once for each KV head that is smoothed, of K and then of V; names stand for what belongs to the head."""
        with e.loop(heads) as head:
            place = [(head, hd)]
            registers = {
                "largest": c.vector("channel_max", first * hd, [(sequence, 2 * model.kv_width), *place]),
                "inverse": c.vector("smoothing", first * hd, place),
                "top": c.fp("head_state", 0, [(head, 1)]), "mean": c.fp("head_state", heads, [(head, 1)]),
            }  # fmt: skip
            values = {k: registers[v] if isinstance(v, str) else v for k, v in operands.items()}
            e.emit(mnemonic, **values)

    e.sync("vector", wait=channel.free)
    each("S_MOV_FP", dst="top", a=c.fp("zero"))
    each("V_RED_MAX", dst="top", a="largest", n=hd)
    each("S_MUL_FP", dst="top", a="top", b=c.fp("smallest_share"))
    each("V_MAX_VF", dst="largest", a="largest", scalar="top", n=hd)
    each("V_LOG2_V", dst="largest", a="largest", n=hd)
    each("S_MOV_FP", dst="mean", a=c.fp("zero"))
    each("V_RED_SUM", dst="mean", a="largest", n=hd)
    each("S_MUL_FP", dst="mean", a="mean", b=c.fp("inverse_head_dim"))
    each("V_SUB_VF", dst="largest", a="largest", scalar="mean", n=hd)
    if settings.alpha != 1.0:
        each("V_MUL_VF", dst="largest", a="largest", scalar=c.fp("alpha"), n=hd)
    if settings.power_of_two:
        each("V_ROUND_V", dst="largest", a="largest", n=hd)
    each("V_EXP2_V", dst="inverse", a="largest", n=hd)
    with e.loop(heads) as head, e.loop(group) as query:
        fold = c.vector("smoothing", 2 * model.kv_width + first * group * hd, [(head, group * hd), (query, hd)])
        source = c.vector("channel_max", first * hd, [(sequence, 2 * model.kv_width), (head, hd)])
        e.emit("V_EXP2_V", dst=fold, a=source, n=hd)
    each("V_RECI_V", dst="inverse", a="inverse", n=hd)
    e.sync("vector", signal=channel.full)
    e.emit("H_STORE_V", dst=c.hbm("smoothing", 0, [(layer, facts.stride_bytes(0)), (sequence, facts.row_bytes)]),
           src=c.vector("smoothing"), rows=1, cols=facts.shape[-1], format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK,
           wait=channel.full, signal=channel.free)  # fmt: skip


def load_factors(c: Context, chunk: Chunk, layer: Level, row: str) -> None:
    """The row `inverse` or `fold` of the chunk's sequences."""
    facts, model = c.layout.tensor("smoothing"), c.model
    first, width = (0, 2 * model.kv_width) if row == "inverse" else (2 * model.kv_width, 2 * model.query_width)
    steps = [(layer, facts.stride_bytes(0)), (chunk.batch_loop, chunk.span.sequences * facts.row_bytes)]
    c.e.emit("H_LOAD_V", dst=c.vector(row, rows=width), src=c.hbm("smoothing", 2 * first, steps, rows=facts.row_bytes),
             rows=chunk.span.sequences, cols=width, format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK)  # fmt: skip


def scale_cache_rows(c: Context, chunk: Chunk, buffer: str, offset: int, pitch: int) -> None:
    """Divide K from column `offset` on, and V behind it, by the factors of their sequence, where they are smoothed."""
    for number, side in enumerate(CONTRACTED):
        scale_rows(c, chunk, side, "inverse", buffer, offset + number * c.model.kv_width, pitch)


def scale_rows(c: Context, chunk: Chunk, side: str, row: str, buffer: str, offset: int, pitch: int) -> None:
    """Multiply the rows of a chunk, from column `offset` on, by factors of their sequence, if `side` is smoothed."""
    if side not in c.numerics.smoothing.sides:
        return
    width = c.model.kv_width if row == "inverse" else c.model.query_width
    behind = width if side == "values" else 0
    with chunk.each_of_sequence(c.e, c.layout.tiling.row_tile) as (sequence, rows):
        for first, piece, lanes in c.wide(width):
            place = c.vector(buffer, offset + first, [*piece, *times(rows, pitch)])
            factors = c.vector(row, behind + first, [(sequence, 2 * width), *piece])
            c.e.emit("V_MUL_VV", dst=place, a=place, b=factors, n=lanes)
