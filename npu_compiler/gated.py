"""Gated MLPs: activation(h W_gate^T) * (h W_up^T), then W_down, for the rows of a flow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dllm.operators import Activation
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.rows import segments, times
from npu_compiler.stages import Level, Place, Steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The weights of a gated MLP."""

    gate: str
    up: str
    down: str


DENSE = Names(gate="w_gate", up="w_up", down="w_down")
SOFT = Names(gate="soft_gate", up="soft_up", down="soft_down")


def gated_mlp(
    c: Context, flow: Flow, names: Names, width: int, inner: int, activation: Activation, expert: Level | None = None
) -> None:
    """Slices of gate and up stream to the lanes, which fill `inner`; then the projection back.

    Where the weights are of many experts below each other, `expert` counts them.
    """
    for first, count, lanes in segments(inner, c.tiling.ffn_slice):
        with c.e.loop(count) as part:
            _slice(c, flow, names, part, first, lanes, width, inner, activation, expert)
    c.project(flow, weights=names.down, outputs=width, inputs=inner, acts="inner", dst=flow.result,
              steps=[(expert, width)] if expert else ())  # fmt: skip
    flow.value = flow.result


def _slice(
    c: Context,
    flow: Flow,
    names: Names,
    part: Level,
    first: int,
    width: int,
    inputs: int,
    inner: int,
    activation: Activation,
    expert: Level | None,
) -> None:
    """Columns of the FFN: gate and up projections, then inner[:, slice] := activation(gate) * up on the vector unit."""
    e, rows_of = c.e, flow.rows
    apart = rows_of.size * c.tiling.ffn_slice
    of_expert = [(expert, inner)] if expert else []
    for name, weights in (("gate", names.gate), ("up", names.up)):
        c.project(flow, weights=weights, first_row=first, outputs=width, inputs=inputs, dst=name,
                  steps=[(part, width), *of_expert], slot_stride=apart)  # fmt: skip

    def places(rows: Steps) -> Mapping[str, Place]:
        steps = times(rows, width)
        return {
            "gate": c.vector("gate", 0, steps, slot_stride=apart), "up": c.vector("up", 0, steps, slot_stride=apart),
            "act": c.vector("act", 0, steps), "inner": c.vector("inner", first, [(part, width), *times(rows, inner)]),
        }  # fmt: skip

    each = e.one_by_one(lambda: rows_of.each(e), places)
    with e.stage(f"{activation.value}(gate) * up"):
        activate(c, each, activation, width)
    c.advance("gated")


def activate(c: Context, each: Callable[..., None], activation: Activation, width: int) -> None:
    """inner := activation(gate) * up for each row, `width` lanes at a time; `act` lies between."""
    match activation:
        case Activation.SILU:
            each("V_MUL_VF", dst="act", a="gate", scalar=c.fp("minus_one"), n=width)
            each("V_EXP_V", dst="act", a="act", n=width)
            each("V_ADD_VF", dst="act", a="act", scalar=c.fp("one"), n=width)
            each("V_RECI_V", dst="act", a="act", n=width)
            each("V_MUL_VV", dst="act", a="act", b="gate", n=width)
        case Activation.GELU_TANH:
            each("V_MUL_VV", dst="act", a="gate", b="gate", n=width)
            each("V_MUL_VF", dst="act", a="act", scalar=c.fp("gelu_cubic"), n=width)
            each("V_ADD_VF", dst="act", a="act", scalar=c.fp("one"), n=width)
            each("V_MUL_VV", dst="act", a="act", b="gate", n=width)
            each("V_MUL_VF", dst="act", a="act", scalar=c.fp("gelu_slope"), n=width)
            each("V_TANH_V", dst="act", a="act", n=width)
            each("V_ADD_VF", dst="act", a="act", scalar=c.fp("one"), n=width)
            each("V_MUL_VV", dst="act", a="act", b="gate", n=width)
            each("V_MUL_VF", dst="act", a="act", scalar=c.fp("half"), n=width)
    each("V_MUL_VV", dst="inner", a="act", b="up", n=width)
