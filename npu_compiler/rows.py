"""Which rows a forward pass recomputes, and how they are cut into chunks, groups and tiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dllm.policies import Rows
from dllm.workload import Workload
from npu_compiler.stages import Level, Tree, Trips
from npu_compiler.tiling import Tiling


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The rows of every sequence that a pass forwards: `first` + `step` * index of the block loop, `count` rows.

    A pass is cut into chunks of `sequences` sequences by `rows` rows each, which Vector SRAM holds at a time.
    `chunks` counts row chunks per sequence; where `count` shrinks with the block, either it shrinks (chunks of
    one block each) or the rows of the only chunk do.
    """

    first: int
    step: int
    count: Trips
    sequences: int
    batch: int
    rows: int
    has_padding: bool

    @property
    def sequence_chunks(self) -> int:
        """Chunks over the batch."""
        return self.batch // self.sequences

    @property
    def one_chunk(self) -> bool:
        """Whether all rows of a sequence go in one chunk."""
        return self.count.base <= self.rows

    @property
    def row_chunks(self) -> Trips:
        """Chunks over the rows of a sequence."""
        return Trips(base=1) if self.one_chunk else self.count.divided(self.rows)

    @property
    def chunk_rows(self) -> Trips:
        """Rows per sequence in a chunk."""
        return self.count if self.one_chunk else Trips(base=self.rows)


def span_of(workload: Workload, tiling: Tiling, rows: Rows, block: Level) -> Span:
    """The rows that a denoising step forwards."""
    match rows:
        case Rows.CANVAS:
            return full_span(workload, tiling)
        case Rows.SUFFIX:
            return suffix_span(workload, tiling, block)
        case Rows.BLOCK:
            return block_span(workload, tiling)


def full_span(workload: Workload, tiling: Tiling) -> Span:
    """All rows of the canvas."""
    return _cut(workload, tiling, first=0, step=0, count=Trips(base=tiling.canvas), has_padding=True)


def block_span(workload: Workload, tiling: Tiling, *, back: int = 0) -> Span:
    """The rows of the current block, or as many that begin `back` rows before it."""
    length = workload.block_length
    return _cut(workload, tiling, first=tiling.prompt - back, step=length, count=Trips(base=length), has_padding=False)


def suffix_span(workload: Workload, tiling: Tiling, block_loop: Level) -> Span:
    """The rows from the current block to the end of the canvas; their number shrinks from block to block."""
    length = workload.block_length
    rows = workload.generation_length - length * block_loop.first
    count = Trips(base=rows, factor=-length, level=block_loop)
    return _cut(workload, tiling, first=tiling.prompt, step=length, count=count, has_padding=False)


def _cut(workload: Workload, tiling: Tiling, *, first: int, step: int, count: Trips, has_padding: bool) -> Span:
    """Span with the largest chunks that fit: whole sequences first, then as many rows as divide the count."""
    limit, length, total = tiling.chunk_rows, workload.block_length, count.base
    if total <= limit:
        rows = total
    elif not count.fixed:
        rows = length
    else:
        rows = max(size for size in range(length, limit + 1, length) if total % size == 0)
    fitting = [n for n in range(1, workload.batch + 1) if workload.batch % n == 0 and n * rows <= limit]
    return Span(
        first=first, step=step, count=count, sequences=max(fitting), batch=workload.batch, rows=rows,
        has_padding=has_padding,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A chunk being emitted: its loops, for strides of canvas rows and of local rows."""

    span: Span
    block: Level
    batch_loop: Level
    row_loop: Level

    def canvas_steps(self, row_bytes: int, sequence_bytes: int) -> list[tuple[Level, int]]:
        """Strides of an address that follows the chunk through a [batch, canvas] tensor."""
        return [
            (self.block, self.span.step * row_bytes),
            (self.batch_loop, self.span.sequences * sequence_bytes),
            (self.row_loop, self.span.rows * row_bytes),
        ]

    @contextmanager
    def runs(self, e: Tree, unit: int) -> Iterator[tuple[int, list[tuple[Level, int]], list[tuple[Level, int, int]]]]:
        """Loops over runs of consecutive rows that one descriptor can take.

        Yields rows per run, local strides in rows, and (level, sequence stride, row stride) for canvas addresses. A
        run is all rows of a sequence in the chunk, or `unit` of them where their number changes with the block.
        """
        rows = self.span.chunk_rows
        with e.loop(self.span.sequences) as sequence:
            if rows.fixed:
                yield rows.base, [(sequence, self.span.rows)], [(sequence, 1, 0)]
            else:
                with e.loop(rows.divided(unit)) as part:
                    yield unit, [(sequence, self.span.rows), (part, unit)], [(sequence, 1, 0), (part, 0, unit)]

    @contextmanager
    def tiles(self, e: Tree, size: int) -> Iterator[list[tuple[Level, int]]]:
        """Loops over tiles of `size` rows; yields local strides in rows."""
        rows = self.span.chunk_rows
        if rows.fixed:
            with e.loop(self.span.sequences * rows.base // size) as tile:
                yield [(tile, size)]
        else:
            with e.loop(self.span.sequences) as sequence, e.loop(rows.divided(size)) as tile:
                yield [(sequence, self.span.rows), (tile, size)]

    @contextmanager
    def each(self, e: Tree, size: int) -> Iterator[list[tuple[Level, int]]]:
        """Loops over single rows; yields local strides in rows."""
        if self.span.chunk_rows.fixed:
            with self.tiles(e, 1) as steps:
                yield steps
        else:
            with self.tiles(e, size) as steps, e.loop(size) as row:
                yield [*steps, (row, 1)]

    @contextmanager
    def each_of_sequence(self, e: Tree, size: int) -> Iterator[tuple[Level, list[tuple[Level, int]]]]:
        """Loops over the sequences of the chunk and their single rows; yields the former and local strides in rows."""
        rows = self.span.chunk_rows
        with e.loop(self.span.sequences) as sequence:
            local = [(sequence, self.span.rows)]
            if rows.fixed:
                with e.loop(rows.base) as row:
                    yield sequence, [*local, (row, 1)]
            else:
                with e.loop(rows.divided(size)) as tile, e.loop(size) as row:
                    yield sequence, [*local, (tile, size), (row, 1)]


def times(steps: list[tuple[Level, int]], factor: int) -> list[tuple[Level, int]]:
    """Strides in rows as strides in addresses."""
    return [(level, stride * factor) for level, stride in steps]
