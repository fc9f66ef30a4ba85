"""FlashAttention over the cache: softmax(q K^T + mask) V, head by head, a tile of keys at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dllm.operators import Attention, Mask
from npu_compiler.buffers import alternating
from npu_compiler.cache import load_tile, multiply_tile
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.mixing import mix_attended
from npu_compiler.rows import fixed, times
from npu_compiler.smoothing import multiply, uncentre
from npu_compiler.stages import Level, Place, Steps


def attend(op: Attention, c: Context, flow: Flow) -> None:
    """`attended` := attention of the queries. Smoothed, it is softmax(q s ((K - m) / s)^T) ((V - m) / s) s + m.

    q m is the same for all keys, which softmax does not see.
    """
    e, chunk = c.e, flow.chunk
    if c.smooths:
        with e.stage("scale Q"):
            multiply(c, chunk, "keys", "fold", flow.value, 0, flow.pitch)
    with e.loop(chunk.sequences) as sequence, e.loop(op.kv_heads // c.tiling.arrangement.kv_heads) as head:
        _Head(c=c, op=op, flow=flow, sequence=sequence, head=head).attend()
    with e.stage("from the terms of the cache"):
        multiply(c, chunk, "values", "fold", "attended", 0, op.query_width)
        uncentre(c, chunk, "attended")
    mix_attended(c, chunk)
    flow.value = "attended"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    """A tile of rows of the query heads in flight: strides in rows inside the sequence, and inside of the chunk (`at`)."""

    query: Level
    inside: Steps
    at: Steps
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """One of the query heads in flight: its number, that of its KV head, and that among the queries of the KV head."""

    number: int
    head: int
    query: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """All query heads and row tiles that share the KV heads in flight of one sequence."""

    c: Context
    op: Attention
    flow: Flow
    sequence: Level
    head: Level

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.op.heads // self.op.kv_heads

    @property
    def ways(self) -> list[_Way]:
        """The query heads in flight."""
        kept = self.c.tiling.arrangement
        return [
            _Way(number=head * kept.queries + query, head=head, query=query)
            for head in range(kept.kv_heads)
            for query in range(kept.queries)
        ]

    def of_head(self, number: int, stride: int) -> list[tuple[Level, int]]:
        """Strides from KV head to KV head, for the one of that number in flight."""
        return [(fixed(number), stride), (self.head, self.c.tiling.arrangement.kv_heads * stride)]

    def of_query(self, tile: _Tile, way: _Way, stride: int) -> list[tuple[Level, int]]:
        """Strides from query head to query head of a KV head."""
        return [(fixed(way.query), stride), (tile.query, self.c.tiling.arrangement.queries * stride)]

    def tiles(self) -> Iterator[_Tile]:
        """Loops over query heads and row tiles."""
        with self.c.e.loop(self.group // self.c.tiling.arrangement.queries) as query:
            chunk, own = self.flow.chunk, self.flow.chunk.span.by_row is Mask.BLOCK_CAUSAL
            within = self.c.workload.block_length if own else 0
            for inside, rows in chunk.tiles_of_sequence(self.c.e, self.c.tiling.row_tile, within):
                yield _Tile(query=query, inside=inside, at=[(self.sequence, chunk.part.pitch), *inside], rows=rows)

    def state(self, name: str, tile: _Tile, way: _Way, row: Level) -> Place:
        """An entry of the softmax state, one for each query head and row."""
        size = self.flow.chunk.size
        query = [(fixed(way.head), self.group * size), *self.of_query(tile, way, size)]
        return self.c.fp(name, 0, [*query, *tile.at, (row, 1)])

    def rows_of(self, buffer: str, pitch: int, tile: _Tile, way: _Way, steps: Steps = ()) -> Place:
        """The part of the query head in rows of Q or of the result, `pitch` elements apart."""
        hd = self.op.head_dim
        base = [*self.of_head(way.head, self.group * hd), *self.of_query(tile, way, hd), *times(tile.at, pitch)]
        return self.c.vector(buffer, 0, [*base, *steps], rows=pitch)

    def result(self, tile: _Tile, way: _Way, row: Level) -> Place:
        """A row of the result."""
        width = self.op.query_width
        return self.rows_of("attended", width, tile, way, [(row, width)])

    def turn(self, buffer: str, way: _Way) -> str:
        """The one of alternating buffers that a head in flight takes."""
        arrangement = self.c.tiling.arrangement
        return alternating(buffer, arrangement)[way.number % arrangement.turns]

    def correction(self, way: _Way, row: Level) -> Place:
        """exp(old max - new max) of a row."""
        turn = way.number % self.c.tiling.arrangement.turns
        return self.c.fp("correction", turn * self.c.tiling.row_tile, [(row, 1)])

    def attend(self) -> None:
        """Softmax and weighted sum over the tiles of keys; then the division by the sum of the weights."""
        c, e, hd = self.c, self.c.e, self.op.head_dim
        layer = self.flow.layer
        assert layer is not None
        with e.stage("clear the output"):
            for way in self.ways:
                for tile in self.tiles():
                    with e.loop(tile.rows) as row:
                        e.emit("S_MOV_FP", dst=self.state("running_max", tile, way, row), a=c.fp("lowest"))
                        e.emit("S_MOV_FP", dst=self.state("running_sum", tile, way, row), a=c.fp("zero"))
                        e.emit("V_FILL_VF", dst=self.result(tile, way, row), scalar=c.fp("zero"), n=hd)
        with e.loop(self.flow.chunk.span.key_tiles) as part:
            with e.stage("load keys, values"):
                for number in range(c.tiling.arrangement.kv_heads):
                    for side in ("keys", "values"):
                        load_tile(c, side, self.flow.chunk, layer, self.sequence, self.of_head(number, 1), number, part)
            for tile in self.tiles():
                self.add_tile(part, tile)
            c.advance("keys_values")
        with e.stage("divide by the sum"):
            for way in self.ways:
                for tile in self.tiles():
                    with e.loop(tile.rows) as row:
                        total = self.state("running_sum", tile, way, row)
                        e.emit("S_RECI_FP", dst=total, a=total)
                    with e.loop(tile.rows) as row:
                        out = self.result(tile, way, row)
                        e.emit("V_MUL_VF", dst=out, a=out, scalar=self.state("running_sum", tile, way, row), n=hd)

    def add_tile(self, part: Level, tile: _Tile) -> None:
        """One tile of keys for the heads in flight: the softmax of a head runs beside the first product of the next."""
        c, e, hd, ways = self.c, self.c.e, self.op.head_dim, self.ways
        self.scores(tile, ways[0])
        for way, following in zip(ways, [*ways[1:], None], strict=True):
            if following:
                self.scores(tile, following)
            with e.stage("softmax"):
                self.softmax(part, tile, way)
            with e.stage("weights times values"), e.loop(hd // c.hardware.blen) as n:
                acts, out = self.turn("scores", way), self.turn("partial", way)
                multiply_tile(
                    c, "values", way.head, n, tile.rows, lambda along, acts=acts: c.vector(acts, 0, along, rows=c.vlen)
                )
                e.emit(
                    "M_OUT", dst=c.vector(out, 0, [(n, c.hardware.blen)], rows=hd), rows=tile.rows, cols=c.hardware.blen
                )
            with e.stage("correct the output"), e.loop(tile.rows) as row:
                out = self.result(tile, way, row)
                e.emit("V_MUL_VF", dst=out, a=out, scalar=self.correction(way, row), n=hd)
            if way.number:
                self.add(tile, ways[way.number - 1])
        self.add(tile, ways[-1])

    def scores(self, tile: _Tile, way: _Way) -> None:
        """Queries times a tile of keys."""
        c, blen = self.c, self.c.hardware.blen
        with c.e.stage("Q times keys"), c.e.loop(c.tiling.key_tile // blen) as n:
            multiply_tile(
                c, "keys", way.head, n, tile.rows,
                lambda along: self.rows_of(self.flow.value, self.flow.pitch, tile, way, along),
            )  # fmt: skip
            out = c.vector(self.turn("scores", way), 0, [(n, blen)], rows=c.vlen)
            c.e.emit("M_OUT", dst=out, rows=tile.rows, cols=blen)

    def add(self, tile: _Tile, way: _Way) -> None:
        """The weighted values of a tile of keys to the result."""
        c, hd = self.c, self.op.head_dim
        with c.e.stage("add to the output"), c.e.loop(tile.rows) as row:
            out = self.result(tile, way, row)
            c.e.emit("V_ADD_VV", dst=out, a=out, b=c.vector(self.turn("partial", way), 0, [(row, hd)]), n=hd)

    def hide(self, part: Level, tile: _Tile, scores: str) -> None:
        """Scores of a tile less those of keys that a row does not see, where each row has an edge or a window of its own."""
        canvas, length, by_row = self.c.tiling.canvas, self.c.workload.block_length, self.flow.chunk.span.by_row
        window = self.c.tiling.window(self.c.geometry)
        match by_row:
            case None | Mask.FULL:
                group = length if self.c.workload.caches.appends else 1
            case Mask.CAUSAL:
                group = 1
            case Mask.BLOCK_CAUSAL:
                group = length
        if by_row is not None and by_row is not Mask.FULL:
            self._add_of_rows("edge", canvas - group, group, part, tile, scores)
        if window is not None:
            self._add_of_rows("window", canvas + window - 1, group, part, tile, scores)

    def _add_of_rows(self, buffer: str, place: int, group: int, part: Level, tile: _Tile, scores: str) -> None:
        """A row of a buffer to each row of scores, from `place` on for the first row of the canvas; it moves back with groups of
        rows."""
        c, e, n = self.c, self.c.e, self.c.tiling.key_tile
        first = [*self.flow.chunk.first_rows, *tile.inside]
        with e.loop(max(1, tile.rows // group)) as outer, e.loop(min(group, tile.rows)) as inner:
            row = c.vector(scores, 0, [(outer, group * c.vlen), (inner, c.vlen)])
            moves = times(grouped([*first, (outer, group)], group), -1)
            e.emit("V_ADD_VV", dst=row, a=row, b=c.vector(buffer, place, [*moves, (part, n)]), n=n)

    def softmax(self, part: Level, tile: _Tile, way: _Way) -> None:
        """Online softmax of one tile of scores in place; leaves exp(old max - new max) in `correction`."""
        c, e, n, scores = self.c, self.c.e, self.c.tiling.key_tile, self.turn("scores", way)

        def places(row: Level) -> Mapping[str, Place]:
            return {
                "scores": c.vector(scores, 0, [(row, c.vlen)]), "new": c.fp("new_max", 0, [(row, 1)]),
                "correction": self.correction(way, row),
                "max": self.state("running_max", tile, way, row), "sum": self.state("running_sum", tile, way, row),
            }  # fmt: skip

        each = e.one_by_one(lambda: e.loop(tile.rows), places)
        mask = c.vector("mask", 0, [(self.sequence, c.tiling.cache_tokens), (part, n)])
        each("V_ADD_VV", dst="scores", a="scores", b=mask, n=n)
        self.hide(part, tile, scores)
        each("S_MOV_FP", dst="new", a="max")
        each("V_RED_MAX", dst="new", a="scores", n=n)
        each("S_SUB_FP", dst="correction", a="max", b="new")
        each("S_EXP_FP", dst="correction", a="correction")
        each("S_MOV_FP", dst="max", a="new")
        if c.hardware.fused_exponential:
            each("S_MUL_FP", dst="sum", a="sum", b="correction")
            each("V_EXP_SUM_VF", dst="scores", sum="sum", a="scores", scalar="new", n=n)
            return
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
