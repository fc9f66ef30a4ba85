"""A Hadamard matrix over the channels of each head, before K and V are rounded into the cache (docs/kv_quantisation.md).

Q and K are multiplied by it, so that scores stay; V too, and attention's output once more, for the matrix is its own inverse.
"""

from npu.formats import FORMATS
from npu_compiler.emit import Level
from npu_compiler.lower import LOG2_ROW_BLOCK, Context
from npu_compiler.rows import Chunk, times


def load_hadamard(c: Context) -> None:
    """The matrix into Matrix SRAM, where it stays."""
    facts = c.layout.tensor("hadamard")
    place = c.e.address(c.layout.matrix["hadamard"])
    c.e.emit("H_LOAD_M", dst=place, src=c.hbm("hadamard"), rows=1, row_bytes=facts.size_bytes,
             signal=c.semaphores["hadamard_loaded"])  # fmt: skip
    c.e.sync("matrix", wait=c.semaphores["hadamard_loaded"])


def mix_projected(c: Context, chunk: Chunk) -> None:
    """Q, K and V of a chunk in the buffer `qkv`, as far as the scheme takes them."""
    model, mixed = c.model, c.numerics.smoothing.mixed
    scored = model.heads + model.kv_heads
    heads = scored * ("keys" in mixed) + model.kv_heads * ("values" in mixed)
    if heads:
        _mix(c, chunk, "qkv", 0 if "keys" in mixed else scored * model.head_dim, heads, model.qkv_width)


def mix_attended(c: Context, chunk: Chunk) -> None:
    """Attention's output in the buffer `attended`, where V was mixed."""
    if "values" in c.numerics.smoothing.mixed:
        _mix(c, chunk, "attended", 0, c.model.heads, c.model.query_width)


def _mix(c: Context, chunk: Chunk, buffer: str, first: int, heads: int, pitch: int) -> None:
    """`heads` heads of a chunk's rows, from column `first` on, times the matrix: by the array, and back by the lanes."""
    e, hd, rows, channel = c.e, c.model.head_dim, c.layout.tiling.row_tile, c.channels["mixed"]
    column_bytes, bf16, columns = c.layout.tensor("hadamard").row_bytes, FORMATS["bf16"], c.hardware.blen

    def result(level: Level, stride: int) -> int:
        return c.vector("mixed", 0, [(level, stride)], rows=hd, ring="mixed", ring_stride=rows * hd)

    e.sync("vector", signal=c.semaphores["unmixed"])
    e.sync("matrix", wait=c.semaphores["unmixed"])
    with e.loop(heads) as head, chunk.tiles(e, rows) as tiles:
        place = [(head, hd), *times(tiles, pitch)]
        e.sync("matrix", wait=channel.free)
        with e.loop(hd // columns) as n:
            weights = e.address(c.layout.matrix["hadamard"], [(n, columns * column_bytes)], rows=column_bytes)
            e.emit("M_MM", weights=weights, acts=c.vector(buffer, first, place, rows=pitch), rows=rows, cols=columns, k=hd,
                   block=LOG2_ROW_BLOCK, weight_format=bf16.code, act_format=bf16.code,
                   block_stride=bf16.record_bytes(1 << LOG2_ROW_BLOCK))  # fmt: skip
            e.emit("M_OUT", dst=result(n, columns), rows=rows, cols=columns)
        e.sync("matrix", signal=channel.full)
        e.sync("vector", wait=channel.full)
        with e.loop(rows) as row:
            target = c.vector(buffer, first, [*place, (row, pitch)])
            e.emit("V_MUL_VF", dst=target, a=result(row, hd), scalar=c.fp("one"), n=hd)
        e.sync("vector", signal=channel.free)
        e.emit("A_NEXT", ring=channel.ring)
