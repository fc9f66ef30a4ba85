"""Scalar instructions over FP SRAM (FP32) and Int SRAM (int32); they share the queue of the vector unit."""

import numpy as np

from npu.formats.rounding import round_bf16
from npu.isa.spec import FP, INT, VECTOR, OpClass, Unit, instruction, touch, unsigned
from npu.isa.transcendental import exponential, logarithm2, reciprocal, reciprocal_sqrt

_BINARY = {"dst": FP, "a": FP, "b": FP}
_UNARY = {"dst": FP, "a": FP}
_TWO, _ONE, _RESULT = (touch("a", 1), touch("b", 1)), (touch("a", 1),), (touch("dst", 1),)


@instruction(opcode=0x40, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_BINARY, reads=_TWO, writes=_RESULT)
def s_add_fp(fp, dst, a, b):
    """fp[dst] := fp[a] + fp[b]."""
    fp[dst] = fp[a] + fp[b]


@instruction(opcode=0x41, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_BINARY, reads=_TWO, writes=_RESULT)
def s_sub_fp(fp, dst, a, b):
    """fp[dst] := fp[a] - fp[b]."""
    fp[dst] = fp[a] - fp[b]


@instruction(opcode=0x42, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_BINARY, reads=_TWO, writes=_RESULT)
def s_mul_fp(fp, dst, a, b):
    """fp[dst] := fp[a] * fp[b]."""
    fp[dst] = fp[a] * fp[b]


@instruction(opcode=0x43, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_UNARY, reads=_ONE, writes=_RESULT)
def s_exp_fp(fp, dst, a):
    """fp[dst] := e^fp[a], by the table of `transcendental`."""
    fp[dst] = exponential(fp[a])


@instruction(opcode=0x44, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_UNARY, reads=_ONE, writes=_RESULT)
def s_reci_fp(fp, dst, a):
    """fp[dst] := 1 / fp[a], by the table of `transcendental`."""
    fp[dst] = reciprocal(fp[a])


@instruction(opcode=0x45, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_UNARY, reads=_ONE, writes=_RESULT)
def s_rsqrt_fp(fp, dst, a):
    """fp[dst] := 1 / sqrt(fp[a]), by the table of `transcendental`."""
    fp[dst] = reciprocal_sqrt(fp[a])


@instruction(opcode=0x46, unit=Unit.SCALAR, op_class=OpClass.SCALAR_MOVE, operands=_UNARY, reads=_ONE, writes=_RESULT)
def s_mov_fp(fp, dst, a):
    """fp[dst] := fp[a]."""
    fp[dst] = fp[a]


@instruction(
    opcode=0x47,
    unit=Unit.SCALAR,
    op_class=OpClass.SCALAR_MOVE,
    operands={"dst": INT, "value": unsigned(31)},
    writes=(touch("dst", 1),),
)
def s_set_int(integer, dst, value):
    """integer[dst] := value."""
    integer[dst] = value


@instruction(opcode=0x48, unit=Unit.SCALAR, op_class=OpClass.LANE_MOVE,
             operands={"dst": VECTOR, "a": FP, "n": unsigned(16)},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),))  # fmt: skip
def s_map_v_fp(vector, fp, dst, a, n):
    """vector[dst] := fp[a], n consecutive entries of FP SRAM rounded to BF16."""
    for i in range(n):
        vector[dst + i] = round_bf16(np.float32(fp[a + i]))


@instruction(opcode=0x49, unit=Unit.SCALAR, op_class=OpClass.SCALAR, operands=_UNARY, reads=_ONE, writes=_RESULT)
def s_log2_fp(fp, dst, a):
    """fp[dst] := log2 of fp[a], by the table of `transcendental`; -127 of zero."""
    fp[dst] = logarithm2(fp[a])
