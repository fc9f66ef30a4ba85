"""Which rows a forward pass recomputes, and how they are cut into chunks, groups and tiles."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from dllm.operators import Mask
from dllm.policies import NEIGHBOURS, Rows
from dllm.workload import Workload
from npu_compiler.stages import Level, Place, Steps, Tree, Trips
from npu_compiler.tiling import Tiling


def fixed(number: int) -> Level:
    """A loop of one iteration that stands for `number`: its stride is an offset."""
    return Level(number=None, first=number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The block that is decoded, as the loops around it say.

    Blocks form groups of `period`, counted from the last block, so that the first group may be smaller. Within a group, what
    shrinks or grows from block to block is affine in `within`; from group to group it is affine in `group`.

    `first` is the number of the first block of the loops, `left` the blocks of its group from it on, `behind` the groups behind.
    `part` are the strides in rows to the part of it that is filled.
    """

    first: int
    period: int
    left: int
    behind: Trips
    group: Level
    within: Level
    part: Steps = ()

    def steps(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that moves on by `stride` from block to block."""
        return [(fixed(self.first), stride), (self.group, self.period * stride), (self.within, stride)]

    def places(self, length: int, stride: int = 1) -> list[tuple[Level, int]]:
        """Strides to the positions that are filled, of blocks of `length` positions that lie `stride` apart."""
        return [*self.steps(length * stride), *times(self.part, stride)]

    @property
    def rest(self) -> Trips:
        """Blocks of the group from this one on."""
        return Trips(base=self.left, factor=-1, level=self.within)


def block_loops(
    e: Tree, first: int, last: int, blocks: int, period: int, goes_on: Place | None = None
) -> Iterator[Block]:
    """Loops over the blocks `first` to `last` (excluded) of `blocks`; yields once inside of each: emit the body every time.

    A block beside others has a loop of its own, so that all loops that are left early lie in one. Where the integer at `goes_on`
    is zero behind a block, none behind it is run.
    """
    while first < last:
        left = (blocks - first) % period or period
        size = min(left, last - first)
        groups = max(1, (last - first) // period) if size == period else 1
        behind = -(-(blocks - first) // period) - 1
        with _unless_ended(e, goes_on if first else None), e.loop(groups) as group:
            with e.loop(size, keep=groups * size == 1 and blocks > 1) as within:
                yield Block(first=first, period=period, left=left, behind=Trips(base=behind, factor=-1, level=group),
                            group=group, within=within)  # fmt: skip
                if goes_on is not None and size > 1:
                    e.leave_if_zero(within, goes_on)
            if goes_on is not None and groups > 1:
                e.leave_if_zero(group, goes_on)
        first += groups * size


@contextmanager
def _unless_ended(e: Tree, goes_on: Place | None) -> Iterator[None]:
    """Skip the code emitted inside if the integer at `goes_on` is zero: a loop that is left at its start, or after one trip."""
    if goes_on is None:
        yield
        return
    with e.loop(2) as once:
        e.leave_if_zero(once, goes_on)
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Chunks of one size: `sequence_chunks` times `row_chunks` of `sequences` by `rows` rows, the first of which begins
    `before` rows behind row `at` of sequence `first_sequence`. Where the rows change from block to block, they are a multiple
    of `unit`.
    """

    at: Steps
    before: int = 0
    first_sequence: int
    sequence_chunks: int
    sequences: int
    row_chunks: Trips
    rows: Trips
    unit: int

    @property
    def pitch(self) -> int:
        """Rows from sequence to sequence in a buffer."""
        return self.rows.base

    @property
    def size(self) -> int:
        """Rows of a buffer that holds a chunk."""
        return self.sequences * self.pitch

    @property
    def chunks(self) -> int:
        """Chunks, where their number changes the most there are."""
        return self.sequence_chunks * self.row_chunks.base

    @property
    def all_rows(self) -> int:
        """Rows of buffers that hold each chunk."""
        return self.chunks * self.size


NO_TILES = Trips(base=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The rows of every sequence that a pass forwards, in parts.

    Attributes:
        parts: The chunks.
        has_padding: Some rows stand before the prompt.
        key_tiles: Tiles of keys that the rows attend to.
        edge: Where the keys that no row sees begin in these tiles: the place of the tensor `edge` to add to all scores.
        by_row: The mask that says so for each row by itself; the prompt of a full mask, and blocks, have one edge for all.
        rows: Those of each sequence, where the span is that of the LM head.
    """

    parts: tuple[Part, ...]
    has_padding: bool = False
    key_tiles: Trips = NO_TILES
    edge: Steps | None = None
    by_row: Mask | None = None
    rows: int = 0

    @property
    def is_one_chunk(self) -> bool:
        """All rows of the batch are one chunk."""
        first, *others = self.parts
        return not others and first.sequence_chunks == 1 and first.row_chunks.fixed and first.row_chunks.base == 1

    def has_rows_of(self, other: "Span") -> bool:
        """The rows of both are the same, and lie alike in a buffer."""

        def places(span: Span) -> list[Part]:
            return [replace(part, unit=1) for part in span.parts]

        return places(self) == places(other)


def span_of(workload: Workload, tiling: Tiling, rows: Rows, block: Block) -> Span:
    """The rows that a denoising step forwards."""
    match rows:
        case Rows.CANVAS:
            return full_span(workload, tiling)
        case Rows.SUFFIX:
            return suffix_span(workload, tiling, block)
        case Rows.BLOCK:
            return block_span(workload, tiling, block)
        case Rows.VICINITY:
            behind = NEIGHBOURS if block.first + 1 < tiling.blocks else 0  # the last block is a loop of its own
            count = NEIGHBOURS + workload.block_length + behind
            parts = _block_rows(workload, tiling, block, -NEIGHBOURS, count, tiling.token_block)
            return Span(parts=parts, has_padding=True, key_tiles=_all_tiles(tiling))


def full_span(workload: Workload, tiling: Tiling) -> Span:
    """All rows of the canvas."""
    parts = _cut(workload, tiling, [], tiling.canvas, tiling.token_block)
    return Span(parts=parts, has_padding=True, key_tiles=_all_tiles(tiling))


def prompt_span(workload: Workload, tiling: Tiling, mask: Mask) -> Span:
    """The rows before the first block, for a cache that is appended."""
    whole = mask is Mask.BLOCK_CAUSAL or tiling.chunk_rows >= workload.block_length
    parts = _cut(workload, tiling, [], tiling.prompt, workload.block_length if whole else tiling.token_block)
    tiles = Trips(base=-(-(tiling.pad + tiling.prompt) // tiling.key_tile))
    edge = [(fixed(tiling.canvas - tiling.prompt), 1)] if mask is Mask.FULL else None
    by_row = None if mask is Mask.FULL else mask
    return Span(parts=parts, has_padding=True, key_tiles=tiles, edge=edge, by_row=by_row)


def block_span(workload: Workload, tiling: Tiling, block: Block, *, by_row: Mask | None = None) -> Span:
    """The rows of the current block; where the cache is appended, they see the keys up to its end, or as `by_row` says."""
    parts = _block_rows(workload, tiling, replace(block, part=()), 0, workload.block_length, tiling.token_block)
    if not workload.caches.appends:
        return Span(parts=parts, key_tiles=_all_tiles(tiling))
    length, tiles = workload.block_length, _all_tiles(tiling).base
    if length > tiling.key_tile:  # the last block sees all keys, each before it so many tiles less
        more = length // tiling.key_tile
        grown = Trips(base=tiles - more * (block.left - 1), factor=more, level=block.within)
    else:
        grown = Trips(base=tiles - block.behind.base, factor=-block.behind.factor, level=block.behind.level)
    edge = [(fixed(tiling.blocks - 1), length), *block.steps(-length)]
    return Span(parts=parts, key_tiles=grown, edge=None if by_row else edge, by_row=by_row)


def part_span(workload: Workload, tiling: Tiling, block: Block) -> Span:
    """The rows of the part of a block that is filled; they see the keys up to the end of the block."""
    parts = _block_rows(workload, tiling, block, 0, workload.written_rows, tiling.token_block)
    return replace(block_span(workload, tiling, block), parts=parts)


def head_span(workload: Workload, tiling: Tiling, block: Block, *, first: int, count: int) -> Span:
    """`count` rows from the `first` of a block, or of the part that is filled, on (-1: the one before it), for the LM head."""
    return Span(parts=_block_rows(workload, tiling, block, first, count, 1), rows=count)


def _block_rows(
    workload: Workload, tiling: Tiling, block: Block, first: int, count: int, unit: int
) -> tuple[Part, ...]:
    at = [(fixed(tiling.prompt + first), 1), *block.places(workload.block_length)]
    return _cut(workload, tiling, at, count, unit)


def _all_tiles(tiling: Tiling) -> Trips:
    return Trips(base=tiling.cache_tokens // tiling.key_tile)


def blocks_of_a_group(workload: Workload, tiling: Tiling, rows: Rows) -> int:
    """Blocks of a group: rows that shrink from block to block are chunks of whole groups and one that shrinks, and the keys of a
    cache that is appended grow by a tile from group to group."""
    length = workload.block_length
    if workload.caches.appends:
        return max(1, tiling.key_tile // length) if length <= tiling.key_tile else tiling.blocks
    if rows is not Rows.SUFFIX:
        return tiling.blocks
    return -(-tiling.blocks // -(-tiling.blocks // (tiling.chunk_rows // length)))


def suffix_span(workload: Workload, tiling: Tiling, block: Block) -> Span:
    """The rows from the current block to the end of the canvas: those of its group, and chunks of a whole group behind them."""
    length, group = workload.block_length, block.period * workload.block_length
    next_group = [(fixed(block.first + block.left), length), (block.group, group)]
    pieces = [
        (block.steps(length), Trips(base=1), block.rest.times(length)),
        (next_group, block.behind, Trips(base=group)),
    ]
    pieces = [(at, chunks, rows) for at, chunks, rows in pieces if chunks.base]
    alone = len(pieces) == 1 and pieces[0][1].base == 1
    widest = max(rows.base for _, _, rows in pieces)
    parts = tuple(
        Part(at=[(fixed(tiling.prompt), 1), *at], first_sequence=first, sequence_chunks=count, sequences=sequences,
             row_chunks=chunks, rows=rows, unit=length)
        for first, count, sequences in _of_batch(workload, tiling, widest if alone else tiling.chunk_rows)
        for at, chunks, rows in pieces
    )  # fmt: skip
    return Span(parts=parts, key_tiles=_all_tiles(tiling))


def _cut(workload: Workload, tiling: Tiling, at: Steps, total: int, unit: int) -> tuple[Part, ...]:
    """The fewest chunks that fit, of nearly one size: whole sequences, or else pieces of one, in units of `unit` rows."""
    pieces = balanced(total, tiling.chunk_rows // unit * unit, unit)
    alone = len(pieces) == 1 and pieces[0][0] == 1
    parts, before = [], 0
    for chunks, rows in pieces:
        parts += [
            Part(at=at, before=before, first_sequence=first, sequence_chunks=count, sequences=sequences,
                 row_chunks=Trips(base=chunks), rows=Trips(base=rows), unit=rows)
            for first, count, sequences in _of_batch(workload, tiling, rows if alone else tiling.chunk_rows)
        ]  # fmt: skip
        before += chunks * rows
    return tuple(parts)


def balanced(total: int, limit: int, unit: int) -> list[tuple[int, int]]:
    """`total` in the fewest pieces of at most `limit`, each a multiple of `unit` (which divides both): (pieces, size), and as
    many as are one unit smaller."""
    pieces = -(-total // limit)
    size, larger = divmod(total // unit, pieces)
    return [(n, s * unit) for n, s in ((larger, size + 1), (pieces - larger, size)) if n]


def _of_batch(workload: Workload, tiling: Tiling, rows: int) -> list[tuple[int, int, int]]:
    """The batch in chunks of whole sequences of `rows` rows: (first sequence, chunks, sequences)."""
    found, first = [], 0
    for chunks, sequences in balanced(workload.forwarded_sequences, max(1, tiling.chunk_rows // rows), 1):
        found.append((first, chunks, sequences))
        first += chunks * sequences
    return found


class Local(Protocol):
    """Rows of a buffer that products and the lanes go through: those of a chunk, or some of them."""

    @property
    def size(self) -> int:
        """Rows of a buffer that holds them."""
        ...

    def tiles(self, e: Tree, size: int) -> Iterator[tuple[list[tuple[Level, int]], int]]:
        """Loops over tiles of at most `size` rows; yields strides in rows and rows, once for each kind of tile."""
        ...

    def each(self, e: Tree) -> AbstractContextManager[list[tuple[Level, int]]]:
        """Loops over single rows; yields strides in rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A chunk being emitted: its loops, for strides of canvas rows and of local rows."""

    span: Span
    part: Part
    batch_loop: Level
    row_loop: Level

    @property
    def sequences(self) -> int:
        """Sequences that it has rows of."""
        return self.part.sequences

    @property
    def size(self) -> int:
        """Rows of a buffer that holds it."""
        return self.part.size

    @property
    def has_padding(self) -> bool:
        """Some of its rows may stand before a prompt."""
        return self.span.has_padding

    @property
    def first_rows(self) -> list[tuple[Level, int]]:
        """Its first row in the canvas, as strides."""
        return [*self.part.at, *self.row_steps(1)]

    def batch_steps(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that follows the chunk through the batch, sequences `stride` apart."""
        return [(fixed(self.part.first_sequence), stride), (self.batch_loop, self.part.sequences * stride)]

    def canvas_steps(self, row_bytes: int, sequence_bytes: int) -> list[tuple[Level, int]]:
        """Strides of an address that follows the chunk through a [batch, canvas] tensor."""
        return [
            *times(self.part.at, row_bytes), *self.batch_steps(sequence_bytes), *self.row_steps(row_bytes),
        ]  # fmt: skip

    def row_steps(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that follows the chunk through the rows of the span, `stride` apart."""
        return [(fixed(self.part.before), stride), (self.row_loop, self.part.pitch * stride)]

    def packed(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that follows the chunk through a tensor of all chunks' rows, one chunk behind the other. Rows
        lie `stride` apart, in the order in which the chunk's buffers hold them."""
        rows = sum(part.all_rows for part in self.span.parts[: self.span.parts.index(self.part)])
        own = self.part.size * stride
        return [
            (fixed(rows), stride), (self.batch_loop, self.part.row_chunks.base * own), (self.row_loop, own),
        ]  # fmt: skip

    @contextmanager
    def runs(self, e: Tree) -> Iterator[tuple[int, list[tuple[Level, int]], list[tuple[Level, int, int]]]]:
        """Loops over runs of consecutive rows that one descriptor can take.

        Yields rows per run, local strides in rows, and (level, sequence stride, row stride) for canvas addresses. A
        run is all rows of a sequence in the chunk, or a unit of them where their number changes with the block.
        """
        rows, unit, pitch = self.part.rows, self.part.unit, self.part.pitch
        with e.loop(self.sequences) as sequence:
            if rows.fixed:
                yield rows.base, [(sequence, pitch)], [(sequence, 1, 0)]
            else:
                with e.loop(rows.divided(unit)) as part:
                    yield unit, [(sequence, pitch), (part, unit)], [(sequence, 1, 0), (part, 0, unit)]

    def tiles(self, e: Tree, size: int) -> Iterator[tuple[list[tuple[Level, int]], int]]:
        """Loops over tiles of at most `size` rows; yields local strides in rows and rows, once for each kind of tile."""
        if self.part.rows.fixed:
            for first, count, rows in segments(self.part.size, size):
                with e.loop(count) as tile:
                    yield [(fixed(first), 1), (tile, rows)], rows
        else:
            with e.loop(self.sequences) as sequence:
                for steps, rows in self.tiles_of_sequence(e, size):
                    yield [(sequence, self.part.pitch), *steps], rows

    def tiles_of_sequence(self, e: Tree, size: int, within: int = 0) -> Iterator[tuple[list[tuple[Level, int]], int]]:
        """As `tiles`, of one sequence; where tiles are smaller than `within` rows, none crosses a multiple of it."""
        rows = self.part.rows
        if not rows.fixed:
            each = math.gcd(self.part.unit, size)
            with e.loop(rows.divided(each)) as tile:
                yield [(tile, each)], each
        elif within > size:
            with e.loop(rows.base // within) as outer:
                for first, count, each in segments(within, size):
                    with e.loop(count) as tile:
                        yield [(outer, within), (fixed(first), 1), (tile, each)], each
        else:
            limit = size // within * within if within else size
            for first, count, each in segments(rows.base, limit):
                with e.loop(count) as tile:
                    yield [(fixed(first), 1), (tile, each)], each

    @contextmanager
    def each(self, e: Tree) -> Iterator[list[tuple[Level, int]]]:
        """Loops over single rows; yields local strides in rows."""
        if self.part.rows.fixed:
            with e.loop(self.size) as row:
                yield [(row, 1)]
        else:
            with self.each_of_sequence(e) as (_, steps):
                yield steps

    @contextmanager
    def each_of_sequence(self, e: Tree) -> Iterator[tuple[Level, list[tuple[Level, int]]]]:
        """Loops over the sequences of the chunk and their single rows; yields the former and local strides in rows."""
        with e.loop(self.sequences) as sequence, e.loop(self.part.rows) as row:
            yield sequence, [(sequence, self.part.pitch), (row, 1)]


def segments(width: int, limit: int) -> list[tuple[int, int, int]]:
    """A row of `width` elements in pieces of at most `limit`: (first element, pieces, elements each)."""
    whole, rest = divmod(width, limit)
    return [part for part in ((0, whole, limit), (whole * limit, 1, rest)) if part[1] * part[2]]


def times(steps: Steps, factor: int) -> list[tuple[Level, int]]:
    """Strides in rows as strides in addresses."""
    return [(level, stride * factor) for level, stride in steps]
