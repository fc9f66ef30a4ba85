"""The map of HBM: every tensor of a program, those that it writes first."""

from dllm.constants import CONSTANTS
from dllm.model import ModelSpec
from dllm.operators import Role
from dllm.workload import Numerics, Workload
from npu.errors import CapacityError
from npu.formats import MX_BLOCK
from npu.hardware import HardwareConfig
from npu.program import Tensor
from npu.units import format_bytes
from npu_compiler.tiling import Tiling, smoothing_widths

HBM_ALIGNMENT_BYTES = 64


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
        ("logits", (batch, workload.block_length, model.vocab), numerics.logits, size, True),
        ("constants", (1, len(CONSTANTS)), "fp32", len(CONSTANTS), False),
        ("integers", (1, 2 + workload.block_length), "int32", 1, False),
        ("valid", (batch, canvas), "fp32", canvas, False),
        *([("inverse_tokens", (1, batch), "fp32", batch, False)] if numerics.smoothing.centres else []),
        *([("hadamard", (model.head_dim,) * 2, "bf16", MX_BLOCK, False)] if numerics.smoothing.mixed else []),
        ("mask", (batch, tiling.cache_tokens), "bf16", MX_BLOCK, False),
        *([("edge", (1, 2 * tiling.cache_tokens), "bf16", MX_BLOCK, False)] if workload.caches.appends else []),
        ("rope", (batch, canvas, model.turned_channels), "bf16", MX_BLOCK, False),
    ]
    for stored in model.network.weights():
        weight, on_array = stored.weight, stored.weight.role is Role.MATRIX
        alone = weight.shape if len(weight.shape) > 1 else (1, *weight.shape)
        shape = alone if stored.layers is None else (len(stored.layers), *weight.shape)
        rows.append(
            (stored.name, shape, numerics.weights if on_array else "bf16", size if on_array else MX_BLOCK, False)
        )
    tensors, address = [], 0
    for name, shape, fmt, size, writable in rows:
        tensor = Tensor(name=name, address=address, shape=shape, format=fmt, block=size, writable=writable)
        tensors.append(tensor)
        address += -(-tensor.size_bytes // HBM_ALIGNMENT_BYTES) * HBM_ALIGNMENT_BYTES
    if address > hardware.hbm.capacity_bytes:
        raise CapacityError(
            f"hardware.hbm.capacity_bytes: weights, cache and activations need {format_bytes(address)}, limit "
            f"{format_bytes(hardware.hbm.capacity_bytes)} (hardware {hardware.name})"
        )
    return tuple(tensors)
