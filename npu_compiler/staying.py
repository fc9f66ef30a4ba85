"""Projections whose weights stay: a block of a matrix lies in Matrix SRAM while the rows of all chunks pass.

Where a pass has many chunks, each of them streams the weights of a layer anew. Instead, a layer is cut at such a projection.
What comes before it leaves its activations in HBM, in the format to which the array rounds them anyway, so no bit changes.
The projection goes through its matrix block by block, and for each block through all rows. What comes behind it loads the
results. Rows of a chunk lie in these tensors as they lie in its buffers (`Chunk.packed`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dllm.operators import Attention, Channelwise, GatedMlp, HeadNorm, Linear, Norm, Operator, Residual, Rope
from npu.formats import FORMATS, MX_BLOCK, Format
from npu.isa import Memory
from npu_compiler.context import Context
from npu_compiler.flow import Flow, Layer
from npu_compiler.gated import DENSE, activate
from npu_compiler.rows import Chunk, Span, balanced, fixed, segments, times
from npu_compiler.stages import Buffer, Level, Node, Place, Steps, ops_of
from npu_compiler.tiling import STREAM_SLOTS

Projection = Linear | GatedMlp
ASIDE = Attention, Channelwise, Linear, HeadNorm, Rope, GatedMlp
"""Operators that leave the residual stream alone."""


WORTH = 0.75
"""Of the bytes of streamed weights, so many at most may move where weights stay: less is not worth a longer program."""
MOST_BYTES = (1 << 24) - 1
"""Bytes that one descriptor loads of a matrix."""
Phased = tuple[Operator, str]
"""An operator of a layer, and its phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Operators that a chunk goes through at once: behind a projection whose results they load, and before the projection for
    which they leave activations; None: there is none."""

    behind: tuple[Projection, str] | None
    operators: Sequence[Phased]
    before: tuple[Projection, str] | None

    @property
    def phase(self) -> str:
        """That of its loads."""
        return self.behind[1] if self.behind is not None else self.operators[0][1]

    @property
    def reads_stream(self) -> bool:
        """The residual stream is needed."""
        return any(
            not isinstance(each, ASIDE) and not (isinstance(each, Norm) and each.of_result)
            for each, _ in self.operators
        )

    @property
    def changes_stream(self) -> bool:
        """The residual stream is changed."""
        return any(isinstance(each, Residual) for each, _ in self.operators)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pass:
    """All rows, whose activations lie in the tensor `source`, through matrices [outputs, inputs] of one shape, some columns at a
    time."""

    matrices: Sequence[str]
    outputs: int
    inputs: int
    source: str

    def row_bytes(self, c: Context) -> int:
        """Bytes of a column of weights."""
        return FORMATS[c.numerics.weights].row_bytes(self.inputs, c.numerics.block_size)

    def weight_bytes(self, c: Context) -> int:
        """Bytes of all matrices."""
        return len(self.matrices) * self.outputs * self.row_bytes(c)

    def blocks(self, c: Context) -> list[tuple[int, int]]:
        """The columns in blocks of nearly one size, (blocks, columns); none where Matrix SRAM does not hold the smallest. A block
        consists of whole panels, and of whole blocks of elements."""
        unit = math.lcm(math.gcd(c.hardware.blen, self.outputs), c.numerics.block_size)
        held = c.buffers[Memory.MATRIX, "staying"].elements // (len(self.matrices) * self.row_bytes(c))
        most = min(held, _widest(c), MOST_BYTES // self.row_bytes(c)) // unit
        if not most or self.outputs % unit:
            return []
        return [(count, size * unit) for count, size in balanced(self.outputs // unit, most, 1)]

    def moved_bytes(self, c: Context, rows: int) -> int:
        """Bytes of weights once, and of activations: left once, and read for each block."""
        times_moved = 1 + sum(count for count, _ in self.blocks(c))
        return self.weight_bytes(c) + rows * times_moved * _format(c).row_bytes(self.inputs, c.numerics.block_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    """Rows of a chunk from `at` on, times `width` columns of each matrix: `columns` are their strides in the matrix, `held` in
    the block of `block` columns that lies in Matrix SRAM."""

    chunk: Chunk
    at: Steps
    rows: int
    block: int
    columns: Steps
    held: Steps
    width: int

    def place(self, c: Context, tensor: str, group: int, group_bytes: int) -> Place:
        """The tile in a tensor, in which a `group` of columns takes so many bytes."""
        row = c.tensor(tensor).row_bytes
        columns = [(level, stride // group * group_bytes) for level, stride in self.columns]
        return c.hbm(tensor, 0, [*self.chunk.packed(row), *times(self.at, row), *columns], rows=row)


def cut(c: Context, operators: Sequence[Phased], span: Span) -> list[Part]:
    """The operators of a layer, cut at the projections whose weights stay."""
    parts: list[Part] = []
    behind, taken = None, []
    for each, phase in operators:
        if isinstance(each, Projection) and _stays(c, each, span):
            parts.append(Part(behind=behind, operators=taken, before=(each, phase)))
            behind, taken = (each, phase), []
        else:
            taken.append((each, phase))
    return [*parts, Part(behind=behind, operators=taken, before=None)]


def leave_activations(c: Context, flow: Flow, op: Projection) -> None:
    """The activations of a chunk to HBM, for a projection."""
    inputs, row = _passes(op)[0].inputs, c.tensor("passing").row_bytes
    with c.e.stage("store activations"), flow.chunk.runs(c.e) as (rows, local, _):
        steps = [*flow.chunk.packed(row), *times(local, row)]
        c.e.emit("H_STORE_V", dst=c.hbm("passing", 0, steps, rows=row),
                 src=c.vector(flow.value, 0, times(local, inputs), rows=inputs), rows=rows, cols=inputs,
                 format=_format(c).code, block=c.log2_block)  # fmt: skip


def load_results(c: Context, flow: Flow, op: Projection) -> None:
    """The results of a projection for a chunk, into the buffer for results."""
    width, row = _passes(op)[-1].outputs, c.tensor("results").row_bytes
    pitch = c.geometry.qkv_width if flow.result == "qkv" else width
    with flow.chunk.runs(c.e) as (rows, local, _):
        steps = [*flow.chunk.packed(row), *times(local, row)]
        c.e.emit("H_LOAD_V", dst=c.vector(flow.result, 0, times(local, pitch), rows=pitch),
                 src=c.hbm("results", 0, steps, rows=row), rows=rows, cols=width, format=FORMATS["bf16"].code,
                 block=_log2_block(width))  # fmt: skip
    flow.value = flow.result


def project_all(c: Context, span: Span, layer: Layer, op: Projection) -> None:
    """A projection of all rows of a span: from their activations to their results, both in HBM."""
    for each in _passes(op):
        row_bytes, begin = each.row_bytes(c), 0
        for count, width in each.blocks(c):
            with c.e.loop(count) as block:
                with c.e.stage(f"load {', '.join(each.matrices)}"):
                    for number, matrix in enumerate(each.matrices):
                        tensor = layer.group.tensor(matrix)
                        steps = [*layer.of_group(c.tensor(tensor).stride_bytes(0)), (block, width * row_bytes)]
                        c.e.emit("H_LOAD_M", dst=c.matrix("staying", number * width * row_bytes),
                                 src=c.hbm(tensor, begin * row_bytes, steps), rows=1, row_bytes=width * row_bytes)  # fmt: skip
                for chunk in c.chunks(span):
                    for at, rows in chunk.tiles(c.e, c.hardware.blen):
                        tile = _Tile(chunk=chunk, at=at, rows=rows, block=width, held=(), width=width,
                                     columns=[(fixed(begin), 1), (block, width)])  # fmt: skip
                        _load_tile(c, each, tile)
                        match op:
                            case GatedMlp() if len(each.matrices) > 1:
                                _gate_and_up(c, layer, op, each, tile)
                            case GatedMlp() | Linear():
                                _project(c, layer, each, tile)
                        c.advance("passing")
            begin += count * width


def _passes(op: Projection) -> list[_Pass]:
    match op:
        case Linear():
            return [_Pass(matrices=(op.name,), outputs=op.outputs, inputs=op.inputs, source="passing")]
        case GatedMlp():
            return [
                _Pass(matrices=(DENSE.gate, DENSE.up), outputs=op.inner, inputs=op.width, source="passing"),
                _Pass(matrices=(DENSE.down,), outputs=op.width, inputs=op.inner, source="passing_inner"),
            ]


def _widest(c: Context) -> int:
    """Columns of a tile of results."""
    return c.buffers[Memory.VECTOR, "passed"].elements // (STREAM_SLOTS * c.hardware.blen)


def _format(c: Context) -> Format:
    """The format of activations in HBM: that to which the array rounds them."""
    return FORMATS[c.numerics.activations]


def _log2_block(width: int) -> int:
    return math.gcd(width, MX_BLOCK).bit_length() - 1


def could_stay(c: Context, spans: Sequence[Span]) -> bool:
    """The weights of some projection would stay while the rows of a span pass."""
    dense = [each for group in c.model.network.groups for each in group.pattern if isinstance(each, Projection)]
    return any(_stays(c, each, span) for each in dense for span in spans)


def uses_staying(body: Sequence[Node]) -> bool:
    """The weights of some projection stay."""
    return any(
        isinstance(at.target, Buffer) and at.target.name == "staying"
        for op in ops_of(body) for at in op.touched(written=True)
    )  # fmt: skip


def _results(rows: int, width: int) -> int:
    """Bytes of results, left and loaded."""
    return 2 * rows * FORMATS["bf16"].row_bytes(width, 1)


def _stays(c: Context, op: Projection, span: Span) -> bool:
    """A quarter fewer bytes move where the weights stay than where each chunk streams them."""
    if not c.tiling.arrangement.weights_stay or span.is_one_chunk:
        return False
    passes, chunks, rows = (
        _passes(op),
        sum(part.chunks for part in span.parts),
        sum(part.all_rows for part in span.parts),
    )
    staying = sum(each.moved_bytes(c, rows) for each in passes) + _results(rows, passes[-1].outputs)
    streamed = chunks * sum(each.weight_bytes(c) for each in passes)
    return all(each.blocks(c) for each in passes) and staying < WORTH * streamed


def _load_tile(c: Context, this: _Pass, tile: _Tile) -> None:
    row = c.tensor(this.source).row_bytes
    with c.e.stage("load activations"):
        steps = [*tile.chunk.packed(row), *times(tile.at, row)]
        c.e.emit("H_LOAD_V", dst=_activations(c, this), src=c.hbm(this.source, 0, steps, rows=row), rows=tile.rows,
                 cols=this.inputs, format=_format(c).code, block=c.log2_block)  # fmt: skip


def _activations(c: Context, this: _Pass, offset: int = 0, steps: Steps = ()) -> Place:
    apart = c.buffers[Memory.VECTOR, "passing"].elements // STREAM_SLOTS
    return c.vector("passing", offset, steps, rows=this.inputs, slot_stride=apart)


def _multiply(c: Context, layer: Layer, this: _Pass, tile: _Tile, number: int, target: str, apart: int) -> None:
    """target := the rows of a tile times its columns of a matrix, by its number."""
    matrix, row_bytes = this.matrices[number], this.row_bytes(c)
    columns = math.gcd(c.hardware.blen, this.outputs)
    with c.e.stage(f"times {matrix}"), c.e.loop(tile.width // columns) as panel:
        first = times([(fixed(number), tile.block), *tile.held, (panel, columns)], row_bytes)
        c.accumulate(
            layer.group.tensor(matrix), rows=tile.rows, columns=columns, inputs=this.inputs,
            weights=lambda offset, step: c.matrix("staying", offset, [*first, *step], rows=row_bytes),
            acts=lambda offset, step: _activations(c, this, offset, step),
        )  # fmt: skip
        out = c.vector(target, 0, [(panel, columns)], rows=tile.width, slot_stride=apart)
        c.e.emit("M_OUT", dst=out, rows=tile.rows, cols=columns)


def _project(c: Context, layer: Layer, this: _Pass, tile: _Tile) -> None:
    """Columns of the results for a tile of rows, to HBM."""
    apart = c.hardware.blen * _widest(c)
    _multiply(c, layer, this, tile, 0, "passed", apart)
    with c.e.stage("store results"):
        c.e.emit("H_STORE_V", dst=tile.place(c, "results", 1, FORMATS["bf16"].row_bytes(1, 1)),
                 src=c.vector("passed", rows=tile.width, slot_stride=apart), rows=tile.rows, cols=tile.width,
                 format=FORMATS["bf16"].code, block=_log2_block(tile.width))  # fmt: skip
    c.advance("passed")


def _gate_and_up(c: Context, layer: Layer, op: GatedMlp, this: _Pass, tile: _Tile) -> None:
    """Columns of the FFN for a tile of rows: activation(gate) * up, to HBM.

    So few at a time that the vector unit's queue takes all their instructions: the front end goes on to the next products.
    """
    size = c.numerics.block_size
    for first, count, width in segments(tile.width, _gated_columns(c)):
        with c.e.loop(count) as part:
            own = [(fixed(first), 1), (part, width)]
            some = replace(tile, columns=[*tile.columns, *own], held=own, width=width)
            apart = c.buffers[Memory.VECTOR, "made"].elements // STREAM_SLOTS
            for number, target in enumerate(("made_gate", "made_up")):
                _multiply(c, layer, this, some, number, target, apart)
            with c.e.stage(f"{op.activation.value}(gate) * up"):
                for begin, pieces, lanes in segments(tile.rows * width, c.vlen):
                    activate(c, c.e.one_by_one(lambda pieces=pieces: c.e.loop(pieces), _made(c, begin, lanes, apart)),
                             op.activation, lanes)  # fmt: skip
            c.advance("multiplied")
            with c.e.stage("store inner"):
                c.e.emit("H_STORE_V", dst=some.place(c, "passing_inner", size, _format(c).record_bytes(size)),
                         src=c.vector("made", rows=width, slot_stride=apart), rows=tile.rows, cols=width, format=_format(c).code,
                         block=c.log2_block)  # fmt: skip
            c.advance("made")


def _made(c: Context, begin: int, lanes: int, apart: int) -> Callable[[Level], Mapping[str, Place]]:
    """The places of activations from `begin` on: rows of a tile lie one behind the other, so lanes take them as one."""

    def places(piece: Level) -> Mapping[str, Place]:
        steps = [(piece, lanes)]
        return {
            "act": c.vector("made_act", begin, steps),
            **{name: c.vector(buffer, begin, steps, slot_stride=apart)
               for name, buffer in (("gate", "made_gate"), ("up", "made_up"), ("inner", "made"))},
        }  # fmt: skip

    return places


def _gated_columns(c: Context) -> int:
    """Columns of gate and up that are made at a time."""
    return c.buffers[Memory.VECTOR, "made"].elements // (STREAM_SLOTS * c.hardware.blen)
