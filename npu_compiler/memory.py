"""The map of HBM: every tensor of a program, those that it writes first."""

import math
from collections.abc import Sequence

from dllm.constants import CONSTANTS
from dllm.model import ModelSpec
from dllm.operators import Role
from dllm.workload import Numerics, Workload
from npu.errors import CapacityError
from npu.formats import MX_BLOCK
from npu.hardware import HardwareConfig
from npu.program import Tensor
from npu.units import format_bytes
from npu_compiler.arrangement import Sampling
from npu_compiler.tiling import Tiling, smoothing_widths

HBM_ALIGNMENT_BYTES = 64


def format_of(role: Role, numerics: Numerics) -> str:
    """The format in which a weight is kept."""
    match role:
        case Role.MATRIX:
            return numerics.weights
        case Role.ROUTER:
            return numerics.router
        case Role.TABLE | Role.NORM | Role.BIAS:
            return "bf16"


def hbm_map(
    model: ModelSpec, workload: Workload, numerics: Numerics, tiling: Tiling, hardware: HardwareConfig
) -> tuple[Tensor, ...]:
    """Tensors in HBM, those that the program writes first."""
    batch, canvas, layers, hidden = workload.batch, tiling.canvas, model.layers, model.hidden
    groups, tokens, size = tiling.cache_tokens // tiling.token_block, tiling.token_block, numerics.block_size

    def cache(side: str) -> tuple[str, tuple[int, ...], str, int, bool]:
        """A row for each token, or for each group of tokens a row for each channel."""
        by_token = numerics.axis_of(side) == "channels"
        rows = (tiling.cache_tokens, model.head_dim) if by_token else (groups, model.head_dim, tokens)
        return side, (layers, batch, model.kv_heads, *rows), numerics.kv, size if by_token else tokens, True

    logits = (batch, workload.block_length, model.vocab)
    measured, factors = bool(numerics.smoothing.measured), sum(smoothing_widths(model, numerics.smoothing))
    rows: list[tuple[str, tuple[int, ...], str, int, bool]] = [
        ("tokens", (batch, canvas), "int32", 1, True),
        ("x", (batch, canvas, hidden), "bf16", MX_BLOCK, True),
        ("q", (batch, canvas, model.query_width), "bf16", MX_BLOCK, True),
        cache("keys"),
        cache("values"),
        *([("kv_raw", (batch, canvas, 2 * model.kv_width), "bf16", MX_BLOCK, True)] if measured else []),
        *([("smoothing", (layers, batch, factors), "bf16", MX_BLOCK, measured)] if numerics.smoothing.sides else []),
        *(
            [("rotated_keys", (1, *cache("keys")[1][1:]), "bf16", MX_BLOCK, True)]
            if numerics.smoothing.pre_rope
            else []
        ),
        *([] if tiling.arrangement.fuses_sampling else [("logits", logits, numerics.logits, size, True)]),
        *([("remaining", (1, 1), "int32", 1, True)] if tiling.arrangement.sampling is Sampling.HOST else []),
        ("constants", (1, len(CONSTANTS)), "fp32", len(CONSTANTS), False),
        ("integers", (1, 2 + workload.block_length), "int32", 1, False),
        ("valid", (batch, canvas), "fp32", canvas, False),
        *([("inverse_tokens", (1, batch), "fp32", batch, False)] if numerics.smoothing.centres else []),
        *([("expert_scale", (1, 1), "fp32", 1, False)] if model.experts is not None else []),
        *([("edit_threshold", (1, 1), "fp32", 1, False)] if workload.edits else []),
        *([("entropy", (1, 2), "fp32", 2, False)] if workload.commits.measures_entropy else []),
        *([("noise_scale", (1, 1), "fp32", 1, False)] if workload.temperature else []),
        *([("hadamard", (model.head_dim,) * 2, "bf16", MX_BLOCK, False)] if numerics.smoothing.mixed else []),
        ("mask", (batch, tiling.cache_tokens), "bf16", MX_BLOCK, False),
        *([("edge", (1, 2 * tiling.cache_tokens), "bf16", MX_BLOCK, False)] if workload.caches.appends else []),
        ("rope", (batch, canvas, model.turned_channels), "bf16", math.gcd(model.turned_channels, MX_BLOCK), False),
    ]
    for stored in model.network.weights():
        weight, on_array = stored.weight, stored.weight.role.on_array
        alone = weight.shape if len(weight.shape) > 1 else (1, *weight.shape)
        shape = alone if stored.layers is None else (len(stored.layers), *weight.shape)
        block = size if on_array else math.gcd(shape[-1], MX_BLOCK)
        rows.append((stored.name, shape, format_of(weight.role, numerics), block, False))
    tensors, address = [], 0
    for name, shape, fmt, size, writable in rows:
        tensor = Tensor(name=name, address=address, shape=shape, format=fmt, block=size, writable=writable)
        tensors.append(tensor)
        address += -(-tensor.size_bytes // HBM_ALIGNMENT_BYTES) * HBM_ALIGNMENT_BYTES
    check_capacity(tensors, hardware)
    return tuple(tensors)


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
