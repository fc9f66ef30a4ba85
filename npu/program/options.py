"""Instructions that not every machine has, and the option of the hardware that brings each."""

from npu.errors import TripathError
from npu.hardware import HardwareConfig
from npu.program.container import Program

OPTIONS = {"V_EXP_SUM_VF": "fused_exponential"}
"""Keys of `hardware`, by mnemonic."""


def check_options(program: Program, hardware: HardwareConfig) -> None:
    """Refuse a program with an instruction that the hardware lacks.

    Raises:
        TripathError: naming the key and the instruction.
    """
    for mnemonic, option in OPTIONS.items():
        if not getattr(hardware, option) and any(each.mnemonic == mnemonic for each in program.instructions):
            raise TripathError(f"hardware.{option}: the program has {mnemonic}, hardware {hardware.name} lacks it")
