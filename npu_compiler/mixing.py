"""A Hadamard matrix over the channels of each head, before K and V are rounded into the cache (docs/kv_quantisation.md).

Q and K are multiplied by it, so that scores stay; V too, and attention's output once more, for the matrix is its own inverse.
"""

from npu.formats import FORMATS
from npu_compiler.context import LOG2_ROW_BLOCK, Context
from npu_compiler.rows import Chunk, segments, times
from npu_compiler.stages import Level, Place


def load_hadamard(c: Context) -> None:
    """The matrix into Matrix SRAM, where it stays."""
    with c.e.stage("load the Hadamard matrix"):
        facts = c.tensor("hadamard")
        c.e.emit("H_LOAD_M", dst=c.matrix("hadamard"), src=c.hbm("hadamard"), rows=1, row_bytes=facts.size_bytes)


def mix_projected(c: Context, chunk: Chunk) -> None:
    """Q, K and V of a chunk in the buffer `qkv`, as far as the scheme takes them."""
    mixed = c.numerics.smoothing.mixed
    scored = c.geometry.heads + c.geometry.kv_heads
    heads = scored * ("keys" in mixed) + c.geometry.kv_heads * ("values" in mixed)
    if heads:
        _mix(c, chunk, "qkv", 0 if "keys" in mixed else scored * c.geometry.head_dim, heads, c.geometry.qkv_width)


def mix_attended(c: Context, chunk: Chunk) -> None:
    """Attention's output in the buffer `attended`, where V was mixed."""
    if "values" in c.numerics.smoothing.mixed:
        _mix(c, chunk, "attended", 0, c.geometry.heads, c.geometry.query_width)


def _mix(c: Context, chunk: Chunk, buffer: str, first: int, heads: int, pitch: int) -> None:
    """`heads` heads of a chunk's rows, from column `first` on, times the matrix: by the array, and back by the lanes."""
    e, hd, columns = c.e, c.geometry.head_dim, c.hardware.blen
    column_bytes, bf16 = c.tensor("hadamard").row_bytes, FORMATS["bf16"]

    def result(level: Level, stride: int) -> Place:
        return c.vector("mixed", 0, [(level, stride)], rows=hd, slot_stride=c.tiling.row_tile * hd)

    with e.loop(heads) as head:
        for tiles, rows in chunk.tiles(e, c.tiling.row_tile):
            at = [(head, hd), *times(tiles, pitch)]
            with e.stage("times the Hadamard matrix"), e.loop(hd // columns) as n:
                for offset, count, k in segments(hd, c.hardware.mlen):
                    with e.loop(count) as piece:
                        steps = [(n, columns * column_bytes), (piece, bf16.row_bytes(k))]
                        weights = c.matrix("hadamard", bf16.row_bytes(offset), steps, rows=column_bytes)
                        e.emit("M_MM", weights=weights, acts=c.vector(buffer, first + offset, [*at, (piece, k)], rows=pitch),
                               rows=rows, cols=columns, k=k, block=LOG2_ROW_BLOCK, weight_format=bf16.code,
                               act_format=bf16.code, block_stride=bf16.record_bytes(1 << LOG2_ROW_BLOCK))  # fmt: skip
                e.emit("M_OUT", dst=result(n, columns), rows=rows, cols=columns)
            with e.stage("copy back"), e.loop(rows) as row:
                target = c.vector(buffer, first, [*at, (row, pitch)])
                e.emit("V_MUL_VF", dst=target, a=result(row, hd), scalar=c.fp("one"), n=hd)
            c.advance("mixed")
