"""Areas of the blocks of a core, as laws with few coefficients: each term is a thing that a designer would count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from npu.energy.technology import Technology, significand_bits
from npu.formats import FORMATS
from npu.formats.table import MX_BLOCK, Format
from npu.hardware import HardwareConfig
from npu.units import GIB, MIB

UM2_PER_MM2 = 1e6
PORT_BITS = 64
"""Width of the SRAM port whose energy is published; a wider port is banks of this width side by side."""

SMALLEST_BANK_BYTES = 8192
SRAM_BLOCKS = ("matrix_sram", "vector_sram", "small_sram", "frontend")


@dataclass(frozen=True, kw_only=True, slots=True)
class AreaTerm:
    """Area of a part of `block`, in mm2, and the numbers that it rests on."""

    block: str
    mm2: float
    numbers: tuple[str, ...]


def mac_um2(technology: Technology, weights: Format, activations: Format) -> float:
    """Area of one multiply-accumulate of the array.

    A MAC is a multiplier, an adder into the partial sum, one into the next sub-array, and registers. For integers all grow
    with the bits of the operands, as at 45 nm; the published MXINT4 array sets the scale. For floats the two adders are those
    of the published E4M3 array, whatever the element; multiplier and registers grow as for integers.
    """
    scale = technology["mac_mxint4_um2"] / _integer_mac(technology, 4, 4)
    bits = weights.bits, activations.bits
    if weights.integer and activations.integer:
        return scale * _integer_mac(technology, *bits)
    multiplier, register = technology["multiplier_bit2_um2"], technology["register_bit_um2"]
    published, significands = FORMATS["mxfp8_e4m3"], (significand_bits(weights), significand_bits(activations))
    grown = multiplier * (math.prod(significands) - significand_bits(published) ** 2)
    grown += register * (sum(bits) - 2 * published.bits)
    return technology["mac_e4m3_um2"] + scale * grown


def _integer_mac(technology: Technology, weight_bits: int, activation_bits: int) -> float:
    """Relative area of an integer MAC; its sum over a block of 32 needs five bits more than a product."""
    total = weight_bits + activation_bits + int(math.log2(MX_BLOCK))
    return (
        technology["multiplier_bit2_um2"] * weight_bits * activation_bits
        + technology["adder_bit_um2"] * 2 * total
        + technology["register_bit_um2"] * (weight_bits + activation_bits + total)
    )


def matrix_terms(technology: Technology, *, mlen: int, blen: int, pairs: Sequence[tuple[str, str]]) -> list[AreaTerm]:
    """The matrix unit: MLEN x BLEN MACs, BLEN rows of operands, BLEN x BLEN outputs in FP32.

    `pairs`: the (weight, activation) formats that it multiplies; a MAC is as large as the largest of them needs.
    """
    macs = {pair: mac_um2(technology, *(FORMATS[name] for name in pair)) for pair in pairs}
    numbers = {pair: _mac_numbers(pair) for pair in pairs}
    largest = max(macs, key=lambda pair: macs[pair])
    return [
        AreaTerm(block="matrix", mm2=mlen * blen * macs[largest] / UM2_PER_MM2, numbers=numbers[largest]),
        AreaTerm(block="matrix", mm2=blen * technology["matrix_row_um2"] / UM2_PER_MM2, numbers=("matrix_row_um2",)),
        AreaTerm(
            block="matrix", mm2=blen**2 * technology["matrix_output_um2"] / UM2_PER_MM2, numbers=("matrix_output_um2",)
        ),
    ]


def _mac_numbers(pair: tuple[str, str]) -> tuple[str, ...]:
    integer = all(FORMATS[name].integer for name in pair)
    return ("mac_mxint4_um2",) if integer else ("mac_mxint4_um2", "mac_e4m3_um2")


def matrix_unit_um2(technology: Technology, *, mlen: int, blen: int, weights: str, activations: str) -> float:
    """Area of a matrix unit for one pair of formats, in um2."""
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


def area_terms(technology: Technology, hardware: HardwareConfig, pairs: Sequence[tuple[str, str]]) -> list[AreaTerm]:
    """The parts of a core; `pairs` as in `matrix_terms`, which is left out where there are none."""
    logic = {
        "vector": (vector_unit_um2(technology, vlen=hardware.vlen), "vector_lane_um2"),
        "scalar": (technology["scalar_unit_um2"], "scalar_unit_um2"),
        "frontend": (technology["frontend_um2"], "frontend_um2"),
        "hbm_phy": (hardware.hbm.channels * technology["hbm_phy_channel_um2"], "hbm_phy_channel_um2"),
    }
    terms = matrix_terms(technology, mlen=hardware.mlen, blen=hardware.blen, pairs=pairs) if pairs else []
    terms += [AreaTerm(block=block, mm2=um2 / UM2_PER_MM2, numbers=(name,)) for block, (um2, name) in logic.items()]
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
    background = hardware.hbm.capacity_bytes / GIB * technology["hbm_background_mw_gib"] * 1e-3
    return [*terms, ("hbm", background, "hbm_background_mw_gib")]
