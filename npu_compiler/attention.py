"""FlashAttention over the cache: softmax(q K^T + mask) V, head by head, a tile of keys at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

from dllm.operators import Attention, Mask
from npu_compiler.cache import load_tile, multiply_tile
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.mixing import mix_attended
from npu_compiler.rows import fixed, times
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
    with e.loop(chunk.sequences) as sequence, e.loop(op.kv_heads) as head:
        _Head(c=c, op=op, flow=flow, sequence=sequence, head=head).attend()
    with e.stage("from the terms of the cache"):
        multiply(c, chunk, "values", "fold", "attended", 0, op.query_width)
        uncentre(c, chunk, "attended")
    mix_attended(c, chunk)
    flow.value = "attended"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    """A tile of rows of one query head: strides in rows inside the sequence, and inside of the chunk (`at`)."""

    query: Level
    inside: Steps
    at: Steps
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """All query heads and row tiles that share one KV head of one sequence."""

    c: Context
    op: Attention
    flow: Flow
    sequence: Level
    head: Level

    @property
    def group(self) -> int:
        """Query heads of the KV head."""
        return self.op.heads // self.op.kv_heads

    def tiles(self) -> Iterator[_Tile]:
        """Loops over query heads and row tiles."""
        with self.c.e.loop(self.group) as query:
            chunk, own = self.flow.chunk, self.flow.chunk.span.by_row is Mask.BLOCK_CAUSAL
            within = self.c.workload.block_length if own else 0
            for inside, rows in chunk.tiles_of_sequence(self.c.e, self.c.tiling.row_tile, within):
                yield _Tile(query=query, inside=inside, at=[(self.sequence, chunk.part.pitch), *inside], rows=rows)

    def state(self, name: str, tile: _Tile, row: Level) -> Place:
        """An entry of the softmax state, one for each query head and row."""
        return self.c.fp(name, 0, [(tile.query, self.flow.chunk.size), *tile.at, (row, 1)])

    def rows_of(self, buffer: str, tile: _Tile, steps: Steps = ()) -> Place:
        """The part of the query head in rows of Q or of the result."""
        width, hd = self.op.query_width, self.op.head_dim
        base = [(self.head, self.group * hd), (tile.query, hd), *times(tile.at, width)]
        return self.c.vector(buffer, 0, [*base, *steps], rows=width)

    def attend(self) -> None:
        """Softmax and weighted sum over the tiles of keys; then the division by the sum of the weights."""
        c, e, blen, hd, width = self.c, self.c.e, self.c.hardware.blen, self.op.head_dim, self.op.query_width
        layer = self.flow.layer
        assert layer is not None
        with e.stage("clear the output"):
            for tile in self.tiles():
                with e.loop(tile.rows) as row:
                    e.emit("S_MOV_FP", dst=self.state("running_max", tile, row), a=c.fp("lowest"))
                    e.emit("S_MOV_FP", dst=self.state("running_sum", tile, row), a=c.fp("zero"))
                    e.emit("V_FILL_VF", dst=self.rows_of("attended", tile, [(row, width)]), scalar=c.fp("zero"), n=hd)
        with e.loop(self.flow.chunk.span.key_tiles) as part:
            with e.stage("load keys, values"):
                for side in ("keys", "values"):
                    load_tile(c, side, self.flow.chunk, layer, (self.sequence, self.head), part)
            for tile in self.tiles():
                with e.stage("Q times keys"), e.loop(c.tiling.key_tile // blen) as n:
                    multiply_tile(c, "keys", n, tile.rows, self.rows_of("q", tile))
                    e.emit("M_OUT", dst=c.vector("scores", 0, [(n, blen)], rows=c.vlen), rows=tile.rows, cols=blen)
                with e.stage("softmax"):
                    self.softmax(part, tile)
                with e.stage("weights times values"), e.loop(hd // blen) as n:
                    multiply_tile(c, "values", n, tile.rows, c.vector("scores", rows=c.vlen))
                    e.emit("M_OUT", dst=c.vector("partial", 0, [(n, blen)], rows=hd), rows=tile.rows, cols=blen)
                with e.stage("correct the output"), e.loop(tile.rows) as row:
                    out = self.rows_of("attended", tile, [(row, width)])
                    e.emit("V_MUL_VF", dst=out, a=out, scalar=c.fp("correction", 0, [(row, 1)]), n=hd)
                with e.stage("add to the output"), e.loop(tile.rows) as row:
                    out = self.rows_of("attended", tile, [(row, width)])
                    e.emit("V_ADD_VV", dst=out, a=out, b=c.vector("partial", 0, [(row, hd)]), n=hd)
            c.advance("keys_values")
        with e.stage("divide by the sum"):
            for tile in self.tiles():
                with e.loop(tile.rows) as row:
                    total = self.state("running_sum", tile, row)
                    e.emit("S_RECI_FP", dst=total, a=total)
                with e.loop(tile.rows) as row:
                    out = self.rows_of("attended", tile, [(row, width)])
                    e.emit("V_MUL_VF", dst=out, a=out, scalar=self.state("running_sum", tile, row), n=hd)

    def hide(self, part: Level, tile: _Tile) -> None:
        """Scores of a tile less those of keys that a row does not see, where each row has an edge of its own."""
        c, e, n, length = self.c, self.c.e, self.c.tiling.key_tile, self.c.workload.block_length
        mask, first = self.flow.chunk.span.by_row, [*self.flow.chunk.first_rows, *tile.inside]
        match mask:
            case None | Mask.FULL:
                return
            case Mask.CAUSAL:
                group = 1
            case Mask.BLOCK_CAUSAL:
                group = length
        with e.loop(max(1, tile.rows // group)) as outer, e.loop(min(group, tile.rows)) as inner:
            row = c.vector("scores", 0, [(outer, group * c.vlen), (inner, c.vlen)])
            # Rows of a group see the keys to the end of the group; the edge moves back with it.
            moves = times(grouped([*first, (outer, group)], group), -1)
            edge = c.vector("edge", c.tiling.canvas - group, [*moves, (part, n)])
            e.emit("V_ADD_VV", dst=row, a=row, b=edge, n=n)

    def softmax(self, part: Level, tile: _Tile) -> None:
        """Online softmax of one tile of scores in place; leaves exp(old max - new max) in `correction`."""
        c, e, n = self.c, self.c.e, self.c.tiling.key_tile

        def each(mnemonic: str, **operands: Place | int | str) -> None:
            """One loop over the rows of the tile; names stand for the state and scores of the row."""
            with e.loop(tile.rows) as row:
                places = {
                    "scores": c.vector("scores", 0, [(row, c.vlen)]), "new": c.fp("new_max", 0, [(row, 1)]),
                    "correction": c.fp("correction", 0, [(row, 1)]),
                    "max": self.state("running_max", tile, row), "sum": self.state("running_sum", tile, row),
                }  # fmt: skip
                e.emit(mnemonic, **{k: places[v] if isinstance(v, str) else v for k, v in operands.items()})

        mask = c.vector("mask", 0, [(self.sequence, c.tiling.cache_tokens), (part, n)])
        each("V_ADD_VV", dst="scores", a="scores", b=mask, n=n)
        self.hide(part, tile)
        each("S_MOV_FP", dst="new", a="max")
        each("V_RED_MAX", dst="new", a="scores", n=n)
        each("S_SUB_FP", dst="correction", a="max", b="new")
        each("S_EXP_FP", dst="correction", a="correction")
        each("S_MOV_FP", dst="max", a="new")
        each("V_SUB_VF", dst="scores", a="scores", scalar="new", n=n)
        each("V_EXP_V", dst="scores", a="scores", n=n)
        each("S_MUL_FP", dst="sum", a="sum", b="correction")
        each("V_RED_SUM", dst="sum", a="scores", n=n)


def grouped(steps: Steps, group: int) -> list[tuple[Level, int]]:
    """Strides of a row as those of the first row of its group: what moves inside of a group does not count."""
    found, offset = [], 0
    for level, stride in steps:
        if level.number is None:
            offset += level.first * stride
        elif stride % group == 0:
            found.append((level, stride))
    return [(fixed(offset // group * group), 1), *found]
