"""The map of HBM: every tensor of a program, those that it writes first."""

import math
from collections.abc import Sequence

from dllm.constants import CONSTANTS, further_constants
from dllm.model import Geometry, ModelSpec
from dllm.numerics import Numerics
from dllm.weights import Role
from dllm.workload import Workload
from npu.errors import CapacityError
from npu.formats import MX_BLOCK
from npu.hardware import HardwareConfig
from npu.program import Tensor
from npu.units import format_bytes
from npu_compiler.arrangement import Sampling
from npu_compiler.tiling import Tiling, smoothing_widths

HBM_ALIGNMENT_BYTES = 64
BEFORE_X = "before_x"
"""The tensor that ends where `x` begins: zeros in place of the row before the first, where a block begins there and logits are
those of the row before."""


def format_of(role: Role, numerics: Numerics) -> str:
    """The format in which a weight is kept."""
    match role:
        case Role.MATRIX | Role.MIXTURE:
            return numerics.weights
        case Role.ROUTER:
            return numerics.router
        case Role.SCALAR:
            return "fp32"
        case Role.TABLE | Role.NORM | Role.BIAS:
            return "bf16"


def layers_of(model: ModelSpec, geometry: Geometry) -> int:
    """Layers whose attention is of this kind."""
    return sum(len(layers) for group, layers in model.network.numbered() if group.geometry == geometry.name)


def hbm_map(
    model: ModelSpec, workload: Workload, numerics: Numerics, tiling: Tiling, hardware: HardwareConfig
) -> tuple[Tensor, ...]:
    """Tensors in HBM, those that the program writes first."""
    batch, canvas, layers, hidden = workload.forwarded_sequences, tiling.canvas, model.layers, model.hidden
    groups, tokens, size = tiling.cache_tokens // tiling.token_block, tiling.token_block, numerics.block_size

    def cache(side: str, of: Geometry = model.geometry) -> tuple[str, tuple[int, ...], str, int, bool]:
        """A row for each token, or for each group of tokens a row for each channel."""
        by_token, own = numerics.axis_of(side) == "channels", layers_of(model, of)
        rows = (tiling.cache_tokens, of.head_dim) if by_token else (groups, of.head_dim, tokens)
        return of.tensor(side), (own, batch, of.kv_heads, *rows), numerics.kv, size if by_token else tokens, True

    logits, further = (batch, workload.block_length, model.vocab), len(further_constants(model))
    steps, windows = workload.steps_per_block, tiling.window_elements(model.geometries)
    measured, factors = bool(numerics.smoothing.measured), sum(smoothing_widths(model, numerics.smoothing))
    rows: list[tuple[str, tuple[int, ...], str, int, bool]] = [
        ("tokens", (batch, canvas), "int32", 1, True),
        *([(BEFORE_X, (1, hidden), "bf16", MX_BLOCK, False)] if model.shifted_logits and not tiling.prompt else []),
        ("x", (batch, canvas, hidden), "bf16", MX_BLOCK, True),
        ("q", (batch, canvas, max(each.query_width for each in model.geometries)), "bf16", MX_BLOCK, True),
        *(cache(side, each) for each in model.geometries for side in ("keys", "values")),
        *([("kv_raw", (batch, canvas, 2 * model.kv_width), "bf16", MX_BLOCK, True)] if measured else []),
        *([("smoothing", (layers, batch, factors), "bf16", MX_BLOCK, measured)] if numerics.smoothing.sides else []),
        *(
            [("rotated_keys", (1, *cache("keys")[1][1:]), "bf16", MX_BLOCK, True)]
            if numerics.smoothing.pre_rope
            else []
        ),
        *([] if tiling.arrangement.fuses_sampling else [("logits", logits, numerics.logits, size, True)]),
        *([("remaining", (1, 1), "int32", 1, True)] if tiling.arrangement.sampling is Sampling.HOST else []),
        *(_staying(model, numerics, (1, batch * canvas)) if tiling.arrangement.weights_stay else []),
        *([("soft", (batch, canvas, hidden), "bf16", MX_BLOCK, True)] if model.self_conditioning else []),
        ("constants", (1, len(CONSTANTS)), "fp32", len(CONSTANTS), False),
        ("integers", (1, 2 + workload.block_length), "int32", 1, False),
        ("valid", (batch, canvas), "fp32", canvas, False),
        *([("inverse_tokens", (1, batch), "fp32", batch, False)] if numerics.smoothing.centres else []),
        *([("further_constants", (1, further), "fp32", further, False)] if further else []),
        *([("expert_scale", (1, 1), "fp32", 1, False)] if model.experts is not None else []),
        *([("edit_threshold", (1, 1), "fp32", 1, False)] if workload.edits else []),
        *([("entropy", (1, 2), "fp32", 2, False)] if workload.commits.measures_entropy else []),
        *([("coolness", (1, steps), "fp32", steps, False)] if workload.is_uniform else []),
        *([("stop_entropy", (1, 1), "fp32", 1, False)] if workload.stop_entropy is not None else []),
        *([("guidance", (1, 1), "fp32", 1, False)] if workload.guided else []),
        *([("noise_scale", (1, 1), "fp32", 1, False)] if workload.temperature else []),
        *([("hadamard", (model.head_dim,) * 2, "bf16", MX_BLOCK, False)] if numerics.smoothing.mixed else []),
        ("mask", (batch, tiling.cache_tokens), "bf16", MX_BLOCK, False),
        *([("window", (1, windows), "bf16", MX_BLOCK, False)] if windows else []),
        *([("edge", (1, 2 * tiling.cache_tokens), "bf16", MX_BLOCK, False)] if workload.caches.appends else []),
        *(
            (
                each.tensor("rope"),
                (batch, canvas, each.turned_channels),
                "bf16",
                math.gcd(each.turned_channels, MX_BLOCK),
                False,
            )
            for each in model.geometries
        ),
    ]
    for stored in model.network.weights():
        weight, on_array = stored.weight, stored.weight.role.on_array
        alone = weight.shape if len(weight.shape) > 1 else (1, *weight.shape)
        shape = alone if stored.layers is None else (len(stored.layers), *weight.shape)
        if weight.role is Role.MIXTURE:  # slice by slice, so that what a slice contracts lies together
            shape = (-(-math.prod(weight.shape) // (hidden * tiling.slice)), hidden, tiling.slice)
        block = size if on_array else math.gcd(shape[-1], MX_BLOCK)
        rows.append((stored.name, shape, format_of(weight.role, numerics), block, False))
    tensors, address = [], 0
    for name, shape, fmt, size, writable in rows:
        tensor = Tensor(name=name, address=address, shape=shape, format=fmt, block=size, writable=writable)
        tensors.append(tensor)
        address += -(-tensor.size_bytes // HBM_ALIGNMENT_BYTES) * HBM_ALIGNMENT_BYTES
    check_capacity(tensors, hardware)
    return tuple(tensors)


def _staying(
    model: ModelSpec, numerics: Numerics, rows: tuple[int, int]
) -> list[tuple[str, tuple[int, ...], str, int, bool]]:
    """Tensors of the rows that pass projections whose weights stay: the activations of all rows in the format of the array, those
    between the two projections of an FFN, and results."""
    widest, size = max(model.hidden, *(each.query_width for each in model.geometries)), numerics.block_size
    results = max(model.hidden, *(each.qkv_width for each in model.geometries))
    return [
        ("passing", (*rows, widest), numerics.activations, size, True),
        ("passing_inner", (*rows, model.ffn), numerics.activations, size, True),
        ("results", (*rows, results), "bf16", MX_BLOCK, True),
    ]


def check_capacity(tensors: Sequence[Tensor], hardware: HardwareConfig) -> None:
    """Refuse tensors that HBM does not hold: a program depends on no capacity, so jobs that share one ask this each.

    Raises:
        CapacityError: naming what they need and what there is.
    """
    needed, limit = max((each.address + each.size_bytes for each in tensors), default=0), hardware.hbm.total_bytes
    if needed > limit:
        raise CapacityError(
            f"hardware.hbm.channels: weights, cache and activations need {format_bytes(needed)}, limit {format_bytes(limit)} "
            f"({hardware.hbm.channels} channels of {hardware.hbm.generation}, hardware {hardware.name})"
        )
