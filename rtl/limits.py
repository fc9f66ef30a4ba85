"""Limits of the RTL: hardware for which it cannot be built, and programs that it cannot run."""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from npu.errors import TripathError
from npu.formats import FORMATS
from npu.hardware import SIMPLE_CLOCK_HZ, HardwareConfig
from npu.isa import TABLE, Instruction, OpClass, Unit
from npu.program import Program
from npu.program.tables import address_registers

PACKAGE = "tripath_pkg.sv"
"""The file that is generated from the tables."""
BLOCKS = (3, 4, 5)
"""Logarithms of the block lengths of a tile product."""
ARRAY_FORMATS = tuple(FORMATS[name].code for name in ("mxint8", "mxint4"))
DMA_FORMATS = tuple(FORMATS[name].code for name in ("fp32", "bf16", "mxint8", "mxint4"))
SLOTS = 4
"""Loop levels with which one address register can move."""
REGISTERS = 192
"""Address registers of the core."""
PROGRAM_WORDS = 4096
"""Words of its program memory."""
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
        (hardware.clock_hz == SIMPLE_CLOCK_HZ, "clock_hz", "must be 1 GHz, at which its memory is stated"),
        (hbm.burst_bytes == hbm.bytes_per_cycle, "hbm.burst_bytes", "must be the bytes of a cycle"),
        (hbm.burst_bytes == 16, "hbm.burst_bytes", "must be 16"),
        (hbm.read_latency_cycles >= 48, "hbm.read_latency_cycles",
         "must be at least 48: the memory's 30 and the stages of the DMA"),
        (hbm.write_latency_cycles >= 40, "hbm.write_latency_cycles", "must be at least 40: the stages of the DMA"),
        (hardware.blen == 8, "blen", "must be 8: a chain of four additions of two cycles"),
        (hardware.mlen == 32, "mlen", "must be 32"),
        (hardware.vlen >= 32, "vlen", "must be at least 32"),
        (hardware.accumulator_sets == 1, "accumulator_sets", "must be 1"),
        (hardware.write_out_columns == 1, "write_out_columns", "must be 1"),
        (not hardware.fused_exponential, "fused_exponential", "must be false"),
        (front.issue_cycles == front.control_cycles == front.next_cycles == front.exit_cycles == front.loop_cycles == 1
         and front.address_step_cycles == 0, "frontend", "must take a cycle for each instruction"),
        (front.dispatch_cycles == 4, "frontend.dispatch_cycles", "must be 4"),
        (front.break_cycles == 5, "frontend.break_cycles", "must be 5"),
        (front.affine_cycles == 4, "frontend.affine_cycles", "must be 4"),
    ]  # fmt: skip
    for holds, key, rule in rules:
        if not holds:
            raise TripathError(f"hardware.{key}: the RTL's {rule} (hardware {hardware.name})")
    least = _least_cycles(hardware.vlen)
    for spec in TABLE.values():
        if spec.op_class is None or spec.op_class not in least or spec.mnemonic not in built():
            continue
        latency, interval = least[spec.op_class]
        for what, value, low in (
            ("latency", hardware.latency_cycles(spec.mnemonic), latency),
            ("interval", hardware.interval_cycles(spec.mnemonic), interval),
        ):
            if value < low:
                raise TripathError(
                    f"hardware.timing.{spec.mnemonic}: the RTL needs a {what} of {low} cycles, got {value}"
                )


def _least_cycles(vlen: int) -> dict[OpClass, tuple[int, int]]:
    """Latency and interval that the pipelines need at least; of other classes any will do."""
    levels = vlen.bit_length() - 1
    return {
        OpClass.TILE_PRODUCT: (34, 8), OpClass.TILE_OUT: (27, 8), OpClass.ELEMENTWISE: (11, 1),
        OpClass.TRANSCENDENTAL: (11, 1), OpClass.SCALAR: (10, 1), OpClass.LANE_MOVE: (3, 1), OpClass.REDUCE: (5, 1),
        OpClass.REDUCE_SUM: (9 + 2 * levels, 1), OpClass.TOP_K: (vlen + 3, vlen),
    }  # fmt: skip


def check_program(program: Program, hardware: HardwareConfig) -> None:
    """Raise unless the RTL can run the program.

    Raises:
        TripathError: naming the instruction.
    """
    if len(program.words) > PROGRAM_WORDS:
        raise TripathError(f"rtl: the program has {len(program.words)} words, the core holds {PROGRAM_WORDS}")
    for number, instruction in enumerate(program.instructions):
        for holds, rule in _rules(instruction, hardware):
            if not holds:
                raise TripathError(f"rtl: {instruction.mnemonic} {rule} (instruction {number})")
    for number, register in address_registers(program).items():
        if number >= REGISTERS or len(register.strides) > SLOTS:
            raise TripathError(
                f"rtl: address register {number} with {len(register.strides)} strides, the core has {REGISTERS} "
                f"registers with {SLOTS} strides each; compiler=plain needs fewer"
            )


@lru_cache
def built() -> frozenset[str]:
    """Mnemonics that the sources of the core name; the package, which is generated, names all."""
    sources = [file.read_text() for file in Path(__file__).parent.glob("*.sv") if file.name != PACKAGE]
    return frozenset(re.findall(r"\bOP_(\w+)", "".join(sources)))


def _rules(instruction: Instruction, hardware: HardwareConfig) -> Iterator[tuple[bool, str]]:
    o, spec = instruction.operands, instruction.spec
    yield spec.op_class is OpClass.SYNC or spec.mnemonic in built(), "is not built: no source of the core names it"
    if spec.op_class is OpClass.TILE_PRODUCT:
        formats = o["weight_format"], o["act_format"]
        yield all(code in ARRAY_FORMATS for code in formats), "needs formats mxint8 or mxint4 at the array"
        yield o["block"] in BLOCKS, "needs blocks of 8, 16 or 32"
    if "format" in o:
        yield o["format"] in DMA_FORMATS, "needs a format of fp32, bf16, mxint8 and mxint4"
        yield 2 <= o["block"] <= 5, "needs blocks of 4 to 32"
    if spec.unit in (Unit.VECTOR, Unit.SCALAR) and "n" in o:
        yield 1 <= o["n"] <= hardware.vlen, f"needs 1 to {hardware.vlen} lanes"
    if "head_dim" in o:
        yield o["head_dim"] in (2, 4, 8, 16, 32, 64, 128, 256), "needs a head of a power of two"
    if spec.mnemonic == "A_RING":
        yield o["length"] > 0, "needs a ring of at least one buffer"
