"""The vector unit: rows of at most VLEN lanes, computed in FP32 and rounded to BF16.

Vector SRAM is held as float32 whose values are BF16. A reduction is a fixed pairwise tree: lane i meets lane i + n/2,
n halving from the power of two at or above the active length, absent lanes being the neutral element.
"""

import numpy as np
from numba import njit

from npu.formats.rounding import round_bf16
from npu.isa.spec import FP, INDEX, INT, VECTOR, VECTOR_ROWS, OpClass, Unit, instruction, touch, unsigned
from npu.isa.threefry import below, gumbel2, random_word, uniform
from npu.isa.transcendental import exponential, hyperbolic_tangent, logarithm2, power_of_two, reciprocal

N = unsigned(16)


@njit(cache=True)
def tree_sum(values):
    """Sum by the fixed tree; `values` (float32, [n]) is overwritten."""
    count = values.size
    width = 1
    while width < count:
        width *= 2
    while width > 1:
        width //= 2
        for i in range(min(width, count - width)):
            values[i] = values[i] + values[width + i]
        count = min(count, width)
    return values[0]


@instruction(opcode=0x20, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "b": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("b", "n")), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_add_vv(vector, dst, a, b, n):
    """vector[dst] := vector[a] + vector[b]."""
    for i in range(n):
        vector[dst + i] = round_bf16(vector[a + i] + vector[b + i])


@instruction(opcode=0x21, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "b": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("b", "n")), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_mul_vv(vector, dst, a, b, n):
    """vector[dst] := vector[a] * vector[b]."""
    for i in range(n):
        vector[dst + i] = round_bf16(vector[a + i] * vector[b + i])


@instruction(opcode=0x22, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "b": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("b", "n")), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_max_vv(vector, dst, a, b, n):
    """vector[dst] := max(vector[a], vector[b]); on 0/1 masks this is OR."""
    for i in range(n):
        vector[dst + i] = max(vector[a + i], vector[b + i])


@instruction(opcode=0x23, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "scalar": FP, "n": N},
             reads=(touch("a", "n"), touch("scalar", 1)), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_add_vf(vector, fp, dst, a, scalar, n):
    """vector[dst] := vector[a] + fp[scalar]."""
    for i in range(n):
        vector[dst + i] = round_bf16(vector[a + i] + fp[scalar])


@instruction(opcode=0x24, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "scalar": FP, "n": N},
             reads=(touch("a", "n"), touch("scalar", 1)), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_sub_vf(vector, fp, dst, a, scalar, n):
    """vector[dst] := vector[a] - fp[scalar]."""
    for i in range(n):
        vector[dst + i] = round_bf16(vector[a + i] - fp[scalar])


@instruction(opcode=0x25, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "scalar": FP, "n": N},
             reads=(touch("a", "n"), touch("scalar", 1)), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_mul_vf(vector, fp, dst, a, scalar, n):
    """vector[dst] := vector[a] * fp[scalar]."""
    for i in range(n):
        vector[dst + i] = round_bf16(vector[a + i] * fp[scalar])


@instruction(opcode=0x26, unit=Unit.VECTOR, op_class=OpClass.TRANSCENDENTAL,
             operands={"dst": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_exp_v(vector, dst, a, n):
    """vector[dst] := e^vector[a], by the table of `transcendental`."""
    for i in range(n):
        vector[dst + i] = round_bf16(exponential(vector[a + i]))


@instruction(opcode=0x27, unit=Unit.VECTOR, op_class=OpClass.TRANSCENDENTAL,
             operands={"dst": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_reci_v(vector, dst, a, n):
    """vector[dst] := 1 / vector[a], by the table of `transcendental`."""
    for i in range(n):
        vector[dst + i] = round_bf16(reciprocal(vector[a + i]))


@instruction(opcode=0x28, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE, operands={"dst": VECTOR, "scalar": FP, "n": N},
             reads=(touch("scalar", 1),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_fill_vf(vector, fp, dst, scalar, n):
    """vector[dst] := fp[scalar] in every lane."""
    for i in range(n):
        vector[dst + i] = round_bf16(fp[scalar])


@instruction(opcode=0x29, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "table": VECTOR, "n": N, "head_dim": unsigned(12)},
             reads=(touch("a", "n"), touch("table", "head_dim")), writes=(touch("dst", "n"),),
             lanes=lambda o: o["n"], legal=lambda o: o["head_dim"] > 0 and o["n"] % o["head_dim"] == 0)  # fmt: skip
def v_rope_v(vector, dst, a, table, n, head_dim):
    """vector[dst] := rotary embedding of vector[a], head by head (half-head rotation).

    The table row holds head_dim / 2 cosines, then head_dim / 2 sines. With x1, x2 the halves of a head, the result is
    (x1 cos - x2 sin, x2 cos + x1 sin), each product and the sum in FP32, rounded once. dst may equal a.
    """
    half = head_dim // 2
    for head in range(n // head_dim):
        for i in range(half):
            low, high = vector[a + head * head_dim + i], vector[a + head * head_dim + half + i]
            cosine, sine = vector[table + i], vector[table + half + i]
            vector[dst + head * head_dim + i] = round_bf16(np.float32(low * cosine) - np.float32(high * sine))
            vector[dst + head * head_dim + half + i] = round_bf16(np.float32(high * cosine) + np.float32(low * sine))


@instruction(opcode=0x2A, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "b": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("b", "n")), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_sub_vv(vector, dst, a, b, n):
    """vector[dst] := vector[a] - vector[b]."""
    for i in range(n):
        vector[dst + i] = round_bf16(vector[a + i] - vector[b + i])


@instruction(opcode=0x2B, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "scalar": FP, "n": N},
             reads=(touch("a", "n"), touch("scalar", 1)), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_max_vf(vector, fp, dst, a, scalar, n):
    """vector[dst] := max(vector[a], fp[scalar])."""
    for i in range(n):
        vector[dst + i] = round_bf16(max(vector[a + i], fp[scalar]))


@instruction(opcode=0x2C, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "b": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("b", "n")), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_max_abs_vv(vector, dst, a, b, n):
    """vector[dst] := max(vector[a], |vector[b]|): a running maximum of absolute values."""
    for i in range(n):
        vector[dst + i] = max(vector[a + i], abs(vector[b + i]))


@instruction(opcode=0x2D, unit=Unit.VECTOR, op_class=OpClass.TRANSCENDENTAL,
             operands={"dst": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_log2_v(vector, dst, a, n):
    """vector[dst] := log2 of vector[a], by the table of `transcendental`; -127 of zero."""
    for i in range(n):
        vector[dst + i] = round_bf16(logarithm2(vector[a + i]))


@instruction(opcode=0x2E, unit=Unit.VECTOR, op_class=OpClass.TRANSCENDENTAL,
             operands={"dst": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_exp2_v(vector, dst, a, n):
    """vector[dst] := 2^vector[a], by the table of `transcendental`; exact for integers."""
    for i in range(n):
        vector[dst + i] = round_bf16(power_of_two(vector[a + i]))


@instruction(opcode=0x7D, unit=Unit.VECTOR, op_class=OpClass.TRANSCENDENTAL,
             operands={"dst": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_tanh_v(vector, dst, a, n):
    """vector[dst] := tanh of vector[a], by the table of `transcendental`."""
    for i in range(n):
        vector[dst + i] = round_bf16(hyperbolic_tangent(vector[a + i]))


@instruction(opcode=0x2F, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE, operands={"dst": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_round_v(vector, dst, a, n):
    """vector[dst] := the integer nearest to vector[a], ties to even."""
    for i in range(n):
        vector[dst + i] = np.rint(vector[a + i])


@instruction(opcode=0x30, unit=Unit.VECTOR, op_class=OpClass.REDUCE, operands={"dst": FP, "a": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("dst", 1)), writes=(touch("dst", 1),), lanes=lambda o: o["n"])  # fmt: skip
def v_red_max(vector, fp, dst, a, n):
    """fp[dst] := max(fp[dst], vector[a])."""
    for i in range(n):
        fp[dst] = max(fp[dst], vector[a + i])


@instruction(opcode=0x31, unit=Unit.VECTOR, op_class=OpClass.REDUCE_SUM, operands={"dst": FP, "a": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("dst", 1)), writes=(touch("dst", 1),), lanes=lambda o: o["n"])  # fmt: skip
def v_red_sum(vector, fp, dst, a, n):
    """fp[dst] += sum of vector[a], by the fixed tree in FP32."""
    fp[dst] = fp[dst] + tree_sum(vector[a : a + n].copy())


@instruction(opcode=0x4E, unit=Unit.VECTOR, op_class=OpClass.REDUCE_SUM,
             operands={"dst": VECTOR, "sum": FP, "a": VECTOR, "scalar": FP, "n": N},
             reads=(touch("a", "n"), touch("scalar", 1), touch("sum", 1)), writes=(touch("dst", "n"), touch("sum", 1)),
             lanes=lambda o: 3 * o["n"])  # fmt: skip
def v_exp_sum_vf(vector, fp, dst, sum, a, scalar, n):
    """vector[dst] := e^(vector[a] - fp[scalar]), and fp[sum] += its sum by the fixed tree in FP32; the difference and the
    exponential are rounded to BF16: the bits of V_SUB_VF, V_EXP_V and V_RED_SUM."""
    for i in range(n):
        vector[dst + i] = round_bf16(exponential(round_bf16(vector[a + i] - fp[scalar])))
    fp[sum] = fp[sum] + tree_sum(vector[dst : dst + n].copy())


@instruction(opcode=0x32, unit=Unit.VECTOR, op_class=OpClass.REDUCE_SUM, operands={"dst": FP, "a": VECTOR, "n": N},
             reads=(touch("a", "n"), touch("dst", 1)), writes=(touch("dst", 1),), lanes=lambda o: 2 * o["n"])  # fmt: skip
def v_red_sumsq(vector, fp, dst, a, n):
    """fp[dst] += sum of the squares of vector[a], by the fixed tree in FP32."""
    fp[dst] = fp[dst] + tree_sum(vector[a : a + n] * vector[a : a + n])


@instruction(opcode=0x33, unit=Unit.VECTOR, op_class=OpClass.REDUCE,
             operands={"best": FP, "place": INT, "a": VECTOR, "n": N, "first": INDEX},
             reads=(touch("a", "n"), touch("best", 1), touch("place", 1)),
             writes=(touch("best", 1), touch("place", 1)), lanes=lambda o: o["n"])  # fmt: skip
def v_red_max_idx(vector, fp, integer, best, place, a, n, first):
    """Running maximum with its index: where a lane exceeds fp[best] (strictly: the first wins), fp[best] := lane and
    integer[place] := first + lane number."""
    for i in range(n):
        if vector[a + i] > fp[best]:
            fp[best] = vector[a + i]
            integer[place] = first + i


@instruction(opcode=0x34, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE,
             operands={"dst": VECTOR, "a": VECTOR, "scalar": FP, "n": N},
             reads=(touch("a", "n"), touch("scalar", 1)), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_cmp_ge_vf(vector, fp, dst, a, scalar, n):
    """vector[dst] := 1 where vector[a] >= fp[scalar], else 0."""
    for i in range(n):
        vector[dst + i] = np.float32(1.0) if vector[a + i] >= fp[scalar] else np.float32(0.0)


@instruction(opcode=0x35, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE,
             operands={"dst": VECTOR, "a": INT, "key": INT, "n": N},
             reads=(touch("a", "n"), touch("key", 1)), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_cmp_eq_int(vector, integer, dst, a, key, n):
    """vector[dst] := 1 where integer[a] = integer[key], else 0."""
    for i in range(n):
        vector[dst + i] = np.float32(1.0) if integer[a + i] == integer[key] else np.float32(0.0)


@instruction(opcode=0x36, unit=Unit.VECTOR, op_class=OpClass.TOP_K,
             operands={"dst": VECTOR, "a": VECTOR, "mask": VECTOR, "count": INT, "n": N},
             reads=(touch("a", "n"), touch("mask", "n"), touch("count", 1)), writes=(touch("dst", "n"),),
             lanes=lambda o: o["n"])  # fmt: skip
def v_topk_mask(vector, integer, dst, a, mask, count, n):
    """vector[dst] := 1 at the integer[count] largest lanes of vector[a] among those with vector[mask] != 0, else 0.

    Ties go to the lowest lane. Where the mask has fewer lanes than asked for, all of them are chosen.
    """
    chosen = np.zeros(n, np.bool_)
    for _ in range(integer[count]):
        best = -1
        for i in range(n):
            eligible = vector[mask + i] != np.float32(0.0) and not chosen[i]
            if eligible and (best < 0 or vector[a + i] > vector[a + best]):
                best = i
        if best >= 0:
            chosen[best] = True
    for i in range(n):
        vector[dst + i] = np.float32(1.0) if chosen[i] else np.float32(0.0)


@instruction(opcode=0x37, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE,
             operands={"dst": INT, "mask": VECTOR, "on_true": INT, "on_false": INT, "n": N},
             reads=(touch("mask", "n"), touch("on_true", "n"), touch("on_false", "n")), writes=(touch("dst", "n"),),
             lanes=lambda o: o["n"])  # fmt: skip
def v_select_int(vector, integer, dst, mask, on_true, on_false, n):
    """integer[dst] := integer[on_true] where vector[mask] != 0, else integer[on_false]."""
    for i in range(n):
        source = on_true if vector[mask + i] != np.float32(0.0) else on_false
        integer[dst + i] = integer[source + i]


@instruction(opcode=0x38, unit=Unit.VECTOR, op_class=OpClass.REDUCE, operands={"dst": INT, "mask": VECTOR, "n": N},
             reads=(touch("mask", "n"), touch("dst", 1)), writes=(touch("dst", 1),), lanes=lambda o: o["n"])  # fmt: skip
def v_red_count(vector, integer, dst, mask, n):
    """integer[dst] += number of lanes with vector[mask] != 0."""
    for i in range(n):
        if vector[mask + i] != np.float32(0.0):
            integer[dst] += 1


@instruction(opcode=0x39, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE,
             operands={"dst": INT, "mask": VECTOR, "n": N},
             reads=(touch("mask", "n"), touch("dst", "n")), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_count_int(vector, integer, dst, mask, n):
    """integer[dst] += 1 in each lane with vector[mask] != 0: a counter for each lane."""
    for i in range(n):
        if vector[mask + i] != np.float32(0.0):
            integer[dst + i] += 1


@instruction(opcode=0x3A, unit=Unit.VECTOR, op_class=OpClass.REDUCE, operands={"dst": INT, "a": INT, "n": N},
             reads=(touch("a", "n"),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_scan_int(integer, dst, a, n):
    """integer[dst] := in each lane the sum of integer[a] over the lanes before it; dst may equal a."""
    total = 0
    for i in range(n):
        value = integer[a + i]
        integer[dst + i] = total
        total += value


@instruction(opcode=0x3B, unit=Unit.VECTOR, op_class=OpClass.TOP_K,
             operands={"list": INT, "ends": INT, "mask": VECTOR, "value": INDEX, "n": N, "size": N},
             reads=(touch("mask", "n"), touch("ends", "n")), writes=(touch("list", "size"), touch("ends", "n")),
             lanes=lambda o: o["n"])  # fmt: skip
def v_append_int(vector, integer, list, ends, mask, value, n, size):
    """In each lane with vector[mask] != 0: integer[list + integer[ends]] := value, and integer[ends] += 1.

    The list has `size` places; what would lie beyond is dropped.
    """
    for i in range(n):
        if vector[mask + i] != np.float32(0.0):
            place = integer[ends + i]
            if 0 <= place < size:
                integer[list + place] = value
            integer[ends + i] += 1


@njit(cache=True)
def listed(integer, list, start, rows, size):
    """The row number in a list of `size` places, at an offset that stands in Int SRAM; what is out of range is the nearest."""
    return min(max(integer[list + min(max(integer[start], 0), size - 1)], 0), rows - 1)


_LISTED = {"table": VECTOR_ROWS, "list": INT, "start": INT, "n": N, "rows": unsigned(16), "size": N}
_LIST = (touch("list", "size"), touch("start", 1))


@instruction(opcode=0x3C, unit=Unit.VECTOR, op_class=OpClass.LANE_MOVE, operands={"dst": VECTOR, **_LISTED},
             reads=(touch("table", "n", "rows"), *_LIST), writes=(touch("dst", "n"),), lanes=lambda o: o["n"],
             legal=lambda o: o["rows"] * o["size"] > 0)  # fmt: skip
def v_fetch_v(vector, integer, dst, table, table_stride, list, start, n, rows, size):
    """vector[dst] := a row of the `rows` at vector[table]: the one whose number is integer[list + integer[start]]."""
    source = table + listed(integer, list, start, rows, size) * table_stride
    for i in range(n):
        vector[dst + i] = vector[source + i]


@instruction(opcode=0x3D, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE, operands={"a": VECTOR, **_LISTED},
             reads=(touch("a", "n"), touch("table", "n", "rows"), *_LIST), writes=(touch("table", "n", "rows"),),
             lanes=lambda o: o["n"], legal=lambda o: o["rows"] * o["size"] > 0)  # fmt: skip
def v_add_at_v(vector, integer, a, table, table_stride, list, start, n, rows, size):
    """A row of the `rows` at vector[table] += vector[a]: the one whose number is integer[list + integer[start]]."""
    target = table + listed(integer, list, start, rows, size) * table_stride
    for i in range(n):
        vector[target + i] = round_bf16(vector[target + i] + vector[a + i])


@instruction(opcode=0x3E, unit=Unit.VECTOR, op_class=OpClass.REDUCE,
             operands={"picked": VECTOR, "left": VECTOR, "a": VECTOR, "n": N},
             reads=(touch("picked", "n"), touch("left", "n"), touch("a", "n")),
             writes=(touch("picked", "n"), touch("left", "n")), lanes=lambda o: o["n"])  # fmt: skip
def v_pick_v(vector, picked, left, a, n):
    """The largest lane of vector[a] with vector[left] != 0: vector[picked] := 1 there, vector[left] := 0; ties go to the lowest.

    One of the largest lanes at a time, for a few of them: the tree of V_RED_MAX_IDX, then a write of one lane.
    """
    best = -1
    for i in range(n):
        if vector[left + i] != np.float32(0.0) and (best < 0 or vector[a + i] > vector[a + best]):
            best = i
    if best >= 0:
        vector[picked + best] = np.float32(1.0)
        vector[left + best] = np.float32(0.0)


@instruction(opcode=0x3F, unit=Unit.VECTOR, op_class=OpClass.SYNC)
def v_sync():
    """Nothing but its semaphores: a token may be taken or given between two loops."""


@instruction(opcode=0x4A, unit=Unit.VECTOR, op_class=OpClass.RANDOM,
             operands={"dst": VECTOR, "key": INT, "entry": INDEX, "stream": INDEX, "n": N},
             reads=(touch("key", 2),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"])  # fmt: skip
def v_random_v(vector, integer, dst, key, entry, stream, n):
    """vector[dst] := random numbers between 0 and 1: Threefry-2x32-20 of the counter (entry + lane number, stream) under the key
    integer[key], integer[key + 1]; of its first word the 23 highest bits, and a half, over 2^23."""
    for i in range(n):
        vector[dst + i] = round_bf16(uniform(random_word(integer[key], integer[key + 1], entry + i, stream)))


@instruction(opcode=0x4D, unit=Unit.VECTOR, op_class=OpClass.RANDOM,
             operands={"dst": INT, "key": INT, "entry": INDEX, "stream": INDEX, "bound": unsigned(24), "n": N},
             reads=(touch("key", 2),), writes=(touch("dst", "n"),), lanes=lambda o: o["n"],
             legal=lambda o: o["bound"] > 0)  # fmt: skip
def v_random_int(integer, dst, key, entry, stream, bound, n):
    """integer[dst] := random integers below `bound`: of the word that V_RANDOM_V takes for a lane, times `bound`, the upper 32 of
    64 bits."""
    for i in range(n):
        integer[dst + i] = below(random_word(integer[key], integer[key + 1], entry + i, stream), bound)


@instruction(opcode=0x4B, unit=Unit.VECTOR, op_class=OpClass.REDUCE,
             operands={"best": FP, "place": INT, "a": VECTOR, "n": N, "first": INDEX, "scale": FP, "key": INT, "stream": INDEX},
             reads=(touch("a", "n"), touch("best", 2), touch("place", 1), touch("scale", 1), touch("key", 2)),
             writes=(touch("best", 2), touch("place", 1)), lanes=lambda o: 6 * o["n"])  # fmt: skip
def v_red_sample_idx(vector, fp, integer, best, place, a, n, first, scale, key, stream):
    """As V_RED_MAX_IDX of vector[a] * fp[scale] plus Gumbel noise, all in FP32; and fp[best + 1] := vector[a] of the lane that
    exceeds fp[best].

    The noise of a lane is -log2(-log2(1 - t)), t of the word that V_RANDOM_V takes for entry first + lane number
    (docs/numerics.md): with scale = log2(e) / T the index is drawn from softmax(a / T).
    """
    for i in range(n):
        noise = gumbel2(random_word(integer[key], integer[key + 1], first + i, stream))
        lane = np.float32(np.float32(vector[a + i] * fp[scale]) + noise)
        if lane > fp[best]:
            fp[best] = lane
            fp[best + 1] = vector[a + i]
            integer[place] = first + i


@instruction(opcode=0x4C, unit=Unit.VECTOR, op_class=OpClass.TOP_K,
             operands={"dst": VECTOR, "a": VECTOR, "mask": VECTOR, "budget": FP, "n": N},
             reads=(touch("a", "n"), touch("mask", "n"), touch("budget", 1)), writes=(touch("dst", "n"),),
             lanes=lambda o: o["n"])  # fmt: skip
def v_budget_mask(vector, fp, dst, a, mask, budget, n):
    """vector[dst] := 1 at the smallest lanes of vector[a] among those with vector[mask] != 0, else 0: in ascending order, as
    long as the FP32 sum of those taken before is not above fp[budget].

    Ties go to the lowest lane. The first one is always taken, unless the budget is negative.
    """
    chosen = np.zeros(n, np.bool_)
    total = np.float32(0.0)
    for _ in range(n):
        best = -1
        for i in range(n):
            eligible = vector[mask + i] != np.float32(0.0) and not chosen[i]
            if eligible and (best < 0 or vector[a + i] < vector[a + best]):
                best = i
        if best < 0 or total > fp[budget]:
            break
        chosen[best] = True
        total = np.float32(total + vector[a + best])
    for i in range(n):
        vector[dst + i] = np.float32(1.0) if chosen[i] else np.float32(0.0)
