"""Sizes that lowering works with: tiles, chunks, and how a tile of the cache lies in Matrix SRAM."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dllm.canvas import canvas_of
from dllm.model import Geometry, ModelSpec
from dllm.numerics import Numerics, Smoothing
from dllm.policies import Rows
from dllm.workload import Workload
from npu.errors import TripathError
from npu.formats import FORMATS, MX_BLOCK
from npu.hardware import HardwareConfig
from npu_compiler.arrangement import DEFAULT, PLAIN, Arrangement, CompilerOptions

STREAM_SLOTS = 2
"""Buffers of a double-buffered stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Sizes that lowering works with.

    `canvas` is the padded length S of a sequence in tokens, `prompt` tokens and `blocks` blocks; keys live in a cache of
    `cache_tokens` >= S, cut in tiles of `key_tile`, with the padding in front. A tile of attention has at most `row_tile`
    rows, a chunk at most `chunk_rows` of at most `chunk_sequences` sequences; `slice` columns of
    logits and `ffn_slice` of the FFN are produced at a time, where they stream on. `stage`: what the program is of;
    `arrangement`: what is in flight.
    """

    canvas: int
    prompt: int
    blocks: int
    key_tile: int
    cache_tokens: int
    token_block: int
    row_tile: int
    slice: int
    ffn_slice: int
    chunk_rows: int
    chunk_sequences: int
    batch: int
    stage: str
    arrangement: Arrangement = PLAIN

    @property
    def pad(self) -> int:
        """Cache positions before the first row of the canvas."""
        return self.cache_tokens - self.canvas

    def window(self, geometry: Geometry) -> int | None:
        """The window of some layers' attention, where it leaves out a key of the canvas; None: rows see all."""
        return geometry.window if geometry.window is not None and geometry.window < self.canvas else None

    def window_elements(self, geometries: Iterable[Geometry]) -> int:
        """Elements of the row of which a part is added to scores, for each row of the canvas another one; 0: there is none."""
        widest = max((each for geometry in geometries if (each := self.window(geometry))), default=0)
        return -(-2 * (self.cache_tokens + widest) // MX_BLOCK) * MX_BLOCK if widest else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheTile:
    """A tile of keys or values in Matrix SRAM, loaded from `tensor`: the weights of a tile product.

    Columns lie `column_bytes` apart, blocks of 2^log2_block elements of a column `block_bytes` apart. `converted`: blocks
    in HBM run along the other axis, so the load transposes them and makes them BF16.
    """

    tensor: str
    converted: bool
    format: str
    size_bytes: int
    column_bytes: int
    block_bytes: int
    log2_block: int


CONTRACTED = {"keys": "channels", "values": "tokens"}
"""The axis that the product of attention contracts: where the blocks of a cache run, no conversion is needed."""


def cache_tile(geometry: Geometry, numerics: Numerics, tiling: Tiling, side: str) -> CacheTile:
    """The layout of a tile of `side` (keys, values) in Matrix SRAM."""
    columns, length, block = (
        (tiling.key_tile, geometry.head_dim, numerics.block_size)
        if side == "keys"
        else (geometry.head_dim, tiling.key_tile, tiling.token_block)
    )
    converted = numerics.axis_of(side) != CONTRACTED[side]
    rotated = side == "keys" and numerics.smoothing.pre_rope
    name = "bf16" if converted or rotated else numerics.kv
    record = FORMATS[name].record_bytes(block)
    column_bytes = length // block * record
    # Keys, and what is converted, lie column by column; values as they are stored: the blocks of a group of tokens.
    apart = side == "values" and not converted
    return CacheTile(
        tensor="rotated_keys" if rotated else side, converted=converted, format=name, size_bytes=columns * column_bytes,
        column_bytes=record if apart else column_bytes, block_bytes=columns * record if apart else record,
        log2_block=block.bit_length() - 1,
    )  # fmt: skip


def key_tile_tokens(canvas: int, unit: int, largest: int, unseen: Sequence[int] = (0,)) -> int:
    """Keys of an attention tile, a multiple of `unit`: of equal tiles those with the least work, each costing 64 keys more.

    `unseen` are the last tokens of the canvas that the passes do not see yet.
    """
    units, most = -(-canvas // unit), largest // unit
    sizes = sorted({-(-units // tiles) * unit for tiles in range(-(-units // most), units + 1)}, reverse=True)
    last = np.asarray(unseen)
    return min(sizes, key=lambda size: int((-(-canvas // size) - last // size).sum()) * (size + 64))


def make_tiling(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int],
    options: CompilerOptions = DEFAULT,
) -> Tiling:  # fmt: skip
    """Tile sizes of a workload on a machine; the rows of a chunk are those of the whole pass, or as many as the options say.

    Raises:
        TripathError: the canvas exceeds the model's context, or widths do not fit the array.
    """
    block, size, appends = workload.block_length, numerics.block_size, workload.caches.appends
    if len(prompt_lengths) != workload.batch:
        raise TripathError(f"workload.batch: {workload.batch} sequences but {len(prompt_lengths)} prompts")
    if min(prompt_lengths) < 1:
        raise TripathError("workload.prompt: the prompt is empty, at least 1 token is needed")
    longest = max(prompt_lengths)
    if longest + workload.generation_length > model.max_sequence:
        raise TripathError(
            f"workload.prompt: {longest} tokens and workload.generation_length {workload.generation_length} exceed the "
            f"model's context of {model.max_sequence} tokens"
        )
    for key in ("hidden", "ffn"):
        if (width := getattr(model, key)) % hardware.blen:
            raise TripathError(f"hardware.blen: {hardware.blen} does not divide model.{key} {width}")
    if hardware.vlen % hardware.blen:
        raise TripathError(f"hardware.blen: {hardware.blen} does not divide hardware.vlen {hardware.vlen}")
    for each in model.geometries:
        if each.head_dim > hardware.vlen:
            raise TripathError(f"model.head_dim: {each.head_dim} exceeds hardware.vlen {hardware.vlen}")
        if each.head_dim % hardware.blen:
            raise TripathError(f"hardware.blen: {hardware.blen} does not divide model.head_dim {each.head_dim}")
    if numerics.smoothing.mixed and model.head_dim & (model.head_dim - 1):
        raise TripathError(f"model.head_dim: the Hadamard scheme needs a power of two, got {model.head_dim}")
    widths = {f"model.{key}": getattr(model, key) for key in ("head_dim", "hidden", "ffn")}
    for key, width in (widths | {"hardware.mlen": hardware.mlen}).items():
        if width % size:
            raise TripathError(f"numerics.block_size: {size} does not divide {key} {width}")
    if model.experts is not None and model.experts.count > hardware.vlen:
        raise TripathError(
            f"model.experts.count: {model.experts.count} scores of a row exceed hardware.vlen {hardware.vlen}"
        )
    plan, most = canvas_of(model, workload, prompt_lengths), min(hardware.mlen, hardware.vlen)
    smallest = max(MX_BLOCK, hardware.blen)  # a tile of MX_BLOCK keys at least, whatever their blocks
    if smallest > most:
        raise TripathError(f"hardware.mlen: a key tile of {smallest} tokens exceeds it or hardware.vlen")
    if appends and block > most:  # keys grow by whole tiles from block to block, or tiles by whole blocks
        key_tile = math.gcd(block, most)
    else:
        unit, unseen = (
            (math.lcm(smallest, block), range(0, plan.rows - plan.prompt, block)) if appends else (smallest, (0,))
        )
        key_tile = key_tile_tokens(plan.rows, unit, most, unseen)
    unit_rows, sequences = numerics.token_block(workload.written_rows), workload.forwarded_sequences
    canvas, rows = plan.rows, max(options.chunk_rows, block if Rows.SUFFIX in workload.caches.passes else 0)
    sliced = min(hardware.vlen, widest_ffn(model), model.vocab)
    return Tiling(
        canvas=canvas, prompt=plan.prompt, blocks=plan.blocks, key_tile=key_tile, cache_tokens=-(-canvas // key_tile) * key_tile,
        token_block=unit_rows, row_tile=min(hardware.blen, canvas), slice=sliced,
        ffn_slice=min(sliced, options.ffn_slice or sliced), batch=sequences, stage=workload.stage,
        chunk_rows=min(rows, canvas * sequences) // unit_rows * unit_rows, chunk_sequences=sequences,
    )  # fmt: skip


def check_measuring(numerics: Numerics, tiling: Tiling) -> None:
    """A cache that is appended keeps the factors of its channels, which only the prompt can give.

    Raises:
        TripathError: the scheme looks at the channels again, or there is no prompt to look at.
    """
    smoothing = numerics.smoothing
    if smoothing.measured == "each" or smoothing.centres:
        key = "scheme" if smoothing.measured == "each" else "centre"
        raise TripathError(
            f"numerics.smoothing.{key}: {getattr(smoothing, key)} needs all K and V of a block, workload.cache=append keeps "
            "those of before; scheme=frozen measures the prompt"
        )
    if smoothing.measured and not tiling.prompt:
        raise TripathError("numerics.smoothing.scheme: frozen measures the prompt, of which no block is full")


def smoothing_widths(model: ModelSpec, smoothing: Smoothing) -> tuple[int, int]:
    """Elements of the two rows of factors (`npu_compiler.smoothing`): for what goes into the cache, and for attention."""
    return (2 + 2 * smoothing.centres) * model.kv_width, (2 + smoothing.centres) * model.query_width


def widest_ffn(model: ModelSpec) -> int:
    """Elements between the two projections of a gated MLP at most."""
    experts, conditioning = model.experts, model.self_conditioning or 0
    if experts is None:
        return max(model.ffn, conditioning)
    has_dense = experts.first_layer or experts.beside_ffn
    return max(model.ffn if has_dense else 0, experts.inner, experts.shared, conditioning)


def row_tile(hardware: HardwareConfig) -> int:
    """Rows of a tile where their number is data: a power of two."""
    return 1 << (hardware.blen.bit_length() - 1)


def whole_tiles(rows: int, tile: int) -> int:
    """Rows of the tiles that hold so many."""
    return -(-rows // tile) * tile


def panel_bytes(model: ModelSpec, hardware: HardwareConfig, numerics: Numerics) -> int:
    """Bytes of the largest panel: BLEN columns of weights, or of a router, over their contraction."""
    inputs = [
        (numerics.weights, max(model.hidden, *(each.query_width for each in model.geometries), widest_ffn(model)))
    ]
    if model.experts is not None:
        inputs.append((numerics.router, model.hidden))
    return hardware.blen * max(FORMATS[name].row_bytes(length, numerics.block_size) for name, length in inputs)
