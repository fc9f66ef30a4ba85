"""What the RTL does not do: hardware that it cannot be built for, and programs that it cannot run."""

from collections.abc import Iterator

from npu.errors import TripathError
from npu.formats import FORMATS
from npu.hardware import HardwareConfig
from npu.isa import Instruction
from npu.program import Program
from npu.program.tables import address_registers

BLOCKS = (3, 4, 5)
"""Logarithms of the block lengths of a tile product."""
ARRAY_FORMATS = tuple(FORMATS[name].code for name in ("mxint8", "mxint4"))
DMA_FORMATS = tuple(FORMATS[name].code for name in ("fp32", "bf16", "mxint8", "mxint4"))
SLOTS = 4
"""Loop levels with which one address register can move."""
REGISTERS = 192
"""Address registers of the core."""
BEHIND = 10
"""Cycles that HBM of the RTL is behind the contract: in so many stages it works out what a descriptor moves."""


def check_hardware(hardware: HardwareConfig) -> None:
    """Raise unless the RTL can be built for it.

    Raises:
        TripathError: naming the key.
    """
    front, hbm = hardware.frontend, hardware.hbm
    rules = [
        (hbm.model == "simple", "hbm.model", "must be simple"),
        (hbm.burst_bytes == hbm.bytes_per_cycle, "hbm.burst_bytes", "must be the bytes of a cycle"),
        (hbm.burst_bytes == 16, "hbm.burst_bytes", "must be 16"),
        (hbm.read_latency_cycles >= 48, "hbm.read_latency_cycles",
         "must be at least 48: the memory's 30 and the stages of the DMA"),
        (hbm.write_latency_cycles >= 40, "hbm.write_latency_cycles", "must be at least 40: the stages of the DMA"),
        (hardware.blen == 8, "blen", "must be 8: a chain of four additions of two cycles"),
        (hardware.mlen == 32, "mlen", "must be 32"),
        (hardware.vlen >= 32, "vlen", "must be at least 32"),
        (front.issue_cycles == front.control_cycles == front.next_cycles == front.exit_cycles == front.loop_cycles == 1
         and front.address_step_cycles == 0, "frontend", "must take a cycle for each instruction"),
        (front.dispatch_cycles == 4, "frontend.dispatch_cycles", "must be 4"),
        (front.break_cycles == 5, "frontend.break_cycles", "must be 5"),
        (front.affine_cycles == 4, "frontend.affine_cycles", "must be 4"),
    ]  # fmt: skip
    for holds, key, rule in rules:
        if not holds:
            raise TripathError(f"hardware.{key}: the RTL's {rule} (hardware {hardware.name})")
    for mnemonic, least in _least_latencies(hardware.vlen).items():
        for what, value, low in (
            ("latency", hardware.latency_cycles(mnemonic), least[0]),
            ("interval", hardware.interval_cycles(mnemonic), least[1]),
        ):
            if value < low:
                raise TripathError(f"hardware.timing.{mnemonic}: the RTL needs a {what} of {low} cycles, got {value}")


def _least_latencies(vlen: int) -> dict[str, tuple[int, int]]:
    """Latency and interval that the pipelines need at least."""
    vector = ("V_ADD_VV", "V_SUB_VV", "V_MUL_VV", "V_MAX_VV", "V_ADD_VF", "V_SUB_VF", "V_MUL_VF", "V_MAX_VF", "V_EXP_V",
              "V_RECI_V", "V_ROPE_V", "V_MAX_ABS_VV", "V_LOG2_V", "V_EXP2_V")  # fmt: skip
    scalar = ("S_ADD_FP", "S_SUB_FP", "S_MUL_FP", "S_EXP_FP", "S_RECI_FP", "S_RSQRT_FP")
    short = ("V_FILL_VF", "V_ROUND_V", "V_CMP_GE_VF", "V_CMP_EQ_INT", "V_SELECT_INT", "S_MAP_V_FP")
    levels = vlen.bit_length() - 1
    return {
        "M_MM": (34, 8), "M_OUT": (27, 8), **dict.fromkeys(vector, (11, 1)), **dict.fromkeys(scalar, (10, 1)),
        **dict.fromkeys(short, (3, 1)), **dict.fromkeys(("V_RED_MAX", "V_RED_MAX_IDX", "V_RED_COUNT"), (5, 1)),
        **dict.fromkeys(("V_RED_SUM", "V_RED_SUMSQ"), (9 + 2 * levels, 1)), "V_TOPK_MASK": (vlen + 3, vlen),
    }  # fmt: skip


def check_program(program: Program, hardware: HardwareConfig) -> None:
    """Raise unless the RTL can run the program.

    Raises:
        TripathError: naming the instruction.
    """
    for number, instruction in enumerate(program.instructions):
        for holds, rule in _rules(instruction, hardware):
            if not holds:
                raise TripathError(f"rtl: {instruction.mnemonic} {rule} (instruction {number})")
    for number, register in address_registers(program).items():
        if number >= REGISTERS or len(register.strides) > SLOTS:
            raise TripathError(
                f"rtl: address register {number} with {len(register.strides)} strides, the core has {REGISTERS} "
                f"registers with {SLOTS} strides each"
            )


def _rules(instruction: Instruction, hardware: HardwareConfig) -> Iterator[tuple[bool, str]]:
    o, name = instruction.operands, instruction.mnemonic
    if name == "M_MM":
        formats = o["weight_format"], o["act_format"]
        yield all(code in ARRAY_FORMATS for code in formats), "needs formats mxint8 or mxint4 at the array"
        yield o["block"] in BLOCKS, "needs blocks of 8, 16 or 32"
    if "format" in o:
        yield o["format"] in DMA_FORMATS, "needs a format of fp32, bf16, mxint8 and mxint4"
        yield 2 <= o["block"] <= 5, "needs blocks of 4 to 32"
    if name.startswith(("V_", "S_")) and "n" in o:
        yield 1 <= o["n"] <= hardware.vlen, f"needs 1 to {hardware.vlen} lanes"
    if name == "V_ROPE_V":
        yield o["head_dim"] in (2, 4, 8, 16, 32, 64, 128, 256), "needs a head of a power of two"
    if name == "A_RING":
        yield o["length"] > 0, "needs a ring of at least one buffer"
