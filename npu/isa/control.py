"""The front end: hardware loops, address registers, integer registers that steer them, and the data-dependent exit.

Control integers are program structure: every path computes them with these bodies. What depends on data, the verdict
of a `C_BREAK_IF` and the number that a `C_COUNT` reads, is handed in by the path (from the value it computed, or from a trace).
"""

from collections import namedtuple

import numpy as np
from numba import njit

from npu.isa.spec import (
    ADDRESS_REGISTERS,
    BY_MNEMONIC,
    HBM,
    HBM_ROWS,
    INT,
    INTEGER_REGISTERS,
    LOOP_LEVELS,
    REGISTER_BITS,
    RINGS,
    ControlKind,
    Unit,
    instruction,
    signed,
    touch,
    unsigned,
)

Control = namedtuple(
    "Control",
    "pc index trips start stop register base row_stride stride ring ring_stride ring_length ring_position",
)
"""State of the front end: `pc` [1]; per loop level `index`, `trips`, first and past-the-end instruction; integer
`register`s; per address register its `base`, `row_stride`, `stride` [register, level], number of its `ring` (-1: none)
and `ring_stride`; per ring its length and position. `address_of` says where a register points."""


def new_control() -> Control:
    """State of the front end before the first instruction."""
    level, address = LOOP_LEVELS, ADDRESS_REGISTERS
    zeros = [np.zeros(n, np.int64) for n in (1, level, level, level, level, INTEGER_REGISTERS, address, address)]
    rings = [np.full(address, -1), np.zeros(address, np.int64), np.ones(RINGS, np.int64), np.zeros(RINGS, np.int64)]
    return Control._make([*zeros, np.zeros((address, level), np.int64), *rings])


@njit(cache=True)
def address_of(control, register):
    """Where an address register points: base, plus its stride for every index of the running loops, plus its ring's
    buffer (hardware adds the steps as they happen)."""
    address = control.base[register]
    for level in range(control.index.size):
        address += control.index[level] * control.stride[register, level]
    if control.ring[register] >= 0:
        address += control.ring_position[control.ring[register]] * control.ring_stride[register]
    return address


LEVEL, REGISTER, RING = unsigned(4), unsigned(4), unsigned(4)
LEFT_BYTES = 4
"""Of the number of masks that a host leaves."""
ADDRESS = unsigned(REGISTER_BITS)


@njit(cache=True)
def _enter(control, level, trips, length):
    """Start a loop of `length` instructions after this one, or jump past it if it has no trips."""
    control.index[level] = 0
    control.trips[level] = trips
    control.start[level] = control.pc[0] + 1
    control.stop[level] = control.pc[0] + 1 + length
    control.pc[0] = control.start[level] if trips > 0 else control.stop[level]


@njit(cache=True)
def _leave(control, level):
    """Take the loop's index back to 0, and so out of every address, and go on after its C_NEXT."""
    control.index[level] = 0
    control.pc[0] = control.stop[level]


@instruction(opcode=0x01, unit=Unit.FRONTEND, control=ControlKind.LOOP,
             operands={"level": LEVEL, "trips": unsigned(32), "length": unsigned(24)})  # fmt: skip
def c_loop(control, level, trips, length):
    """Repeat the next `length` instructions (the last is the C_NEXT) `trips` times; index[level] counts from 0."""
    _enter(control, level, trips, length)


@instruction(opcode=0x02, unit=Unit.FRONTEND, control=ControlKind.LOOP,
             operands={"level": LEVEL, "register": REGISTER, "length": unsigned(24)})  # fmt: skip
def c_loop_r(control, level, register, length):
    """As C_LOOP, with the trip count in an integer register, which one C_AFFINE sets on every way to the loop."""
    _enter(control, level, control.register[register], length)


@instruction(opcode=0x03, unit=Unit.FRONTEND, control=ControlKind.NEXT, operands={"level": LEVEL})
def c_next(control, level):
    """End of a loop body: advance index[level] and every address by its stride, or leave the loop."""
    if control.index[level] + 1 < control.trips[level]:
        control.index[level] += 1
        control.pc[0] = control.start[level]
    else:
        _leave(control, level)


@instruction(
    opcode=0x04,
    unit=Unit.FRONTEND,
    control=ControlKind.BREAK,
    operands={"level": LEVEL, "flag": INT},
    reads=(touch("flag", 1),),
)
def c_break_if(control, level, flag):  # noqa: ARG001  the flag is read by the path that decides
    """Leave the loop of `level` at once if integer[flag] is 0, or in its last trip. The front end waits for the flag;
    nothing is speculated.

    The body is the taken exit; a path that decides not to leave only steps to the next instruction.
    """
    _leave(control, level)


@instruction(opcode=0x05, unit=Unit.FRONTEND, control=ControlKind.TRIPS,
             operands={"register": REGISTER, "base": signed(32), "factor": signed(32), "level": LEVEL})  # fmt: skip
def c_affine(control, register, base, factor, level):
    """register := base + factor * index[level]: a trip count that is affine in an enclosing loop."""
    control.register[register] = base + factor * control.index[level]
    control.pc[0] += 1


@instruction(opcode=0x06, unit=Unit.FRONTEND, control=ControlKind.END)
def c_end(control):
    """End of the program."""
    control.pc[0] = -1


@instruction(
    opcode=0x07, unit=Unit.FRONTEND, control=ControlKind.BASE, operands={"register": ADDRESS, "base": unsigned(48)}
)
def a_base(control, register, base):
    """Set an address register: address := base; its row stride, strides and ring are cleared."""
    control.base[register] = base
    control.row_stride[register] = 0
    control.ring[register] = -1
    control.ring_stride[register] = 0
    for level in range(control.index.size):
        control.stride[register, level] = 0
    control.pc[0] += 1


@instruction(opcode=0x08, unit=Unit.FRONTEND, control=ControlKind.STEP,
             operands={"register": ADDRESS, "level": LEVEL, "stride": signed(48)})  # fmt: skip
def a_step(control, register, level, stride):
    """The address grows by `stride` for each index of `level` (which must not be running)."""
    control.stride[register, level] = stride
    control.pc[0] += 1


@instruction(
    opcode=0x09, unit=Unit.FRONTEND, control=ControlKind.ROWS, operands={"register": ADDRESS, "stride": signed(48)}
)
def a_rows(control, register, stride):
    """Distance between the rows of two-dimensional accesses through this register."""
    control.row_stride[register] = stride
    control.pc[0] += 1


@instruction(opcode=0x0A, unit=Unit.FRONTEND, control=ControlKind.RING,
             operands={"register": ADDRESS, "ring": RING, "length": unsigned(8), "stride": signed(48)})  # fmt: skip
def a_ring(control, register, ring, length, stride):
    """The address also runs through the `length` buffers of a ring, `stride` apart (multi-buffering)."""
    control.ring[register] = ring
    control.ring_stride[register] = stride
    control.ring_length[ring] = length
    control.pc[0] += 1


@instruction(opcode=0x0B, unit=Unit.FRONTEND, control=ControlKind.ADVANCE, operands={"ring": RING})
def a_next(control, ring):
    """Advance every address register of a ring to its next buffer, modulo the ring's length."""
    control.ring_position[ring] = (control.ring_position[ring] + 1) % control.ring_length[ring]
    control.pc[0] += 1


@instruction(opcode=0x0C, unit=Unit.FRONTEND, control=ControlKind.COUNT,
             operands={"register": REGISTER, "at": INT, "most": unsigned(20)}, reads=(touch("at", 1),))  # fmt: skip
def c_count(control, register, at, most):  # noqa: ARG001  the number is read by the path that knows it, see `set_count`
    """register := integer[at], at least 0 and at most `most`: how often loops go round that data decide about. The front end
    waits for it."""
    control.pc[0] += 1


@njit(cache=True)
def set_count(control, register, value, most):
    """Set the register of a C_COUNT to the `value` that it read, clamped to the range from 0 to `most`."""
    control.register[register] = min(max(value, 0), most)


@instruction(opcode=0x0D, unit=Unit.FRONTEND, control=ControlKind.LOOP,
             operands={"level": LEVEL, "register": REGISTER, "unit": unsigned(5), "length": unsigned(24)})  # fmt: skip
def c_loop_n(control, level, register, unit, length):
    """As C_LOOP, one trip for each 2^unit of an integer register or part of it, which one C_COUNT sets on every way to the
    loop."""
    _enter(control, level, (control.register[register] + (1 << unit) - 1) >> unit, length)


@instruction(opcode=0x0E, unit=Unit.FRONTEND, control=ControlKind.HOST,
             operands={"logits": HBM_ROWS, "tokens": HBM_ROWS, "left": HBM, "rows": unsigned(16), "sent": unsigned(30),
                       "taken": unsigned(20)},
             reads=(touch("logits", "sent", "rows"),),
             writes=(touch("tokens", "taken", "rows"), touch("left", LEFT_BYTES)),
             legal=lambda o: o["rows"] * o["sent"] * o["taken"] > 0)  # fmt: skip
def c_host(control, logits, logits_stride, tokens, tokens_stride, left, rows, sent, taken):  # noqa: ARG001  the host reads and writes
    """Hand over to the host. Of each of `rows` sequences it reads `sent` bytes at hbm[logits] and writes `taken` bytes at
    hbm[tokens]; to hbm[left] it writes the number of masks that are left. The front end waits until it is done.

    What the host commits is not part of the machine: only the time passes.
    """
    control.pc[0] += 1


_C_LOOP, _C_LOOP_R, _C_NEXT, _C_AFFINE, _C_END, _A_BASE, _A_STEP, _A_ROWS, _A_RING, _A_NEXT, _C_COUNT, _C_LOOP_N, _C_HOST = (
    BY_MNEMONIC[name].opcode
    for name in ("C_LOOP", "C_LOOP_R", "C_NEXT", "C_AFFINE", "C_END", "A_BASE", "A_STEP", "A_ROWS", "A_RING", "A_NEXT", "C_COUNT",
                 "C_LOOP_N", "C_HOST")
)  # fmt: skip


@njit(cache=True)
def control_step(control, opcode, o):
    """Run a control instruction, of a BREAK and a COUNT only what no data decides; false if this is none that it can run."""
    if opcode == _C_NEXT:
        c_next(control, o[0])
    elif opcode == _C_LOOP:
        c_loop(control, o[0], o[1], o[2])
    elif opcode == _C_LOOP_R:
        c_loop_r(control, o[0], o[1], o[2])
    elif opcode == _A_NEXT:
        a_next(control, o[0])
    elif opcode == _C_AFFINE:
        c_affine(control, o[0], o[1], o[2], o[3])
    elif opcode == _A_BASE:
        a_base(control, o[0], o[1])
    elif opcode == _A_STEP:
        a_step(control, o[0], o[1], o[2])
    elif opcode == _A_ROWS:
        a_rows(control, o[0], o[1])
    elif opcode == _A_RING:
        a_ring(control, o[0], o[1], o[2], o[3])
    elif opcode == _C_END:
        c_end(control)
    elif opcode == _C_COUNT:
        c_count(control, o[0], 0, o[2])
    elif opcode == _C_LOOP_N:
        c_loop_n(control, o[0], o[1], o[2], o[3])
    elif opcode == _C_HOST:
        c_host(control, 0, 0, 0, 0, 0, o[3], o[4], o[5])
    else:
        return False
    return True
