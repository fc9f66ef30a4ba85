"""The part of a host in a program: its turns, and the cycles for which the front end waits for them."""

import numpy as np

from npu.errors import TripathError
from npu.hardware import HardwareConfig
from npu.isa.control import LEFT_BYTES
from npu.isa.spec import ControlKind
from npu.program.container import Program, fact_of_program

HOST = int(ControlKind.HOST)


@fact_of_program
def host_turns(program: Program) -> dict[int, tuple[int, int]]:
    """The instructions that hand over to the host, with the bytes that it reads and those that it writes."""
    turns = [(number, each.operands) for number, each in enumerate(program.instructions) if each.spec.control == HOST]
    return {number: (o["rows"] * o["sent"], o["rows"] * o["taken"] + LEFT_BYTES) for number, o in turns}


def host_cycles(program: Program, hardware: HardwareConfig) -> np.ndarray:
    """Cycles for which the front end waits for the host at each instruction (int64 [n]).

    Raises:
        TripathError: the program hands over to a host, and the hardware has none.
    """
    cycles = np.zeros(len(program.words), np.int64)
    for number, (sent, taken) in host_turns(program).items():
        if hardware.host is None:
            raise TripathError(f"hardware.host: the program hands over to a host, hardware {hardware.name} has none")
        cycles[number] = hardware.host.cycles(sent, taken, hardware.clock_hz)
    return cycles
