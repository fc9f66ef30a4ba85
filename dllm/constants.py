"""The numbers that a program finds in FP SRAM: their names for the compiler, their values for who fills HBM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dllm.model import ModelSpec
from dllm.operators import GELU_CUBIC, GELU_SLOPE, Activation
from dllm.workload import Workload

LOWEST = -float.fromhex("0x1.fep127")
"""The lowest finite BF16: the score of a key of padding, and an initial maximum."""
HIDDEN = -(2.0**100)
"""Added to the score of a key that a row does not see; the sum with LOWEST is still a finite BF16."""
SMALLEST_SHARE = 2.0**-14
"""A channel's maximum counts as this share of its head's at least, so that a dead channel has a finite factor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The facts that constants depend on; `alpha` is the exponent of the smoothing factors."""

    model: ModelSpec
    workload: Workload
    alpha: float


CONSTANTS: Mapping[str, Callable[[Facts], float]] = {
    "zero": lambda _: 0.0,
    "lowest": lambda _: LOWEST,
    "one": lambda _: 1.0,
    "minus_one": lambda _: -1.0,
    "inverse_hidden": lambda facts: 1.0 / facts.model.hidden,
    "epsilon": lambda facts: facts.model.rms_eps,
    "attention_scale": lambda facts: facts.model.scores_scale,
    "threshold": lambda facts: facts.workload.threshold,
    "alpha": lambda facts: facts.alpha,
    "inverse_head_dim": lambda facts: 1.0 / facts.model.head_dim,
    "smallest_share": lambda _: SMALLEST_SHARE,
}
"""By name, in the order in which they lie in HBM and in FP SRAM."""


def further_constants(model: ModelSpec) -> dict[str, float]:
    """The numbers that only some models need, in the order in which they lie in HBM and in FP SRAM."""
    found: dict[str, float] = {}
    match model.gating:
        case Activation.SILU:
            pass
        case Activation.GELU_TANH:
            found |= {"gelu_cubic": GELU_CUBIC, "gelu_slope": GELU_SLOPE, "half": 0.5}
    if model.embedding_scale != 1:
        found["embedding_scale"] = model.embedding_scale
    if model.logit_softcap is not None:
        found |= {"inverse_softcap": 1 / model.logit_softcap, "softcap": model.logit_softcap}
    if model.experts is not None and model.experts.router_norm:
        found["router_scale"] = model.hidden**-0.5
    if model.full_layers is not None and model.full_layers.head_dim != model.head_dim:
        found["inverse_full_head_dim"] = 1 / model.full_layers.head_dim
    return found
