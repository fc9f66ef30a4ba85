"""The KV cache: rows of K and V into HBM in blocks along an axis, and tiles of it into Matrix SRAM."""

from collections.abc import Callable

from npu.formats import FORMATS
from npu.isa import Memory
from npu.program import Tensor
from npu_compiler.context import Context
from npu_compiler.flow import Layer
from npu_compiler.rows import Chunk, fixed, segments, times
from npu_compiler.stages import Level, Place, Steps
from npu_compiler.tiling import CONTRACTED, CacheTile, cache_tile


def store_cache(c: Context, chunk: Chunk, layer: Layer, buffer: str, offset: int, width: int) -> None:
    """The rows of a chunk, K from column `offset` of a buffer of `width` columns and V behind it, into the cache."""
    e, group = c.e, c.tiling.token_block
    code = FORMATS[c.numerics.kv].code
    with chunk.runs(e) as (rows, local, canvas), e.loop(c.geometry.kv_heads) as head:
        for number, side in enumerate(CONTRACTED):
            facts, by_token = c.tensor(side), c.numerics.axis_of(side) == "channels"
            per_token = facts.row_bytes if by_token else facts.stride_bytes(3) // group
            place, steps = _rows_of_head(c, chunk, facts, per_token, canvas, layer, head)
            column = offset + number * c.geometry.kv_width
            source: Steps = [(head, c.geometry.head_dim), *times(local, width)]
            if by_token:
                e.emit("H_STORE_V", dst=c.hbm(side, place, steps, rows=per_token),
                       src=c.vector(buffer, column, source, rows=width), rows=rows, cols=c.geometry.head_dim, format=code,
                       block=c.log2_block)  # fmt: skip
                continue
            with e.loop(rows // group) as part:
                steps = [*steps, (part, group * per_token)]
                source = [(head, c.geometry.head_dim), (part, group * width), *times(local, width)]
                e.emit("H_STORE_T", dst=c.hbm(side, place, steps), src=c.vector(buffer, column, source, rows=width),
                       cols=c.geometry.head_dim, format=code, block=group.bit_length() - 1)  # fmt: skip


def _rows_of_head(
    c: Context,
    chunk: Chunk,
    facts: Tensor,
    per_token: int,
    canvas: list[tuple[Level, int, int]],
    layer: Layer,
    head: Level,
) -> tuple[int, list[tuple[Level, int]]]:
    """Offset and strides, in bytes, of a run of a chunk's rows of one head in a tensor of `per_token` bytes a token."""
    steps = chunk.canvas_steps(per_token, facts.stride_bytes(1))
    steps += [(level, s * facts.stride_bytes(1) + r * per_token) for level, s, r in canvas]
    steps += [*layer.number(facts.stride_bytes(0)), (head, facts.stride_bytes(2))]
    return c.tiling.pad * per_token, steps


def move_keys(c: Context, chunk: Chunk, mnemonic: str, tensor: str, buffer: str, layer: Layer) -> None:
    """Move the rows of a chunk, of all KV heads, between a tensor of keys by token in HBM and a buffer."""
    facts, width = c.tensor(tensor), c.geometry.kv_width
    with chunk.runs(c.e) as (rows, local, canvas), c.e.loop(c.geometry.kv_heads) as head:
        place, steps = _rows_of_head(c, chunk, facts, facts.row_bytes, canvas, layer, head)
        outside = c.hbm(tensor, place, steps, rows=facts.row_bytes)
        inside = c.vector(buffer, 0, [(head, c.geometry.head_dim), *times(local, width)], rows=width)
        dst, src = (inside, outside) if mnemonic == "H_LOAD_V" else (outside, inside)
        c.e.emit(mnemonic, dst=dst, src=src, rows=rows, cols=c.geometry.head_dim, format=FORMATS[facts.format].code,
                 block=c.log2_block)  # fmt: skip


def tile_of(c: Context, side: str) -> CacheTile:
    """The layout of tiles of `side` in Matrix SRAM."""
    return cache_tile(c.geometry, c.numerics, c.tiling, side)


def _tile_bytes(c: Context, side: str) -> int:
    """Bytes from KV head to KV head of those in flight."""
    buffer = c.buffers[Memory.MATRIX, side]
    assert buffer.stream is not None
    return buffer.elements // buffer.stream.slots // c.tiling.arrangement.kv_heads


def load_tile(
    c: Context, side: str, chunk: Chunk, layer: Layer, sequence: Level, heads: Steps, number: int, part: Level
) -> None:
    """Tile `part` of `side` into Matrix SRAM, of a sequence of the chunk and a KV head (strides in heads), which is that
    `number` of those in flight."""
    tile, inside = tile_of(c, side), number * _tile_bytes(c, side)
    e, tiling, facts = c.e, c.tiling, c.tensor(tile.tensor)
    by_token, group, code = c.numerics.axis_of(side) == "channels", tiling.token_block, FORMATS[c.numerics.kv].code
    stored = facts.row_bytes * tiling.key_tile if by_token else facts.stride_bytes(3) * (tiling.key_tile // group)
    layer_bytes = facts.stride_bytes(0) if facts.shape[0] > 1 else 0  # rotated keys are those of one layer
    sequence_bytes = facts.stride_bytes(1)
    steps = [
        *layer.number(layer_bytes), *chunk.batch_steps(sequence_bytes), (sequence, sequence_bytes),
        *times(heads, facts.stride_bytes(2)), (part, stored),
    ]  # fmt: skip
    if not tile.converted:
        e.emit("H_LOAD_M", dst=c.matrix(side, inside), src=c.hbm(tile.tensor, 0, steps), rows=1, row_bytes=stored)
    elif by_token:
        e.emit("H_LOAD_T", dst=c.matrix(side, inside, rows=tile.column_bytes), src=c.hbm(side, 0, steps, rows=facts.row_bytes),
               rows=tiling.key_tile, cols=c.geometry.head_dim, format=code, block=c.log2_block)  # fmt: skip
    else:
        with e.loop(tiling.key_tile // group) as tokens:
            target = c.matrix(side, inside, [(tokens, group * tile.column_bytes)], rows=tile.column_bytes)
            source = c.hbm(side, 0, [*steps, (tokens, facts.stride_bytes(3))], rows=facts.row_bytes)
            e.emit("H_LOAD_T", dst=target, src=source, rows=c.geometry.head_dim, cols=group, format=code,
                   block=group.bit_length() - 1)  # fmt: skip


def multiply_tile(c: Context, side: str, number: int, n: Level, rows: int, acts: Callable[[Steps], Place]) -> None:
    """Accumulate rows times BLEN columns (n counts them) of the current tile of `side` of the KV head of that `number`.

    `acts` says where the rows lie, for strides along the contraction, which is cut where it is longer than the array takes.
    """
    tile, length = tile_of(c, side), c.geometry.head_dim if side == "keys" else c.tiling.key_tile
    for offset, count, k in segments(length, c.hardware.mlen):
        with c.e.loop(count) as piece:
            moves = [
                (fixed(offset >> tile.log2_block), tile.block_bytes), (piece, (k >> tile.log2_block) * tile.block_bytes),
                (n, c.hardware.blen * tile.column_bytes),
            ]  # fmt: skip
            c.e.emit(
                "M_MM", rows=rows, cols=c.hardware.blen, k=k, block=tile.log2_block, weight_format=FORMATS[tile.format].code,
                acts=acts([(fixed(offset), 1), (piece, k)]), block_stride=tile.block_bytes,
                weights=c.matrix(side, number * _tile_bytes(c, side), moves, rows=tile.column_bytes),
                act_format=FORMATS[c.numerics.activations].code,
            )  # fmt: skip
