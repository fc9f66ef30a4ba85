"""Areas of the blocks of a core, as laws with few coefficients: each term is a thing that a designer would count."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from npu.energy.technology import Technology, significand_bits
from npu.formats import FORMATS
from npu.formats.table import Format
from npu.hardware import GENERATIONS, HardwareConfig
from npu.units import GIB, MIB

UM2_PER_MM2 = 1e6
PORT_BITS = 64
"""Width of the SRAM port whose energy is published; a wider port is banks of this width side by side."""

SMALLEST_BANK_BYTES = 8192
SRAM_BLOCKS = ("matrix_sram", "vector_sram", "small_sram", "frontend")


INTEGER_MAC = ("array_mac_um2", "array_mac_bit_um2", "array_corner")
INTEGER_OUTPUT = ("array_output_um2", "array_output_bit_um2", "array_corner")
MORE_SETS = (*INTEGER_OUTPUT, "array_set_share")
MORE_COLUMNS = (*INTEGER_OUTPUT, "array_column_share")
FLOAT_MAC = ("float_mac_um2", "float_mac_bit_um2", "float_product_bit2_um2", "array_corner")


@dataclass(frozen=True, kw_only=True, slots=True)
class Operand:
    """A format as the array sees it: integer or float, the bits of an element, and the bits that are multiplied."""

    integer: bool
    bits: int
    significand_bits: int


def operand(format: Format) -> Operand:
    """The operand of a format of this project."""
    return Operand(integer=format.integer, bits=format.bits, significand_bits=significand_bits(format))


@dataclass(frozen=True, kw_only=True, slots=True)
class AreaTerm:
    """Area of a part of `block`, in mm2, and the numbers that it rests on."""

    block: str
    mm2: float
    numbers: tuple[str, ...]


def mac_um2(technology: Technology, weights: Operand, activations: Operand) -> float:
    """Area of one multiply-accumulate of the array, in um2.

    An integer MAC grows with the bits of both operands; a float MAC, which aligns and adds products, with those bits and with the
    product of the significands. Where either operand is a float, so is the MAC.
    """
    bits = weights.bits + activations.bits
    if weights.integer and activations.integer:
        return technology["array_mac_um2"] + technology["array_mac_bit_um2"] * bits
    multiplier = technology["float_product_bit2_um2"] * weights.significand_bits * activations.significand_bits
    return technology["float_mac_um2"] + technology["float_mac_bit_um2"] * bits + multiplier


def output_um2(technology: Technology, weights: Operand, activations: Operand) -> float:
    """Area of one accumulator and its way out, in um2, of an array of integers."""
    return technology["array_output_um2"] + technology["array_output_bit_um2"] * (weights.bits + activations.bits)


def matrix_terms(
    technology: Technology,
    *,
    mlen: int,
    blen: int,
    pairs: Sequence[tuple[Operand, Operand]],
    sets: int = 1,
    columns: int = 1,
) -> list[AreaTerm]:
    """The matrix unit: MLEN x BLEN MACs and BLEN x BLEN outputs; of floats these are in the MACs: published arrays show no rest.

    `pairs`: the (weight, activation) operands that it multiplies; it is as large as the largest of them needs. Each of the
    accumulator `sets` beyond the first takes a share of the outputs of integers, whatever the formats: sums are FP32 in all. So
    does each of the `columns` that leave in a cycle beyond the first, of the BLEN outputs of a column.
    """

    def parts(pair: tuple[Operand, Operand]) -> list[tuple[float, tuple[str, ...]]]:
        integer = pair[0].integer and pair[1].integer
        macs, outputs = mlen * blen * mac_um2(technology, *pair), blen**2 * output_um2(technology, *pair)
        found = [(macs, INTEGER_MAC if integer else FLOAT_MAC)]
        found += [(outputs, INTEGER_OUTPUT)] if integer else []
        found += [(technology["array_set_share"] * outputs, MORE_SETS)] * (sets - 1)
        found += [(technology["array_column_share"] * outputs / blen, MORE_COLUMNS)] * (columns - 1)
        return [(um2 * technology["array_corner"], numbers) for um2, numbers in found]

    largest = max((parts(pair) for pair in pairs), key=lambda found: sum(um2 for um2, _ in found))
    return [AreaTerm(block="matrix", mm2=um2 / UM2_PER_MM2, numbers=numbers) for um2, numbers in largest]


def matrix_unit_um2(technology: Technology, *, mlen: int, blen: int, weights: Operand, activations: Operand) -> float:
    """Area of a matrix unit for one pair of operands, in um2."""
    terms = matrix_terms(technology, mlen=mlen, blen=blen, pairs=[(weights, activations)])
    return sum(term.mm2 for term in terms) * UM2_PER_MM2


def vector_unit_um2(technology: Technology, *, vlen: int) -> float:
    """Area of the vector unit: lanes, nothing else (the published areas are proportional to VLEN within 0.3 %)."""
    return vlen * technology["vector_lane_um2"]


def vector_unit_watts(technology: Technology, *, vlen: int, clock_hz: float) -> float:
    """Power of the vector unit with every lane active in every cycle, leakage included."""
    leakage = vector_unit_um2(technology, vlen=vlen) / UM2_PER_MM2 * technology["logic_leakage_mw_mm2"] * 1e-3
    return vlen * technology["vector_lane_pj"] * 1e-12 * clock_hz + leakage


def sram_bytes(technology: Technology, hardware: HardwareConfig) -> dict[str, int]:
    """Bytes of the memories on the chip, by block; that of the front end holds instructions."""
    sram = hardware.sram
    sizes = (sram.matrix_bytes, sram.vector_bytes, sram.fp_bytes + sram.int_bytes)
    return dict(zip(SRAM_BLOCKS, (*sizes, int(technology["instruction_memory_bytes"])), strict=True))


def sram_um2(technology: Technology, size: int) -> float:
    """Area of a memory of `size` bytes."""
    return 8 * size * technology["sram_cell_um2"] / technology["sram_array_share"]


def core_rest_um2(technology: Technology, *, mlen: int, vlen: int) -> float:
    """Area of a core of the open stack without its array: lanes in a 12-bit float (E5M6), memory system and SRAM."""
    return technology["core_lane_um2"] * vlen + technology["core_row_um2"] * mlen + technology["core_fixed_um2"]


def macros_um2(size: int, width_bits: int) -> float:
    """Area of a memory of `size` bytes with a port of `width_bits`, as the cheapest array of one kind of ASAP7 macro (um2)."""
    words = math.ceil(8 * size / width_bits)
    return min(
        math.ceil(words / row["words"]) * math.ceil(width_bits / row["bits"]) * row["area_um2"] for row in sram_macros()
    )


@cache
def sram_macros() -> tuple[dict[str, float], ...]:
    """Words, bits and um2 of the single-port SRAM macros of ASAP7 (The-OpenROAD-Project/asap7_sram_0p0, LEF files)."""
    text = files("npu.energy").joinpath("data/sram_macros.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple({name: float(value) for name, value in row.items()} for row in rows)


def area_terms(technology: Technology, hardware: HardwareConfig, pairs: Sequence[tuple[str, str]]) -> list[AreaTerm]:
    """The parts of a core; `pairs`: the (weight, activation) formats of its array, which is left out where there are none."""
    phy = f"{GENERATIONS[hardware.hbm.generation].family}_phy_stack_um2"
    logic = {
        "vector": (vector_unit_um2(technology, vlen=hardware.vlen), "vector_lane_um2"),
        "scalar": (technology["scalar_unit_um2"], "scalar_unit_um2"),
        "frontend": (technology["frontend_um2"], "frontend_um2"),
        "hbm_phy": (float(hardware.hbm.used_stacks) * technology[phy], phy),
    }
    operands = [(operand(FORMATS[weights]), operand(FORMATS[activations])) for weights, activations in pairs]
    shape = {
        "mlen": hardware.mlen, "blen": hardware.blen, "sets": hardware.accumulator_sets, "columns": hardware.write_out_columns,
    }  # fmt: skip
    terms = matrix_terms(technology, **shape, pairs=operands) if pairs else []
    terms += [AreaTerm(block=block, mm2=um2 / UM2_PER_MM2, numbers=(name,)) for block, (um2, name) in logic.items()]
    if hardware.fused_exponential:
        chained = vector_unit_um2(technology, vlen=hardware.vlen) * technology["vector_chain_share"]
        numbers = ("vector_lane_um2", "vector_chain_share")
        terms.append(AreaTerm(block="vector", mm2=chained / UM2_PER_MM2, numbers=numbers))
    for block, size in sram_bytes(technology, hardware).items():
        names = ("sram_cell_um2", "sram_array_share", *(("instruction_memory_bytes",) if block == "frontend" else ()))
        terms.append(AreaTerm(block=block, mm2=sram_um2(technology, size) / UM2_PER_MM2, numbers=names))
    return terms


def static_terms(
    technology: Technology, hardware: HardwareConfig, areas: Sequence[AreaTerm]
) -> list[tuple[str, float, str]]:
    """Static power: (block, watts, the number that it rests on). Logic by area, SRAM and HBM by capacity."""
    terms = [
        (term.block, term.mm2 * technology["logic_leakage_mw_mm2"] * 1e-3, "logic_leakage_mw_mm2")
        for term in areas
        if "sram_cell_um2" not in term.numbers
    ]
    terms += [
        (block, size / MIB * technology["sram_leakage_mw_mib"] * 1e-3, "sram_leakage_mw_mib")
        for block, size in sram_bytes(technology, hardware).items()
    ]
    standby = f"{GENERATIONS[hardware.hbm.generation].family}_standby_mw_gib"
    return [*terms, ("hbm", hardware.hbm.total_bytes / GIB * technology[standby] * 1e-3, standby)]
