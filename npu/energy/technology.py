"""The numbers of a process, each with its source (`conf/technology`), and the laws between them."""

import math
from dataclasses import dataclass

from npu.errors import TripathError
from npu.formats.table import Format
from npu.sourced import Numbers, check_numbers, weakest

NUMBERS = (
    "multiply_int8_pj", "multiply_int32_pj", "multiply_bf16_pj", "multiply_fp32_pj", "add_int32_pj", "add_fp32_pj",
    "register_bit_pj", "vector_lane_pj", "scalar_operation_pj", "issue_pj", "sram_8kib_pj", "sram_1mib_pj",
    "wire_bit_mm_pj", "hbm2_bit_pj", "hbm2e_bit_pj", "hbm3_bit_pj", "hbm3e_bit_pj", "lpddr5x_bit_pj",
    "logic_leakage_mw_mm2", "sram_leakage_mw_mib", "hbm_standby_mw_gib", "lpddr_standby_mw_gib", "array_mac_um2",
    "array_mac_bit_um2", "array_output_um2", "array_output_bit_um2", "float_mac_um2", "float_mac_bit_um2",
    "float_product_bit2_um2", "array_corner", "array_set_share", "array_column_share", "core_lane_um2",
    "core_row_um2", "core_fixed_um2", "vector_lane_um2", "vector_chain_share", "scalar_unit_um2", "frontend_um2",
    "instruction_memory_bytes", "sram_cell_um2", "sram_array_share", "hbm_phy_stack_um2", "lpddr_phy_stack_um2",
)  # fmt: skip
"""Every number of a technology; the unit ends its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Technology:
    """A process by its numbers.

    Attributes:
        name: Name in reports.
        numbers: Each with `value`, `provenance` (docs/energy.md) and `source`; the unit ends its name.

    Raises:
        TripathError: a number is missing, unknown, not positive, or has no source.
    """

    name: str
    numbers: Numbers

    def __post_init__(self) -> None:
        check_numbers("technology.numbers", self.numbers, NUMBERS)
        if self["sram_array_share"] > 1:
            raise TripathError(
                f"technology.numbers.sram_array_share.value: must be at most 1, got {self['sram_array_share']}"
            )

    def __getitem__(self, name: str) -> float:
        return float(self.numbers[name]["value"])

    def provenance(self, *names: str) -> str:
        """The weakest provenance of some numbers: a result is no better than what it rests on."""
        return weakest(self.numbers, *names)


def significand_bits(format: Format) -> int:
    """Bits that a multiplier sees of one element: all of an integer's, a float's mantissa and its hidden one."""
    return format.bits if format.integer else format.mantissa_bits + 1


def power_law(x: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    """The power law through two points (x, y), at `x`."""
    exponent = math.log(high[1] / low[1]) / math.log(high[0] / low[0])
    return low[1] * (x / low[0]) ** exponent


def multiply_pj(technology: Technology, weights: Format, activations: Format) -> float:
    """Picojoules of one product: a power law in the product of significand widths, through the two points of its kind.

    The law of floats predicts FP16 (0.34 pJ, published, not used for it) within 6 %.
    """
    area = significand_bits(weights) * significand_bits(activations)
    low, high = ("int8", "int32") if weights.integer and activations.integer else ("bf16", "fp32")
    width = {"int8": 8, "int32": 32, "bf16": 8, "fp32": 24}
    return power_law(area, *((width[k] ** 2, technology[f"multiply_{k}_pj"]) for k in (low, high)))
