"""Inputs of the golden vectors: for every instruction of the queues, operands and memories drawn from its table row.

Addresses are laid out from the footprints of the row, so a new instruction gets cases without a line here; what a good
case needs beyond that (pairs of edge values, ties, masks, quantised weights) is in `_FILLS`.
"""

import itertools
import zlib
from dataclasses import dataclass

import numpy as np

from npu.formats import FORMAT_OF_CODE
from npu.formats.rounding import encode_rows
from npu.isa import TABLE, Unit
from npu.isa.spec import Memory

CASES = 28
FORMAT_CODES = sorted(FORMAT_OF_CODE)
DTYPES = {"hbm": np.uint8, "matrix": np.uint8, "vector": np.float32, "fp": np.float32, "integer": np.int32,
          "accumulator": np.float32}  # fmt: skip
NAMES = {Memory.HBM: "hbm", Memory.MATRIX: "matrix", Memory.VECTOR: "vector", Memory.FP: "fp", Memory.INT: "integer"}

EDGES = np.array(
    [0x0000, 0x8000, 0x3F80, 0xBF80, 0x0001, 0x807F, 0x0080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0], np.uint32
)
"""BF16: zeros, ones, smallest and largest denormal, smallest normal, largest, infinities, NaN."""
TIES = [(0x3F80, 0x3B80), (0x3F81, 0x3B80), (0xBF80, 0xBB80), (0x3F80, 0x3B81), (0x3F81, 0x3F82), (0x7F7F, 0x7B00),
        (0x7F7F, 0x7AFF), (0x0001, 0x3F00), (0x0003, 0x3F00), (0x0080, 0x3F00), (0x0080, 0x8001)]  # fmt: skip
"""Pairs of BF16 whose sum or product lies at, or next to, the midpoint of two results, or leaves the normal range."""
WIDE_EDGES = np.array(
    [0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x00000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000,
     0xFF800000, 0x7FC00000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F8000, 0x00008000, 0x00018000, 0x42B17218,
     0xC2AEAC50, 0xC2B00000, 0x42B20000, 0x3F317218], np.uint32,
)  # fmt: skip
"""FP32: the same, ties of the rounding to BF16, and arguments around the ends of exp."""
INTEGER_EDGES = np.array([0, 1, -1, 2**31 - 1, -(2**31), 255, 256, -256, 126336], np.int64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Operands as the body takes them (addresses, row strides, immediates), and the filled memories."""

    operands: dict
    memories: dict


def queued():
    """Rows of the table whose bodies compute something: matrix, vector, scalar and DMA instructions."""
    return [spec for spec in TABLE.values() if spec.unit is not Unit.FRONTEND and spec.operands]


def memory_of(spec, name):
    """Name of the memory of an address operand; an index register has none."""
    memory = spec.operands[name].memory
    return None if memory is None else NAMES[memory]


def spans(spec, operands, name):
    """(first address, size) of every run that the footprints of operand `name` say, the longest of each row."""
    touched = [f for f in (*spec.reads, *spec.writes) if f.operand == name]
    size, rows = max(f.size(operands) for f in touched), max(f.rows(operands) for f in touched)
    return [(operands[name] + row * operands.get(f"{name}_stride", 0), size) for row in range(rows)]


def cases(spec):
    """All cases of an instruction, the same on every run."""
    rng = np.random.default_rng(zlib.crc32(spec.mnemonic.encode()))
    return [_case(spec, number, rng) for number in range(_COUNTS.get(spec.mnemonic, CASES))]


_COUNTS = {"M_MM": 140, "H_LOAD_V": 50, "H_STORE_V": 60, "H_STORE_T": 50, "S_SET_INT": 8, "H_LOAD_M": 8}


def _case(spec, number, rng):
    operands = _immediates(spec, number, rng)
    assert spec.legal(operands), (spec.mnemonic, operands)
    free = dict.fromkeys(DTYPES, 0)
    for name in spec.addresses:
        memory = memory_of(spec, name)
        if memory is None:
            operands[name] = [0, 31, 126432][number % 3]
            continue
        operands[name] = free[memory]
        if spec.operands[name].rows:
            size = max(f.size(operands) for f in (*spec.reads, *spec.writes) if f.operand == name)
            operands[f"{name}_stride"] = size + number % 3
        free[memory] = sum(spans(spec, operands, name)[-1]) + 1
    memories = {name: np.zeros(free[name], DTYPES[name]) for name in spec.memories if name != "accumulator"}
    read = {footprint.operand for footprint in spec.reads}
    for name in (name for name in spec.addresses if name in read):
        memory = memory_of(spec, name)
        for row, (first, size) in enumerate(spans(spec, operands, name)):
            fill = _FILLS.get((spec.mnemonic, name)) or _FILLS.get(name) or _FILLS[memory]
            memories[memory][first : first + size] = fill(spec, operands, number, row, size, rng)
    if "accumulator" in spec.memories:
        shape = operands["rows"], operands["cols"]
        start = np.zeros(shape) if number % 2 and spec.mnemonic == "M_MM" else _wide(number, shape, rng)
        memories["accumulator"] = start.astype(np.float32)
    return Case(operands=operands, memories=memories)


def _immediates(spec, number, rng):
    chosen = {}
    for name, operand in spec.operands.items():
        if operand.address:
            continue
        limit = (1 << (operand.bits - operand.signed)) - 1
        choices = {"rows": [1, 2, 3], "cols": [1, 3, 4], "n": [8], "row_bytes": [1, 7, 33], "value": [0, 1, 126336, limit],
                   "head_dim": [4, 8], "block": [3, 4, 5]}  # fmt: skip
        values = choices.get(name, [1, 2])
        chosen[name] = values[number % len(values)]
    if "head_dim" in chosen:
        chosen["n"] = chosen["head_dim"] * (1 + number % 2)
    elif spec.mnemonic.startswith("V_RED") or spec.mnemonic == "V_TOPK_MASK":
        chosen["n"] = [1, 2, 3, 5, 8, 13, 16, 32][number % 8]
    if spec.mnemonic == "M_MM":
        pair = number % 100
        chosen |= {"weight_format": FORMAT_CODES[pair // 10], "act_format": FORMAT_CODES[pair % 10]}
        if number < 100:
            chosen |= {"block": 3, "rows": 1, "cols": 2, "k": 8}
        else:
            code = int(rng.choice(FORMAT_CODES))
            chosen |= {"weight_format": code, "act_format": int(rng.choice([code, *FORMAT_CODES]))}
            chosen |= {"block": [5, 4, 5, 3][number % 4], "rows": 2, "cols": 1, "k": 32 * (1 + number % 2)}
        record = FORMAT_OF_CODE[chosen["weight_format"]].record_bytes(1 << chosen["block"])
        chosen["block_stride"] = record + number % 2
    elif "format" in chosen:
        chosen["format"] = FORMAT_CODES[number % len(FORMAT_CODES)]
        chosen["block"] = [2, 3, 5][number // 10 % 3]
        columns = 1 << chosen["block"]
        chosen["cols"] = 3 if spec.mnemonic == "H_STORE_T" else columns if columns == 32 else 2 * columns
        if "rows" in chosen:
            chosen["rows"] = 1 + number % 2 if columns < 32 else 1
    return chosen


def _widened(codes):
    return (np.asarray(codes, np.uint32) << 16).view(np.float32)


def _bf16(x):
    """Nearest BF16 by truncation; where it lies does not matter for an input."""
    return (np.asarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def _any_magnitude(size, rng):
    with np.errstate(over="ignore"):
        return (rng.choice([-1.0, 1.0], size) * np.exp2(rng.uniform(-136, 127.9, size))).astype(np.float32)


def _vector(spec, operands, number, row, size, rng):
    """A third edges among ordinary numbers, a third ordinary numbers, a third any magnitude."""
    ordinary = _bf16(rng.normal(size=size) * 4.0)
    if number % 3 == 0:
        return np.where(rng.random(size) < 0.4, _widened(rng.choice(EDGES, size)), ordinary)
    return ordinary if number % 3 == 1 else _bf16(_any_magnitude(size, rng))


def _wide(number, size, rng):
    """FP32, an edge at each of the first cases."""
    shape = np.shape(np.empty(size))
    values = rng.normal(size=shape).astype(np.float32) * np.float32(3.0)
    if number < len(WIDE_EDGES):
        values.reshape(-1)[:1] = WIDE_EDGES[number : number + 1].view(np.float32)
    return values


def _fp(spec, operands, number, row, size, rng):
    return _wide(number, size, rng) if spec.unit is not Unit.SCALAR else _scalar(number, size, rng)


def _scalar(number, size, rng):
    edges = WIDE_EDGES[(number + np.arange(size)) % len(WIDE_EDGES)].view(np.float32)
    return edges if number < len(WIDE_EDGES) else (rng.normal(size=size) * 20).astype(np.float32)


def _integer(spec, operands, number, row, size, rng):
    return np.where(rng.random(size) < 0.3, rng.choice(INTEGER_EDGES, size), rng.integers(0, 4, size))


def _pair(side):
    """Elementwise operations of two rows: ties first, then every pair of edges, then ordinary numbers."""
    pairs = np.array([*TIES, *itertools.product(EDGES, EDGES)], np.uint32)

    def fill(spec, operands, number, row, size, rng):
        chosen = pairs[number * size : (number + 1) * size, side]
        return np.concatenate([_widened(chosen), _bf16(rng.normal(size=size - len(chosen)))])

    return fill


def _logits(spec, operands, number, row, size, rng):
    """Few distinct values: ties in every case, and infinities in some."""
    values = _widened(rng.choice([0x3F80, 0x3F00, 0xBF80, 0x0000, 0x8000, 0xFF7F], size))
    return np.where(rng.random(size) < 0.1, _widened(rng.choice(EDGES, size)), values) if number % 3 == 0 else values


def _mask(spec, operands, number, row, size, rng):
    values = (rng.random(size) < 0.5).astype(np.float32)
    return np.where(rng.random(size) < 0.2, _widened(rng.choice(EDGES, size)), values) if number % 4 == 0 else values


def _exponents(spec, operands, number, row, size, rng):
    if number % 3 == 0:
        return _widened(np.resize(np.roll(EDGES, -(number // 3) * size), size))
    if number % 3 == 1:
        return _bf16(rng.uniform(-90, 90, size))
    return _bf16(_any_magnitude(size, rng))


def _weights(spec, operands, number, row, size, rng):
    """One column: encoded blocks (any bytes in every fifth case past the pairs), block_stride bytes apart."""
    code, block, stride = operands["weight_format"], 1 << operands["block"], operands["block_stride"]
    run = np.zeros(size, np.uint8)
    for index in range(operands["k"] // block):
        values = rng.normal(size=(1, block)).astype(np.float32) * np.float32(2.0 ** rng.integers(-4, 5))
        values *= np.float32({3: 2.0**120, 7: 2.0**-125}.get(number % 11, 1.0))
        encode_rows(values, code, block, run[index * stride :])
    return rng.integers(0, 256, size) if number >= 100 and number % 5 == 0 else run


def _activations(spec, operands, number, row, size, rng):
    values = _bf16(rng.normal(size=size) * 2.0 ** rng.integers(-3, 4))
    if number >= 100 and number % 3 == 0:
        values[rng.integers(size)] = _widened(rng.choice(EDGES, 1))[0]
    return np.zeros(size, np.float32) if number % 37 == 0 else values


def _block(spec, operands, number, row, size, rng):
    """What a store quantises: first zeros and non-finite values, then ties of the element grid, then anything."""
    if number < 10:
        return np.where(rng.random(size) < 0.5, _widened(rng.choice(EDGES, size)), 0)
    if number < 20:
        return _bf16((rng.integers(-33, 34, size) / 2.0) * 2.0 ** float(rng.integers(-3, 4)))
    if number % 4 == 0:
        return _bf16(_any_magnitude(size, rng))
    return _bf16(rng.normal(size=size))


def _stored(spec, operands, number, row, size, rng):
    """Any bytes; every second case what a store would have written."""
    if "format" not in operands or number // 10 % 2 == 0:
        return rng.integers(0, 256, size)
    run, block = np.zeros(size, np.uint8), 1 << operands["block"]
    values = rng.normal(size=(1, operands["cols"])).astype(np.float32)
    encode_rows(values, operands["format"], block, run)
    return run


def _finite_words(spec, operands, number, row, size, rng):
    """Little-endian words of FP32 edges."""
    count = size // 4
    return WIDE_EDGES[(number + np.arange(count)) % len(WIDE_EDGES)].astype("<u4").view(np.uint8)


def _table_row(spec, operands, number, row, size, rng):
    return (
        _vector(spec, operands, number, row, size // 2, rng).view(np.uint32).__rshift__(16).astype("<u2").view(np.uint8)
    )


_FILLS = {
    "vector": _vector, "fp": _fp, "integer": _integer, "hbm": _stored, "matrix": _weights, "mask": _mask,
    "count": lambda spec, o, number, row, size, rng: np.array([number // 8 * 2 + number % 3]),
    "index": lambda spec, o, number, row, size, rng: rng.permutation(o["rows"]),
    ("M_MM", "acts"): _activations, ("V_EXP_V", "a"): _exponents, ("V_RECI_V", "a"): _exponents,
    ("V_EXP2_V", "a"): _exponents, ("V_LOG2_V", "a"): _exponents, ("V_TANH_V", "a"): _exponents,
    ("V_TOPK_MASK", "a"): _logits, ("V_RED_MAX_IDX", "a"): _logits, ("H_STORE_V", "src"): _block,
    ("H_STORE_T", "src"): _block, ("H_LOAD_F", "src"): _finite_words, ("H_GATHER_V", "table"): _table_row,
    **{(name, side): _pair(i) for name in ("V_ADD_VV", "V_SUB_VV", "V_MUL_VV", "V_MAX_VV", "V_MAX_ABS_VV") for i, side in enumerate("ab")},
}  # fmt: skip
