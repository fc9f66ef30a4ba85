"""Block-adaptive online smoothing of the KV cache (BAOS): measure, calibrate, scale (docs/kv_quantisation.md).

At a block's first step every layer runs in two phases: K and V go to HBM as BF16 while the maximum of each channel is
taken; then the factors are computed, and K and V are read again, divided by them and rounded into the cache. Later steps
divide by the same factors. Attention multiplies Q and its output by them.

Where channels are centred, the first phase adds them up instead, and a phase between reads K and V for the maxima of what
is left without the mean m. Scores lose q m, the same for all keys, which softmax does not see; the output gets V's m back.

The tensor `smoothing` keeps two rows per layer and sequence, K's part first: `inverse`, 1 / s of each KV channel and then m of
each; `fold`, s of each query channel (a KV head's s once for each of its query heads) and then m of V alone.
"""

from collections.abc import Mapping

from npu.formats import FORMATS
from npu_compiler.cache import store_cache
from npu_compiler.context import LOG2_ROW_BLOCK, Context
from npu_compiler.flow import Layer
from npu_compiler.rows import Chunk, Span, times
from npu_compiler.stages import Level, Place, Steps
from npu_compiler.tiling import CONTRACTED, smoothing_widths


def clear_channels(c: Context) -> None:
    """Clear the maxima or sums of channels that the first phase gathers, for all sequences."""
    _clear(c, "channel_mean" if c.centres else "channel_max")


def _clear(c: Context, buffer: str) -> None:
    for offset, piece, lanes in c.wide(c.workload.forwarded_sequences * 2 * c.geometry.kv_width):
        c.e.emit("V_FILL_VF", dst=c.vector(buffer, offset, piece), scalar=c.fp("zero"), n=lanes)


def measure(c: Context, chunk: Chunk, buffer: str, offset: int, pitch: int) -> None:
    """The first phase's look at a chunk's rows of K and V, which lie from column `offset` on; padding is zero."""
    if c.centres:
        _gather(c, chunk, "V_ADD_VV", "channel_mean", buffer, offset, pitch)
    else:
        _gather(c, chunk, "V_MAX_ABS_VV", "channel_max", buffer, offset, pitch)


def _gather(c: Context, chunk: Chunk, mnemonic: str, target: str, buffer: str, offset: int, pitch: int) -> None:
    width = 2 * c.geometry.kv_width
    with chunk.each_of_sequence(c.e) as (sequence, rows):
        for first, piece, lanes in c.wide(width):
            total = c.vector(target, first, [*_to_sequence(c, chunk, target, sequence), *piece])
            row = c.vector(buffer, offset + first, [*piece, *times(rows, pitch)])
            c.e.emit(mnemonic, dst=total, a=total, b=row, n=lanes)


def smooth(c: Context, span: Span, layer: Layer) -> None:
    """The second phase of a layer: the factors of all sequences, then K and V in their terms into the cache."""
    e, width = c.e, 2 * c.geometry.kv_width
    if c.centres:
        _centre(c, span)
    with e.loop(c.workload.forwarded_sequences) as sequence:
        _calibrate(c, layer, sequence)
    for chunk in c.chunks(span):
        with e.stage("load K, V"):
            c.transfer_rows(chunk, "H_LOAD_V", "kv_raw", "kv", width)
            load_factors(c, chunk, layer, "inverse")
            if c.centres:
                c.load_valid(chunk)
        with e.stage("to the terms of the cache"):
            to_cache_domain(c, chunk, "kv", 0, width)
        with e.stage("store K, V"):
            store_cache(c, chunk, layer, "kv", 0, width)


def _centre(c: Context, span: Span) -> None:
    """Sums of channels become means; then the maxima of K and V without them, read again."""
    e, width = c.e, 2 * c.geometry.kv_width
    with e.stage("means of channels"):
        with e.loop(c.workload.forwarded_sequences) as sequence:
            for first, piece, lanes in c.wide(width):
                mean = c.vector("channel_mean", first, [(sequence, width), *piece])
                e.emit("V_MUL_VF", dst=mean, a=mean, scalar=c.fp("inverse_tokens", 0, [(sequence, 1)]), n=lanes)
        _clear(c, "channel_max")
    for chunk in c.chunks(span):
        with e.stage("load K, V"):
            c.transfer_rows(chunk, "H_LOAD_V", "kv_raw", "kv", width)
            c.load_valid(chunk)
        with e.stage("maxima without means"):
            for side in c.numerics.smoothing.sides:
                _subtract(c, chunk, side, ("channel_mean", 0), ("kv", 0, width))
            _gather(c, chunk, "V_MAX_ABS_VV", "channel_max", "kv", 0, width)


def _column(c: Context, side: str) -> int:
    """Where a side's channels begin in a row of K and V."""
    return list(CONTRACTED).index(side) * c.geometry.kv_width


def _calibrate(c: Context, layer: Layer, sequence: Level) -> None:
    """The factors of one sequence, from its channel maxima, into the tensor `smoothing`."""
    e, model, settings = c.e, c.model, c.numerics.smoothing
    hd, group, facts = c.geometry.head_dim, c.geometry.group, c.tensor("smoothing")
    heads = len(settings.sides) * c.geometry.kv_heads
    first = 0 if settings.keys else c.geometry.kv_heads

    def places(head: Level) -> Mapping[str, Place]:
        """Of a KV head that is smoothed, of K and then of V."""
        at = [(head, hd)]
        return {
            "largest": c.vector("channel_max", first * hd, [(sequence, 2 * c.geometry.kv_width), *at]),
            "inverse": c.vector("smoothing", first * hd, at),
            "top": c.fp("head_state", 0, [(head, 1)]), "mean": c.fp("head_state", heads, [(head, 1)]),
        }  # fmt: skip

    each = e.one_by_one(lambda: e.loop(heads), places)
    inverse = smoothing_widths(model, settings)[0]
    with e.stage("factors of channels"):
        if settings.pre_rope and settings.keys:
            _pair(c, sequence)
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
            fold = c.vector("smoothing", inverse + first * group * hd, [(head, group * hd), (query, hd)])
            source = c.vector("channel_max", first * hd, [(sequence, 2 * c.geometry.kv_width), (head, hd)])
            e.emit("V_EXP2_V", dst=fold, a=source, n=hd)
        each("V_RECI_V", dst="inverse", a="inverse", n=hd)
        if c.centres:
            _keep_means(c, sequence, inverse)
    with e.stage("store factors"):
        at = c.hbm("smoothing", 0, [*layer.number(facts.stride_bytes(0)), (sequence, facts.row_bytes)])
        e.emit("H_STORE_V", dst=at, src=c.vector("smoothing"), rows=1, cols=facts.shape[-1], format=FORMATS["bf16"].code,
               block=LOG2_ROW_BLOCK)  # fmt: skip


def _pair(c: Context, sequence: Level) -> None:
    """RoPE turns channel j of K with channel j + head_dim / 2: both get the larger maximum, so that s commutes with it."""
    half = c.geometry.head_dim // 2
    with c.e.loop(c.geometry.kv_heads) as head:
        place = [(sequence, 2 * c.geometry.kv_width), (head, c.geometry.head_dim)]
        low, high = c.vector("channel_max", 0, place), c.vector("channel_max", half, place)
        for target in (low, high):
            c.e.emit("V_MAX_VV", dst=target, a=low, b=high, n=half)


def _keep_means(c: Context, sequence: Level, inverse: int) -> None:
    """The means of a sequence into its row of factors: of every channel, and of V's once for each query head."""
    hd, group, width = c.geometry.head_dim, c.geometry.group, 2 * c.geometry.kv_width

    def copy(target: Place, source: Place, lanes: int) -> None:
        c.e.emit("V_MUL_VF", dst=target, a=source, scalar=c.fp("one"), n=lanes)

    for first, piece, lanes in c.wide(width):
        mean = c.vector("channel_mean", first, [(sequence, width), *piece])
        copy(c.vector("smoothing", width + first, piece), mean, lanes)
    if "values" in c.numerics.smoothing.sides:
        with c.e.loop(c.geometry.kv_heads) as head, c.e.loop(group) as query:
            mean = c.vector("channel_mean", c.geometry.kv_width, [(sequence, width), (head, hd)])
            place = c.vector("smoothing", inverse + 2 * c.geometry.query_width, [(head, group * hd), (query, hd)])
            copy(place, mean, hd)


def load_factors(c: Context, chunk: Chunk, layer: Layer, row: str) -> None:
    """The row `inverse` or `fold` of the chunk's sequences."""
    facts, (inverse, fold) = c.tensor("smoothing"), smoothing_widths(c.model, c.numerics.smoothing)
    first, width = (0, inverse) if row == "inverse" else (inverse, fold)
    steps = [*layer.number(facts.stride_bytes(0)), *chunk.batch_steps(facts.row_bytes)]
    c.e.emit("H_LOAD_V", dst=c.vector(row, rows=width), src=c.hbm("smoothing", 2 * first, steps, rows=facts.row_bytes),
             rows=chunk.sequences, cols=width, format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK)  # fmt: skip


def to_cache_domain(c: Context, chunk: Chunk, buffer: str, offset: int, pitch: int) -> None:
    """K from column `offset` on, and V behind it, less their means and divided by their factors, where they are smoothed."""
    for side in c.numerics.smoothing.sides:
        if c.centres:
            _subtract(c, chunk, side, ("inverse", 2 * c.geometry.kv_width), (buffer, offset, pitch))
        multiply(c, chunk, side, "inverse", buffer, offset + _column(c, side), pitch)


def _subtract(c: Context, chunk: Chunk, side: str, means: tuple[str, int], rows: tuple[str, int, int]) -> None:
    """Rows of K and V (buffer, offset, pitch) less the means (buffer, offset) of one side; those of padding stay zero."""
    column, (of_means, behind), (buffer, offset, pitch) = _column(c, side), means, rows
    _combine(
        c, chunk, "V_SUB_VV", (of_means, behind + column), (buffer, offset + column, pitch), c.geometry.kv_width,
        zero_padding=chunk.has_padding,
    )  # fmt: skip


def multiply(c: Context, chunk: Chunk, side: str, row: str, buffer: str, offset: int, pitch: int) -> None:
    """Multiply the rows of a chunk, from column `offset` on, by factors of their sequence, if `side` is smoothed."""
    if side in c.numerics.smoothing.sides:
        width = c.geometry.kv_width if row == "inverse" else c.geometry.query_width
        _combine(c, chunk, "V_MUL_VV", (row, width if side == "values" else 0), (buffer, offset, pitch), width)


def uncentre(c: Context, chunk: Chunk, buffer: str) -> None:
    """Add V's means to the rows of attention's output, if V is centred."""
    if c.centres and "values" in c.numerics.smoothing.sides:
        width = c.geometry.query_width
        _combine(c, chunk, "V_ADD_VV", ("fold", 2 * width), (buffer, 0, width), width)


def _combine(
    c: Context, chunk: Chunk, mnemonic: str, factors: tuple[str, int], target: tuple[str, int, int], width: int, *,
    zero_padding: bool = False,
) -> None:  # fmt: skip
    """`width` columns of the chunk's rows (buffer, offset, pitch) with those of their sequence's row (buffer, offset)."""
    (row, behind), (buffer, offset, pitch) = factors, target
    with chunk.each_of_sequence(c.e) as (sequence, rows):
        for first, piece, lanes in c.wide(width):
            place = c.vector(buffer, offset + first, [*piece, *times(rows, pitch)])
            factor = c.vector(row, behind + first, [*_to_sequence(c, chunk, row, sequence), *piece])
            c.e.emit(mnemonic, dst=place, a=place, b=factor, n=lanes)
            if zero_padding:
                c.e.emit("V_MUL_VF", dst=place, a=place, scalar=c.fp("valid", 0, rows), n=lanes)


def _to_sequence(c: Context, chunk: Chunk, row: str, sequence: Level) -> Steps:
    """Strides to a sequence of a chunk: in a row of factors, of which the chunk's are there, or in one of channels, of all."""
    inverse, fold = smoothing_widths(c.model, c.numerics.smoothing)
    if row in ("inverse", "fold"):
        return [(sequence, inverse if row == "inverse" else fold)]
    width = 2 * c.geometry.kv_width
    return [*chunk.batch_steps(width), (sequence, width)]
