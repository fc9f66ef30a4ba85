"""A forward pass: the operators of every layer over chunks of rows.

Hidden states, Q and the KV cache cross chunks in HBM; within a chunk, operators hand buffers from unit to unit. Attention needs
the keys of all rows, so a layer is two passes over the chunks: the operators up to it, then attention and what follows. A pass
of one chunk may keep its hidden states and Q in Vector SRAM instead. Where the weights of a projection stay, a pass is cut at it
(`staying`).
"""

from collections.abc import Sequence
from dataclasses import replace

from dllm.operators import Attention, Linear, Operator, Residual
from npu.formats import FORMATS
from npu_compiler.cache import move_keys, store_cache
from npu_compiler.context import LOG2_ROW_BLOCK, Context
from npu_compiler.flow import Flow, Layer
from npu_compiler.mixing import mix_projected
from npu_compiler.operators import add_bias, load, lower, turn
from npu_compiler.rows import Chunk, Span, fixed, full_span
from npu_compiler.smoothing import clear_channels, load_factors, measure, smooth, to_cache_domain
from npu_compiler.stages import Steps
from npu_compiler.staying import Part, cut, leave_activations, load_results, project_all


def forward(c: Context, span: Span, *, measuring: bool, clean: bool = False) -> None:
    """Forward the rows of `span` through embedding and all layers; the result is the tensor `x` in HBM, and stays in the buffer
    of that name where the span is kept.

    A `measuring` pass forwards the whole canvas, and looks at the channels of K and V before it stores them; a `clean` one
    forwards finished tokens, which nothing conditions.
    """
    network, c = c.model.network, replace(c, clean=clean)
    with c.e.phase("embed"):
        for chunk in c.chunks(span):
            lower(network.stem, c, Flow(chunk=chunk))
            if network.conditioning and not clean:
                flow = Flow(chunk=chunk)
                with c.e.stage("load soft tokens"):
                    load(network.conditioning, c, flow)
                lower(network.conditioning, c, flow)
            if not c.keeps(span):
                with c.e.stage("store rows"):
                    c.transfer_rows(chunk, "H_STORE_V", "x", "x", c.model.hidden)
    with c.e.loop(network.cycles) as cycle:
        for group, layers in network.numbered():
            own, first = c.within(group), layers[0] if network.cycles == 1 else 0
            with c.e.loop(group.repeat) as loop:
                layer = Layer(group=group, first=first, loop=loop, cycle=cycle)
                before, attention, behind = group.around_attention()
                _write_cache(own, before, span, layer, measuring=measuring)
                if c.numerics.smoothing.pre_rope:
                    with c.e.phase("rotate"):
                        _rotate_keys(own, layer)
                _read_cache(own, attention, behind, span, layer)
    if c.keeps(span):
        with c.e.phase("ffn"):
            for chunk in c.chunks(span):
                with c.e.stage("store rows"):
                    c.transfer_rows(chunk, "H_STORE_V", "x", "x", c.model.hidden)


def _write_cache(c: Context, operators: Sequence[Operator], span: Span, layer: Layer, *, measuring: bool) -> None:
    """The operators before attention: Q goes to HBM as BF16, K and V into the cache in its format.

    Where the pass is `measuring` the channels, K and V go to HBM as BF16 instead, to be read again once all are known.
    """
    e, model, width = c.e, c.model, c.geometry.qkv_width
    with e.phase("qkv"):
        if measuring:
            with e.stage("clear channels"):
                clear_channels(c)
        for part in cut(c, [(each, "qkv") for each in operators], span):
            for chunk in c.chunks(span):
                flow = Flow(chunk=chunk, layer=layer, result="qkv", zero_padding=span.has_padding)
                with e.stage("load rows"):
                    if part.reads_stream and not c.keeps(span):
                        c.transfer_rows(chunk, "H_LOAD_V", "x", "x", model.hidden)
                    _load_part(c, part, flow)
                    c.load_valid(chunk)
                    if part.before is None and c.smooths and not measuring:
                        load_factors(c, chunk, layer, "inverse")
                _lower_part(c, part, flow)
                if part.before is None:
                    _store_projected(c, chunk, layer, width, measuring=measuring)
            _project_all(c, part, span, layer)
    if measuring:
        with e.phase("smooth"):
            smooth(c, span, layer)


def _store_projected(c: Context, chunk: Chunk, layer: Layer, width: int, *, measuring: bool) -> None:
    """Q, K and V of a chunk."""
    e = c.e
    mix_projected(c, chunk)
    if measuring:
        with e.stage("measure channels"):
            measure(c, chunk, "qkv", c.geometry.query_width, width)
    else:
        with e.stage("to the terms of the cache"):
            to_cache_domain(c, chunk, "qkv", c.geometry.query_width, width)
    with e.stage("store Q, K, V"):
        if not c.keeps(chunk.span):
            c.transfer_rows(chunk, "H_STORE_V", "q", "qkv", c.geometry.query_width, pitch=width)
        if measuring:
            columns = {"offset": c.geometry.query_width, "pitch": width}
            c.transfer_rows(chunk, "H_STORE_V", "kv_raw", "qkv", 2 * c.geometry.kv_width, **columns)
        else:
            store_cache(c, chunk, layer, "qkv", c.geometry.query_width, width)


def _read_cache(c: Context, attention: Attention, operators: Sequence[Operator], span: Span, layer: Layer) -> None:
    """Attention and the operators behind it, chunk by chunk; the chunks go back to HBM."""
    e, model, kept = c.e, c.model, c.keeps(span)
    queries = (
        {"value": "qkv", "pitch": c.geometry.qkv_width} if kept else {"value": "q", "pitch": attention.query_width}
    )
    added = next(number for number, each in enumerate(operators, 1) if isinstance(each, Residual))
    phased = [(each, "out" if number < added else "ffn") for number, each in enumerate(operators)]
    for part in cut(c, [(attention, "attention"), *phased], span):
        for chunk in c.chunks(span):
            flow = Flow(chunk=chunk, layer=layer, result="y", **queries)
            with e.phase(part.phase):
                if part.behind is None and not kept:
                    with e.stage("load Q"):
                        c.transfer_rows(chunk, "H_LOAD_V", "q", "q", attention.query_width)
                with e.stage("load rows"):
                    if part.behind is None:
                        _load_mask(c, chunk)
                    if part.reads_stream and not kept:
                        c.transfer_rows(chunk, "H_LOAD_V", "x", "x", model.hidden)
                    _load_part(c, part, flow)
                    if part.behind is None and c.smooths:
                        load_factors(c, chunk, layer, "fold")
                if part.behind is None and span.edge is not None:
                    _hide_later_keys(c, chunk, span.edge)
            _lower_part(c, part, flow)
            if part.changes_stream and not kept:
                with e.phase(part.operators[-1][1]), e.stage("store rows"):
                    c.transfer_rows(chunk, "H_STORE_V", "x", "x", model.hidden)
        _project_all(c, part, span, layer)


def _load_mask(c: Context, chunk: Chunk) -> None:
    """Load the mask that is added to the scores of each sequence's keys."""
    mask = c.tensor("mask")
    with c.e.loop(chunk.sequences) as sequence:
        step = [*chunk.batch_steps(mask.row_bytes), (sequence, mask.row_bytes)]
        c.e.emit("H_LOAD_V", dst=c.vector("mask", 0, [(sequence, c.tiling.cache_tokens)]), src=c.hbm("mask", 0, step),
                 rows=1, cols=c.tiling.cache_tokens, format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK)  # fmt: skip


def _hide_later_keys(c: Context, chunk: Chunk, edge: Steps) -> None:
    """Add to the mask what hides the keys from an edge on."""
    with c.e.stage("hide later keys"), c.e.loop(chunk.sequences) as sequence:
        for first, piece, lanes in c.wide(c.tiling.cache_tokens):
            row = c.vector("mask", first, [(sequence, c.tiling.cache_tokens), *piece])
            c.e.emit("V_ADD_VV", dst=row, a=row, b=c.vector("edge", first, [*edge, *piece]), n=lanes)


def _load_part(c: Context, part: Part, flow: Flow) -> None:
    """Load what the operators of a part need beside the residual stream, and the results of the projection before them."""
    operators = [each for each, _ in part.operators]
    if part.behind is None:
        load(operators, c, flow)
    else:
        load([part.behind[0], *operators], c, flow)
        load_results(c, flow, part.behind[0])


def _lower_part(c: Context, part: Part, flow: Flow) -> None:
    """The operators of a part, and behind them the activations for the next projection."""
    if part.behind is not None and isinstance(part.behind[0], Linear):
        with c.e.phase(part.phase):
            add_bias(part.behind[0], c, flow)
    for operator, phase in part.operators:
        with c.e.phase(phase):
            lower([operator], c, flow)
    if part.before is not None:
        with c.e.phase(part.before[1]):
            leave_activations(c, flow, part.before[0])


def _project_all(c: Context, part: Part, span: Span, layer: Layer) -> None:
    """The projection between a part and the next one."""
    if part.before is not None:
        with c.e.phase(part.before[1]):
            project_all(c, span, layer, part.before[0])


def _rotate_keys(c: Context, layer: Layer) -> None:
    """The keys of a layer, cached before RoPE, de-quantised and turned: all rows of the canvas into `rotated_keys`."""
    e, width, once = c.e, c.geometry.kv_width, Layer(group=layer.group, first=0, loop=fixed(0), cycle=fixed(0))
    for chunk in c.chunks(full_span(c.workload, c.tiling)):
        with e.stage("load keys"):
            move_keys(c, chunk, "H_LOAD_V", "keys", "cached_keys", layer)
            c.transfer_rows(chunk, "H_LOAD_V", "rope", "key_rope", c.geometry.turned_channels)
        with e.stage("rotate keys"):
            turn(c, chunk, "cached_keys", "key_rope", width, width)
        with e.stage("store keys"):
            move_keys(c, chunk, "H_STORE_V", "rotated_keys", "cached_keys", once)
