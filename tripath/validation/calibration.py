"""What NumPy's primitives cost on this CPU, as a device: sizes here are others than those of the phases that it predicts."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from dllm.devices import Device

SOURCE = "measured by experiment=validate_host: CPU time of one thread, smallest of the repeats"
GEMM_ROWS, GEMM_K, GEMM_N = (96, 384), 768, 768
"""Products that share the copying of weights, so their difference is operations alone."""
PACKED_ROWS, PACKED_K, PACKED_N = 24, (256, 1024), 640
"""Rows of a skinny product, whose time beyond its operations is the copying of weights: bytes and rows, told apart by K
(multiples of 256, as a model's widths are: such rows compete for the same lines of a cache)."""
PACKED_BYTES = (2.0e6, 14.0e6, 96.0e6)
"""Weights in turn: what a private cache holds, what a shared one does, and more than either."""
ATTENTION = (100, 60, 6, 64)
"""Rows, keys, heads and head_dim of the contractions."""
ELEMENTS = tuple(3 << power for power in range(9, 22, 2))
"""Sizes of elementwise calls, 1.5 K to 6.3 M elements."""
NARROW, WIDE, LONG = (16384, 12), (192, 1024), (6, 32768)
"""Arrays of equal size: what a row costs beyond its elements."""
CALLS = 500

Kernel = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
ARRAYS = {"pass": 3, "exp": 2, "sum": 1, "max": 1, "argmax": 1}
"""Elementwise kernels, and the arrays that each touches."""


def sampled(kernels: Mapping[Name, Kernel], repeats: int, into: dict[Name, list[float]]) -> None:
    """Add the CPU seconds of the thread of `repeats` calls of each kernel, after one that warms up."""
    for name, call in kernels.items():
        call()
        for _ in range(repeats):
            began = time.thread_time()
            call()
            into.setdefault(name, []).append(time.thread_time() - began)


def kernels() -> Iterator[tuple[str, Kernel]]:
    """The primitives by name."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    w = normal(GEMM_N, GEMM_K)
    for rows in GEMM_ROWS:
        x = normal(rows, GEMM_K)
        yield f"gemm {rows}", lambda x=x: x @ w.T
    for size in PACKED_BYTES:
        for k in PACKED_K:
            x, matrices = normal(PACKED_ROWS, k), [normal(PACKED_N, k) for _ in range(packed_matrices(size, k))]
            yield f"pack {size:.0f} {k}", lambda x=x, ws=matrices: [x @ w.T for w in ws]
    r, s, h, d = ATTENTION
    q_RHD, k_SHD = normal(r, h, d), normal(s, h, d)
    p_HRS = np.einsum("rhd,shd->hrs", q_RHD, k_SHD)  # in the layout that einsum leaves
    yield "scores", lambda: np.einsum("rhd,shd->hrs", q_RHD, k_SHD)
    yield "mix", lambda: np.einsum("hrs,shd->rhd", p_HRS, k_SHD)
    tiny, narrow, wide = normal(4), normal(*NARROW), normal(*WIDE)
    yield "call", lambda: [tiny * tiny for _ in range(CALLS)]
    yield "reduction", lambda: [tiny.sum(axis=-1, keepdims=True) for _ in range(CALLS)]
    yield "mean", lambda: [np.mean(tiny, axis=-1, keepdims=True) for _ in range(CALLS)]
    yield "reduced narrow", lambda: narrow.sum(axis=-1)
    yield "reduced wide", lambda: wide.sum(axis=-1)
    for shape in (NARROW, WIDE, LONG):
        values = wide.reshape(shape)
        column = values[:, :1].copy()
        yield f"broadcast {shape[1]}", lambda a=values, b=column: a * b
    yield "flat", lambda: wide.reshape(-1) * np.float32(2)
    yield "choice", lambda: np.where(wide >= 0, np.float32(1), wide)
    for size in ELEMENTS:
        values = normal(size)
        other = values + 1
        yield f"pass {size}", lambda a=values, b=other: a * b
        yield f"exp {size}", lambda a=values: np.exp(a)
        yield f"sum {size}", lambda a=values: a.sum(axis=-1)
        yield f"max {size}", lambda a=values: a.max(axis=-1)
        yield f"argmax {size}", lambda a=values: a.argmax(axis=-1)


def packed_matrices(size: float, k: int) -> int:
    """Matrices of `k` columns that make about `size` bytes."""
    return max(1, round(size / (4 * PACKED_N * k)))


def device_of(seconds: Mapping[str, float]) -> Device:
    """The device whose primitives take `seconds`."""
    rows = GEMM_ROWS[1] - GEMM_ROWS[0]
    gemm = _positive(seconds[f"gemm {GEMM_ROWS[1]}"] - seconds[f"gemm {GEMM_ROWS[0]}"])
    r, s, h, d = ATTENTION
    contraction = 2.0 * r * s * h * d
    call, reduction, mean = (seconds[name] / CALLS for name in ("call", "reduction", "mean"))
    values = {
        "gemm_flops": 2.0 * rows * GEMM_K * GEMM_N / gemm, "scores_flops": contraction / seconds["scores"],
        "mix_flops": contraction / seconds["mix"], "call_seconds": call, "reduction_seconds": _positive(reduction - call),
        "mean_seconds": _positive(mean - reduction),
        "reduced_row_seconds": _positive(seconds["reduced narrow"] - seconds["reduced wide"]) / (NARROW[0] - WIDE[0]),
        "choice_seconds": seconds["choice"] / (WIDE[0] * WIDE[1]),
    }  # fmt: skip
    numbers: dict[str, dict[str, float | str]] = {
        name: {"value": value, "provenance": "derived", "source": SOURCE} for name, value in values.items()
    }
    numbers["board_watts"] = {"value": 10.0, "provenance": "assumed", "source": "a core of a server CPU and its share"}
    curves = _packing(seconds, values["gemm_flops"])
    curves["broadcast_row"] = [
        [4.0 * width, height / _positive(seconds[f"broadcast {width}"] - seconds["flat"])]
        for height, width in (NARROW, WIDE, LONG)
    ]
    for name, arrays in ARRAYS.items():
        fixed = reduction if name in ("sum", "max") else call
        curves[name] = [
            [4.0 * arrays * n, (4.0 * n * arrays if name == "pass" else n) / _positive(seconds[f"{name} {n}"] - fixed)]
            for n in ELEMENTS
        ]
    return Device(name="host", software="numpy", numbers=numbers, curves=curves)


def _packing(seconds: Mapping[str, float], flops: float) -> dict[str, list[list[float]]]:
    """Bytes and rows of weights copied a second, for each of PACKED_BYTES: two row lengths give two equations."""
    curves: dict[str, list[list[float]]] = {"pack": [], "pack_row": []}
    for size in PACKED_BYTES:
        short, long = (
            (seconds[f"pack {size:.0f} {k}"] / packed_matrices(size, k) - 2.0 * PACKED_ROWS * k * PACKED_N / flops)
            / PACKED_N
            for k in PACKED_K
        )
        byte = _positive((long - short) / (4 * (PACKED_K[1] - PACKED_K[0])))
        curves["pack"].append([size, 1 / byte])
        curves["pack_row"].append([size, 1 / _positive(short - 4 * PACKED_K[0] * byte)])
    return curves


def _positive(seconds: float) -> float:
    """A difference of two measurements, kept above nothing."""
    return max(seconds, 1e-12)
