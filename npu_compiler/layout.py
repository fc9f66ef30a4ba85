"""Where everything lies: tiles, the HBM map, and the SRAM buffers, with capacity errors that name phase and limit."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from dllm.model import ModelSpec
from dllm.workload import Numerics, Smoothing, Workload
from npu.errors import CapacityError, TripathError
from npu.formats import FORMATS, MX_BLOCK
from npu.hardware import HardwareConfig
from npu.program import Tensor
from npu.units import format_bytes

HBM_ALIGNMENT_BYTES = 64
MAX_CHUNK_ROWS = 256
STREAM_SLOTS = 2
"""Buffers of a double-buffered stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Sizes that lowering works with.

    `canvas` is the padded length S of a sequence in tokens (a multiple of the block length); keys live in a cache of
    `cache_tokens` >= S, cut in tiles of `key_tile`, with the padding in front. A row tile has `row_tile` rows; `slice`
    columns are produced at a time where a wide result streams on (FFN, logits). `stage`: what the program is of.
    """

    canvas: int
    prompt: int
    key_tile: int
    cache_tokens: int
    token_block: int
    row_tile: int
    slice: int
    chunk_rows: int
    batch: int
    stage: str

    @property
    def pad(self) -> int:
        """Cache positions before the first row of the canvas."""
        return self.cache_tokens - self.canvas

    def sequences(self, rows: int) -> int:
        """Most sequences that a chunk of `rows` rows has rows of."""
        return min(self.batch, rows // self.row_tile)


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


def cache_tile(model: ModelSpec, numerics: Numerics, tiling: Tiling, side: str) -> CacheTile:
    """How a tile of `side` (keys, values) lies in Matrix SRAM."""
    columns, length, block = (
        (tiling.key_tile, model.head_dim, numerics.block_size)
        if side == "keys"
        else (model.head_dim, tiling.key_tile, tiling.token_block)
    )
    converted = axis_of(numerics, side) != CONTRACTED[side]
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


def axis_of(numerics: Numerics, side: str) -> str:
    """Along what the blocks of `side` run in HBM."""
    return numerics.k_axis if side == "keys" else numerics.v_axis


def key_tile_tokens(canvas: int, smallest: int, largest: int) -> int:
    """Keys per attention tile: the power of two with the least work, an empty tile costing as much as 64 keys."""
    sizes = [smallest << i for i in range(16) if smallest << i <= largest]
    return min(sizes, key=lambda size: (-(-canvas // size) * (size + 64), -size))


SAMPLING_PHASES = ("setup", "sampling", "commit")


def make_tiling(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int]
) -> Tiling:
    """Tile sizes of a workload on a machine.

    Raises:
        TripathError: the canvas exceeds the model's context, or widths do not fit the array.
        CapacityError: not even one row tile fits Vector SRAM.
    """
    block, size = workload.block_length, numerics.block_size
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
    if model.head_dim % hardware.blen or model.hidden % hardware.blen or model.ffn % hardware.blen:
        raise TripathError(f"hardware.blen: {hardware.blen} does not divide model.head_dim {model.head_dim}")
    if hardware.vlen % hardware.blen:
        raise TripathError(f"hardware.blen: {hardware.blen} does not divide hardware.vlen {hardware.vlen}")
    if model.head_dim > min(hardware.vlen, hardware.mlen):
        raise TripathError(
            f"model.head_dim: {model.head_dim} exceeds hardware.vlen {hardware.vlen} or hardware.mlen {hardware.mlen}"
        )
    if numerics.smoothing.mixed and model.head_dim & (model.head_dim - 1):
        raise TripathError(f"model.head_dim: the Hadamard scheme needs a power of two, got {model.head_dim}")
    if hardware.mlen % size or any(width % size for width in (model.head_dim, model.hidden, model.ffn)):
        raise TripathError(
            f"numerics.block_size: {size} does not divide model.head_dim {model.head_dim}, model.hidden, model.ffn or "
            f"hardware.mlen {hardware.mlen}"
        )
    prompt = -(-longest // block) * block
    canvas = prompt + workload.generation_length
    smallest = max(MX_BLOCK, block, hardware.blen)  # a tile of MX_BLOCK keys at least, whatever their blocks
    if smallest > min(hardware.mlen, hardware.vlen):
        raise TripathError(f"hardware.mlen: a key tile of {smallest} tokens exceeds it or hardware.vlen")
    key_tile = key_tile_tokens(canvas, smallest, min(hardware.mlen, hardware.vlen))
    tiling = Tiling(
        canvas=canvas, prompt=prompt, key_tile=key_tile, cache_tokens=-(-canvas // key_tile) * key_tile,
        token_block=min(size, block), row_tile=min(hardware.blen, block),
        slice=min(hardware.vlen, model.ffn, model.vocab), chunk_rows=0, batch=workload.batch, stage=workload.stage,
    )  # fmt: skip
    low, high = block, min(MAX_CHUNK_ROWS, max(block, canvas * workload.batch)) // block * block
    rows = high
    while rows > low and not _fits(model, hardware, tiling, rows, numerics.smoothing):
        rows -= block
    _vector_buffers(model, hardware, tiling, rows, numerics.smoothing)
    _fp_buffers(model, hardware, tiling, rows, numerics.smoothing)
    return dataclasses.replace(tiling, chunk_rows=rows)


def _fits(model: ModelSpec, hardware: HardwareConfig, tiling: Tiling, rows: int, smoothing: Smoothing) -> bool:
    try:
        _vector_buffers(model, hardware, tiling, rows, smoothing)
        _fp_buffers(model, hardware, tiling, rows, smoothing)
    except CapacityError:
        return False
    return True


@dataclass
class Bump:
    """Addresses of one SRAM handed out in order; `element_bytes` is the size of one address."""

    memory: str
    limit_bytes: int
    element_bytes: int
    hardware: str
    next: int = 0
    places: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, elements: int, phase: str) -> int:
        """Address of a new buffer.

        Raises:
            CapacityError: naming the phase whose buffer does not fit, the bytes, and the limit.
        """
        address, self.next = self.next, self.next + elements
        if self.next * self.element_bytes > self.limit_bytes:
            raise CapacityError(
                f"hardware.sram.{self.memory}_bytes: working set {format_bytes(self.next * self.element_bytes)} exceeds "
                f"{format_bytes(self.limit_bytes)} (phase {phase}, hardware {self.hardware})"
            )
        self.places[name] = address
        return address


def _vector_buffers(
    model: ModelSpec, hardware: HardwareConfig, tiling: Tiling, rows: int, smoothing: Smoothing
) -> Bump:
    """Buffers of Vector SRAM, in elements, for chunks of `rows` rows; each starts on a VLEN boundary."""
    bump = Bump("vector", hardware.sram.vector_bytes, 2, hardware.name)
    sequences = rows // tiling.row_tile
    plan = [
        ("x", rows * model.hidden, "embed"),
        ("norm_weight", model.hidden, "qkv"),
        ("h", rows * model.hidden, "qkv"),
        ("rope", rows * model.head_dim, "qkv"),
        ("bias", model.qkv_width if model.qkv_bias else 0, "qkv"),
        ("qkv", rows * model.qkv_width, "qkv"),
        ("q", rows * model.query_width, "attention"),
        ("mask", sequences * tiling.cache_tokens, "attention"),
        ("scores", tiling.row_tile * hardware.vlen, "attention"),
        ("partial", tiling.row_tile * model.head_dim, "attention"),
        ("attended", rows * model.query_width, "attention"),
        ("y", rows * model.hidden, "out"),
        ("gate", STREAM_SLOTS * rows * tiling.slice, "ffn"),
        ("up", STREAM_SLOTS * rows * tiling.slice, "ffn"),
        ("act", rows * tiling.slice, "ffn"),
        ("inner", rows * model.ffn, "ffn"),
        ("logits", STREAM_SLOTS * rows * tiling.slice, "lm_head"),
        ("logit_row", STREAM_SLOTS * model.vocab, "sampling"),
        ("shifted", min(hardware.vlen, model.vocab), "sampling"),
        ("commit", 5 * hardware.vlen, "commit"),
    ]
    if smoothing.sides:
        sequences, (inverse, fold) = tiling.sequences(rows), smoothing_widths(model, smoothing)
        measured = bool(smoothing.measured)
        plan += [
            ("channel_max", tiling.batch * 2 * model.kv_width if measured else 0, "qkv"),
            ("channel_mean", tiling.batch * 2 * model.kv_width if smoothing.centres else 0, "qkv"),
            ("inverse", sequences * inverse, "qkv"),
            ("smoothing", inverse + fold if measured else 0, "smooth"),
            ("kv", rows * 2 * model.kv_width if measured else 0, "smooth"),
            ("fold", sequences * fold, "attention"),
        ]
    if smoothing.mixed:
        plan.append(("mixed", STREAM_SLOTS * tiling.row_tile * model.head_dim, "qkv"))
    if smoothing.pre_rope:
        plan += [("cached_keys", rows * model.kv_width, "rotate"), ("key_rope", rows * model.head_dim, "rotate")]
    for name, elements, phase in plan:
        if tiling.stage == "generation" or phase in SAMPLING_PHASES:
            bump.take(name, -(-elements // hardware.vlen) * hardware.vlen, phase)
    return bump


def smoothing_widths(model: ModelSpec, smoothing: Smoothing) -> tuple[int, int]:
    """Elements of the two rows of factors (`npu_compiler.smoothing`): for what goes into the cache, and for attention."""
    return (2 + 2 * smoothing.centres) * model.kv_width, (2 + smoothing.centres) * model.query_width


CONSTANTS = (
    "zero", "lowest", "one", "minus_one", "inverse_hidden", "epsilon", "attention_scale", "threshold", "alpha",
    "inverse_head_dim", "smallest_share",
)  # fmt: skip


def _fp_buffers(
    model: ModelSpec, hardware: HardwareConfig, tiling: Tiling, rows: int, smoothing: Smoothing, *, sampled: int = 0
) -> Bump:
    """Entries of FP SRAM: constants, one sum and validity per row, softmax state per query head and row."""
    bump = Bump("fp", hardware.sram.fp_bytes, 4, hardware.name)
    group = model.heads // model.kv_heads
    plan = [
        ("constants", len(CONSTANTS), "setup"),
        ("square_sum", rows, "qkv"),
        ("valid", rows, "qkv"),
        ("running_max", group * rows, "attention"),
        ("running_sum", group * rows, "attention"),
        ("new_max", tiling.row_tile, "attention"),
        ("correction", tiling.row_tile, "attention"),
        ("head_state", 2 * 2 * model.kv_heads if smoothing.measured else 0, "smooth"),
        ("inverse_tokens", tiling.batch if smoothing.centres else 0, "smooth"),
        ("best", 1, "sampling"),
        ("confidence", sampled, "sampling"),
    ]
    for name, elements, phase in plan:
        if tiling.stage == "generation" or phase in SAMPLING_PHASES:
            bump.take(name, elements, phase)
    return bump


@dataclass(kw_only=True)
class Layout:
    """All addresses of one program."""

    tiling: Tiling
    tensors: tuple[Tensor, ...]
    vector: dict[str, int]
    fp: dict[str, int]
    integer: dict[str, int]
    matrix: dict[str, int]
    used_bytes: dict[str, int]

    def tensor(self, name: str) -> Tensor:
        """The HBM tensor of that name."""
        return next(tensor for tensor in self.tensors if tensor.name == name)


def panel_bytes(model: ModelSpec, hardware: HardwareConfig, numerics: Numerics) -> int:
    """Bytes of the largest panel: BLEN columns of weights over the longest contraction."""
    longest = max(model.hidden, model.query_width, model.ffn)
    return hardware.blen * FORMATS[numerics.weights].row_bytes(longest, numerics.block_size)


def make_layout(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int]
) -> Layout:
    """Tiling, HBM map and SRAM buffers of one program.

    Raises:
        TripathError, CapacityError: see `make_tiling`; or a memory is too small.
    """
    tiling = make_tiling(model, workload, hardware, numerics, prompt_lengths)
    sampled = workload.batch * workload.block_length
    vector = _vector_buffers(model, hardware, tiling, tiling.chunk_rows, numerics.smoothing)
    fp = _fp_buffers(model, hardware, tiling, tiling.chunk_rows, numerics.smoothing, sampled=sampled)
    integer = Bump("int", hardware.sram.int_bytes, 4, hardware.name)
    # The step loop's last trip only leaves, but its address moves on: a place of its own keeps accesses apart.
    for name, entries, phase in (
        ("constants", 2, "setup"), ("quota", workload.block_length + 1, "setup"), ("remaining", 1, "commit"),
        ("ids", tiling.chunk_rows, "embed"), ("tokens", sampled, "sampling"), ("sampled", sampled, "sampling"),
    ):  # fmt: skip
        integer.take(name, entries, phase)
    matrix = Bump("matrix", hardware.sram.matrix_bytes, 1, hardware.name)
    matrix.take("weights", STREAM_SLOTS * panel_bytes(model, hardware, numerics), "ffn")
    if numerics.smoothing.mixed:
        matrix.take("hadamard", model.head_dim * FORMATS["bf16"].row_bytes(model.head_dim), "setup")
    for side in CONTRACTED:
        matrix.take(side, STREAM_SLOTS * cache_tile(model, numerics, tiling, side).size_bytes, "attention")
    bumps = (vector, fp, integer, matrix)
    return Layout(
        tiling=tiling, tensors=_hbm_map(model, workload, numerics, tiling, hardware), vector=vector.places,
        fp=fp.places, integer=integer.places, matrix=matrix.places,
        used_bytes={bump.memory: bump.next * bump.element_bytes for bump in bumps},
    )  # fmt: skip


def _hbm_map(
    model: ModelSpec, workload: Workload, numerics: Numerics, tiling: Tiling, hardware: HardwareConfig
) -> tuple[Tensor, ...]:
    """Tensors in HBM, those that the program writes first."""
    batch, canvas, layers, hidden = workload.batch, tiling.canvas, model.layers, model.hidden
    groups, tokens, size = tiling.cache_tokens // tiling.token_block, tiling.token_block, numerics.block_size

    def cache(side: str) -> tuple[str, tuple[int, ...], str, int, bool]:
        """A row for each token, or for each group of tokens a row for each channel."""
        by_token = axis_of(numerics, side) == "channels"
        rows = (tiling.cache_tokens, model.head_dim) if by_token else (groups, model.head_dim, tokens)
        return side, (layers, batch, model.kv_heads, *rows), numerics.kv, size if by_token else tokens, True

    measured, factors = bool(numerics.smoothing.measured), sum(smoothing_widths(model, numerics.smoothing))
    rows: list[tuple[str, tuple[int, ...], str, int, bool]] = [
        ("tokens", (batch, canvas), "int32", 1, True),
        ("x", (batch, canvas, hidden), "bf16", MX_BLOCK, True),
        ("q", (batch, canvas, model.query_width), "bf16", MX_BLOCK, True),
        cache("keys"),
        cache("values"),
        *([("kv_raw", (batch, canvas, 2 * model.kv_width), "bf16", MX_BLOCK, True)] if measured else []),
        *([("smoothing", (layers, batch, factors), "bf16", MX_BLOCK, measured)] if numerics.smoothing.sides else []),
        *(
            [("rotated_keys", (1, *cache("keys")[1][1:]), "bf16", MX_BLOCK, True)]
            if numerics.smoothing.pre_rope
            else []
        ),
        ("logits", (batch, workload.block_length, model.vocab), numerics.logits, size, True),
        ("constants", (1, len(CONSTANTS)), "fp32", len(CONSTANTS), False),
        ("integers", (1, 2 + workload.block_length), "int32", 1, False),
        ("valid", (batch, canvas), "fp32", canvas, False),
        *([("inverse_tokens", (1, batch), "fp32", batch, False)] if numerics.smoothing.centres else []),
        *([("hadamard", (model.head_dim,) * 2, "bf16", MX_BLOCK, False)] if numerics.smoothing.mixed else []),
        ("mask", (batch, tiling.cache_tokens), "bf16", MX_BLOCK, False),
        ("rope", (batch, canvas, model.head_dim), "bf16", MX_BLOCK, False),
        ("embedding", (model.vocab, hidden), "bf16", MX_BLOCK, False),
        ("attention_norm", (layers, hidden), "bf16", MX_BLOCK, False),
        ("ffn_norm", (layers, hidden), "bf16", MX_BLOCK, False),
        ("final_norm", (1, hidden), "bf16", MX_BLOCK, False),
        *([("qkv_bias", (layers, model.qkv_width), "bf16", MX_BLOCK, False)] if model.qkv_bias else []),
        ("w_qkv", (layers, model.qkv_width, hidden), numerics.weights, size, False),
        ("w_out", (layers, hidden, model.query_width), numerics.weights, size, False),
        ("w_gate", (layers, model.ffn, hidden), numerics.weights, size, False),
        ("w_up", (layers, model.ffn, hidden), numerics.weights, size, False),
        ("w_down", (layers, hidden, model.ffn), numerics.weights, size, False),
        ("lm_head", (model.vocab, hidden), numerics.weights, size, False),
    ]
    tensors, address = [], 0
    for name, shape, fmt, size, writable in rows:
        tensor = Tensor(name=name, address=address, shape=shape, format=fmt, block=size, writable=writable)
        tensors.append(tensor)
        address += -(-tensor.size_bytes // HBM_ALIGNMENT_BYTES) * HBM_ALIGNMENT_BYTES
    if address > hardware.hbm.capacity_bytes:
        raise CapacityError(
            f"hardware.hbm.capacity_bytes: weights, cache and activations need {format_bytes(address)}, limit "
            f"{format_bytes(hardware.hbm.capacity_bytes)} (hardware {hardware.name})"
        )
    return tuple(tensors)
