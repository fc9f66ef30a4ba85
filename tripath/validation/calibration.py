"""Costs of NumPy's primitives on this CPU, as a device. The sizes differ from those of the phases that it predicts."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean as mean_of
from typing import NamedTuple, TypeVar

import numpy as np

from dllm.devices import Device
from dllm.devices.numpy_graph import first_pass

SOURCE = "measured by experiment=validate_host: CPU time of one thread, smallest of the repeats"
GEMM_ROWS, GEMM_K, GEMM_N = (96, 384), 768, 768
"""Products that share the copying of weights, so their difference is operations alone."""
PACKED_ROWS, PACKED_K = 12, (256, 768, 1024)
"""Rows of a skinny product, whose time beyond its operations is the copying of weights, and widths that are taken together
(multiples of 256: such rows compete for the same lines of a cache, and a byte of 640 columns costs a fifth less)."""
PACKED_BYTES = (2.0e6, 8.0e6, 20.0e6, 44.0e6, 80.0e6)
"""One matrix, used again and again: in a private cache, in a shared one, beyond it. What comes round in turn is lost all at once
where a cache is too small by a little, so points stand close around 32 MiB."""
REPACKED_K = (768, 1024)
"""Widths that BLAS copies in several passes over the rows (`numpy_graph.PASS_WIDTH`)."""
REPACKED_BYTES = (1.5e6, 4.0e6, 10.0e6, 25.0e6)
"""Matrices that together have the largest of PACKED_BYTES: what a pass costs where the one before left this matrix alone."""
ATTENTION = (64, 160, 12, 64)
"""Rows, keys, heads and head_dim of the contractions: keys that fill a private cache, as those of a canvas do."""
ELEMENTS = tuple(3 << power for power in range(9, 22, 2))
"""Sizes of elementwise calls, 1.5 K to 6.3 M elements."""
NARROW, WIDE, LONG = (16384, 12), (192, 1024), (6, 32768)
"""Arrays of equal size: what a row costs beyond its elements."""
PAGE = 4096
CALLS = 200
BETWEEN = 16384
"""Elements of the array that is passed over between two calls; with the result more than the first cache of data holds."""

COLD_CALLS = 7
"""Calls of NumPy that run together, cold and not: two products, a sum, a mean (a sum, a quotient), a split (two views)."""
STREAMED = 2 << 20
"""Elements of an array, 8 MB, that is passed over before cold calls, as weights are between two operators."""

Kernel = Callable[[], object]


@dataclass(frozen=True, slots=True)
class After:
    """A kernel whose `before` runs ahead of it each time, untimed."""

    before: Kernel
    call: Kernel

    def __call__(self) -> object:
        """The timed call."""
        return self.call()


Name = TypeVar("Name", bound=Hashable)
PLACES = (16, 2064)
"""Bytes, modulo a page, by which one array lies behind another: as malloc puts arrays of whole pages, and half a page further. An
exponential takes a quarter longer at the first: its stores and loads seem to meet. Both occur, so their mean counts."""
ARRAYS = {"pass": 3, "exp": 2, "sum": 1, "max": 1, "argmax": 1}
"""Elementwise kernels, and the arrays that each touches."""


class Clocked(NamedTuple):
    """Seconds of a call: CPU time of the thread, and on the wall."""

    cpu: float
    wall: float


def sampled(kernels: Mapping[Name, Kernel], repeats: int, into: dict[Name, list[Clocked]]) -> None:
    """Add the times of `repeats` calls of each kernel, after one that warms up."""
    for name, call in kernels.items():
        call()
        for _ in range(repeats):
            if isinstance(call, After):
                call.before()
            began, cpu_began = time.perf_counter(), time.thread_time()
            call()
            cpu, wall = time.thread_time() - cpu_began, time.perf_counter() - began
            into.setdefault(name, []).append(Clocked(cpu=cpu, wall=wall))


def kernels() -> Iterator[tuple[str, Kernel]]:
    """The primitives by name."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    square = normal(GEMM_N, GEMM_K)
    for rows in GEMM_ROWS:
        x = normal(rows, GEMM_K)
        yield f"gemm {rows}", lambda x=x: x @ square.T
    for k in PACKED_K:
        x = normal(PACKED_ROWS, k)
        # a matrix each, as the same bytes cost a tenth more or less from place to place
        matrices = {size: normal(packed_rows(size, k), k) for size in PACKED_BYTES}
        for size, w in matrices.items():
            yield f"pack {size:.0f} {k}", lambda x=x, w=w: x @ w.T
        for size in REPACKED_BYTES if k in REPACKED_K else ():
            n, largest = packed_rows(size, k), matrices[max(PACKED_BYTES)]
            parts = [largest[first : first + n] for first in range(0, packed_matrices(size) * n, n)]
            yield f"repack {size:.0f} {k}", lambda x=x, parts=parts: [x @ w.T for w in parts]
    r, s, h, d = ATTENTION
    q_RHD, k_SHD = normal(r, h, d), normal(s, h, d)
    p_HRS = np.einsum("rhd,shd->hrs", q_RHD, k_SHD)  # in the layout that einsum leaves
    yield "scores", lambda: np.einsum("rhd,shd->hrs", q_RHD, k_SHD)
    yield "mix", lambda: np.einsum("hrs,shd->rhd", p_HRS, k_SHD)
    tiny, narrow, wide = normal(4, 4), normal(*NARROW), normal(*WIDE)
    yield "call", lambda: [tiny * tiny for _ in range(CALLS)]
    yield "reduction", lambda: [tiny.sum(axis=-1, keepdims=True) for _ in range(CALLS)]
    sides, between = tiny[:, :1].copy(), (normal(BETWEEN), normal(BETWEEN))
    small: dict[str, Kernel] = {
        "nothing": lambda: None, "call": lambda: tiny * tiny, "broadcast": lambda: tiny * sides,
        "reduction": lambda: tiny.sum(axis=-1, keepdims=True), "mean": lambda: np.mean(tiny, axis=-1, keepdims=True),
        "split": lambda: np.split(tiny, [2], axis=-1),
    }  # fmt: skip
    passed = lambda: np.multiply(between[0], 2, out=between[1])  # noqa: E731  part of a kernel
    for name, call in small.items():
        yield f"{name} between", lambda call=call: [(passed(), call()) for _ in range(CALLS)]
    together = [call for name, call in small.items() if name != "nothing"]
    source, target = normal(STREAMED), normal(STREAMED)
    yield "together", After(lambda: [call() for call in together], lambda: [call() for call in together])
    yield "together cold", After(lambda: np.multiply(source, 2, out=target), lambda: [call() for call in together])
    low, high = wide[:, : WIDE[1] // 2], wide[:, WIDE[1] // 2 :]
    narrow_low, narrow_high = narrow[:, : NARROW[1] // 2], narrow[:, NARROW[1] // 2 :]
    yield "joined wide", lambda: np.concatenate([low, high], axis=-1)
    yield "joined narrow", lambda: np.concatenate([narrow_low, narrow_high], axis=-1)
    yield "reduced narrow", lambda: narrow.sum(axis=-1)
    yield "reduced wide", lambda: wide.sum(axis=-1)
    for shape in (NARROW, WIDE, LONG):
        values = wide.reshape(shape)
        column = values[:, :1].copy()
        yield f"broadcast {shape[1]}", lambda a=values, b=column: a * b
    yield "flat", lambda: wide.reshape(-1) * np.float32(2)
    yield "choice", lambda: np.where(wide >= 0, np.float32(1), wide)
    for size in ELEMENTS:
        for place in PLACES:
            values, other, result = behind_each_other(normal(size), place)
            yield f"pass {size} {place}", lambda a=values, b=other, c=result: np.multiply(a, b, out=c)
            yield f"exp {size} {place}", lambda a=values, c=other: np.exp(a, out=c)
        values = normal(size)
        yield f"sum {size}", lambda a=values: a.sum(axis=-1)
        yield f"max {size}", lambda a=values: a.max(axis=-1)
        yield f"argmax {size}", lambda a=values: a.argmax(axis=-1)


def behind_each_other(values: np.ndarray, place: int) -> list[np.ndarray]:
    """Three copies of `values`, each `place` bytes further in its page than the one before."""
    pages = -(-values.nbytes // PAGE)
    buffer = np.zeros((3 * pages + 5) * PAGE, np.uint8)
    first = -buffer.ctypes.data % PAGE
    copies = []
    for number in range(3):
        start = first + number * pages * PAGE + (number + 1) * place
        copies.append(buffer[start : start + values.nbytes].view(np.float32))
        copies[-1][:] = values
    return copies


def packed_rows(size: float, k: int) -> int:
    """Rows of a matrix of `k` columns that has about `size` bytes."""
    return round(size / (4 * k))


def packed_matrices(size: float) -> int:
    """Matrices of `size` bytes that have the largest of PACKED_BYTES."""
    return int(max(PACKED_BYTES) // size)


def device_of(seconds: Mapping[str, float]) -> Device:
    """The device whose primitives take `seconds`."""
    rows = GEMM_ROWS[1] - GEMM_ROWS[0]
    gemm = _positive(seconds[f"gemm {GEMM_ROWS[1]}"] - seconds[f"gemm {GEMM_ROWS[0]}"])
    r, s, h, d = ATTENTION
    contraction = 2.0 * r * s * h * d
    hot, hot_reduction = seconds["call"] / CALLS, seconds["reduction"] / CALLS
    call, broadcast, reduction, mean, split = (
        _positive((seconds[f"{name} between"] - seconds["nothing between"]) / CALLS)
        for name in ("call", "broadcast", "reduction", "mean", "split")
    )
    values = {
        "gemm_flops": 2.0 * rows * GEMM_K * GEMM_N / gemm, "scores_flops": contraction / seconds["scores"],
        "mix_flops": contraction / seconds["mix"], "call_seconds": call, "reduction_seconds": _positive(reduction - call),
        "mean_seconds": _positive(mean - reduction), "broadcast_seconds": _positive(broadcast - call), "split_seconds": split,
        "reduced_row_seconds": _positive(seconds["reduced narrow"] - seconds["reduced wide"]) / (NARROW[0] - WIDE[0]),
        "joined_row_seconds": _positive(seconds["joined narrow"] - seconds["joined wide"]) / (NARROW[0] - WIDE[0]),
        "cold_seconds": _positive(seconds["together cold"] - seconds["together"]) / COLD_CALLS,
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
    seconds = {**seconds, **{
        f"{name} {n}": mean_of(seconds[f"{name} {n} {place}"] for place in PLACES) for name in ("pass", "exp") for n in ELEMENTS
    }}  # fmt: skip
    for name, arrays in ARRAYS.items():
        fixed = hot_reduction if name in ("sum", "max") else hot
        curves[name] = [
            [4.0 * arrays * n, (4.0 * n * arrays if name == "pass" else n) / _positive(seconds[f"{name} {n}"] - fixed)]
            for n in ELEMENTS
        ]
    return Device(name="host", software="numpy", numbers=numbers, curves=curves)


def _packing(seconds: Mapping[str, float], flops: float) -> dict[str, list[list[float]]]:
    """Bytes of weights copied a second: over what comes round (`pack`), and in later passes over a matrix (`repack`)."""

    def copying(name: str, k: int, matrices: int, size: float) -> float:
        return _positive(
            seconds[f"{name} {size:.0f} {k}"] - 2.0 * PACKED_ROWS * k * packed_rows(size, k) * matrices / flops
        )

    pack = [
        [
            size,
            sum(4.0 * packed_rows(size, k) * k for k in PACKED_K) / sum(copying("pack", k, 1, size) for k in PACKED_K),
        ]
        for size in PACKED_BYTES
    ]
    largest, repack = max(PACKED_BYTES), []
    for size in REPACKED_BYTES:
        count, moved, spent = packed_matrices(size), 0.0, 0.0
        for k in REPACKED_K:
            share, copied = first_pass(k) / k, 4.0 * packed_rows(size, k) * k * count
            first = share * copied * copying("pack", k, 1, largest) / (4.0 * packed_rows(largest, k) * k)
            moved += (1 - share) * copied
            spent += copying("repack", k, count, size) - first
        repack.append([size, moved / _positive(spent)])
    return {"pack": pack, "repack": repack}


def _positive(seconds: float) -> float:
    """A difference of two measurements, kept above nothing."""
    return max(seconds, 1e-12)
