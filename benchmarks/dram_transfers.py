"""Measures the cost model of single descriptors: `python benchmarks/dram_transfers.py` prints the tables of docs/dram.md.

1. Sequences of descriptors: the sum of `occupied` (and the latency of the last) against all their bursts in one run of the burst
   model; without refresh, and with refresh per transfer against refresh by the clock.
2. The FPGA-calibrated prefetch table of the reference NPU against the burst model.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from cycle.dram import CLOSED, FOREIGN, all_banks, memory_of, stream
from cycle.transfers import bursts_of, dma_memory_of, transfer
from npu.hardware import Hbm
from tripath.command.composition import compose_experiment

KIB, HEADS = 1024, 32
FPGA_NS = {64: {8: 79, 32: 37, 128: 32}, 1024: {8: 9998, 32: 2657, 128: 692}, 2048: {8: 39507, 32: 10004, 128: 2632}}
"""Nanoseconds to prefetch a square tile of E4M3 blocks of 8, by its side and the number of channels (facts/npu.md)."""

FPGA_CYCLES = {"nCL": 7, "nRCDRD": 7, "nRCDWR": 7, "nRP": 7, "nRAS": 17, "nRC": 24, "nFAW": 15}
"""HBM2 timings published with that table; nRC is nRAS + nRP here (19 there, which no bank could keep)."""

Descriptor = tuple[int, int, int, int, int]
"""rows, size, stride, address, write."""


def sequences(channels: int) -> Iterator[tuple[str, list[Descriptor]]]:
    """Named descriptor sequences as an NPU issues them; HEADS heads share a row of the K cache, so tiles of one are strided."""
    for kib in (1, 2, 4, 8, 16, 64):
        size = kib * KIB
        yield f"weight panels, {kib} KiB", [(1, size, size, i * size, 0) for i in range(channels * KIB // kib)]
    panel = 32 * 2176
    yield "weight panels, 32 x 2,176 B", [(32, 2176, 2176, i * panel, 0) for i in range(16 * channels)]
    for row, stride in ((33, 2112), (68, 2176), (132, 4224), (136, 4352)):
        for keys in (32, 64):
            tiles = range(512 // keys)
            yield (
                f"K tiles, {keys} x {row} B every {stride:,} B",
                [(keys, row, stride, head * row + tile * keys * stride, 0) for head in range(HEADS) for tile in tiles],
            )
    yield (
        "V tiles, 2 x 4,224 B every 135,168 B",
        [(2, 4224, 135168, head * 4224 + tile * 2 * 135168, 0) for head in range(HEADS) for tile in range(8)],
    )
    yield "K rows written, 4,224 B", [(1, 4224, 4224, i * 4224, 1) for i in range(128 * channels)]
    draw = np.random.default_rng(7)
    for kib in (2, 8):
        places = draw.integers(0, 1 << 28, 256) // 32 * 32
        yield f"anywhere, {kib} KiB", [(1, kib * KIB, kib * KIB, int(place), 0) for place in places]


def compare(hbm: Hbm, table: Table, name: str) -> None:
    """One row for each sequence."""
    memory = dma_memory_of(hbm)
    by_clock = memory_of(dataclasses.replace(hbm, refresh="absolute"))
    start = all_banks(FOREIGN, by_clock)
    cost_of = functools.lru_cache(maxsize=None)(lambda *descriptor: transfer(*descriptor, memory))
    for label, descriptors in sequences(hbm.channels):
        costs = [
            cost_of(rows, size, stride, address % hbm.burst_bytes, write)
            for rows, size, stride, address, write in descriptors
        ]
        runs = [
            (1, rows * size, size) if size == stride else (rows, size, stride) for rows, size, stride, *_ in descriptors
        ]
        bursts = np.concatenate(
            [bursts_of(*run, row[3], hbm.burst_bytes) for run, row in zip(runs, descriptors, strict=True)]
        )
        kinds = np.full(len(bursts), descriptors[0][4])
        whole, refreshed = (stream(bursts, kinds, each, start).cycles for each in (memory.memory, by_clock))
        alone = sum(cost.occupied - cost.refresh_cycles for cost in costs) + costs[-1].latency
        charged = sum(cost.occupied for cost in costs) + costs[-1].latency
        interval = hbm.timings["nREFI"]
        ideal = sum(cost.ideal for cost in costs)
        table.add_row(
            name, label, f"{len(costs)}", f"{ideal / whole:.0%}", f"{whole:,}", f"{alone:,}", f"{alone / whole - 1:+.1%}",
            f"{refreshed:,}", f"{charged:,}", f"{charged / refreshed - 1:+.1%}" if whole > 2 * interval else "(too short)",
        )  # fmt: skip


def prefetches(hbm2: Hbm, table: Table) -> None:
    """The FPGA's table. Assumed: a channel there is one pseudo channel (its 1024 x 1024 tiles run at 14.7 of 16 B/ns);
    a tile is contiguous and its 9 bytes for 8 elements lie together; banks closed before, refresh by the clock."""
    published = {**hbm2.timings, **FPGA_CYCLES}
    for side, times in FPGA_NS.items():
        size = side * side * 9 // 8
        bursts = bursts_of(1, size, size, 0, hbm2.burst_bytes)
        for channels, measured in times.items():
            cells = []
            for timings in (hbm2.timings, published):
                hbm = dataclasses.replace(hbm2, channels=channels // 2, timings=timings, refresh="absolute")
                memory = memory_of(hbm)
                cycles = stream(bursts, np.zeros(len(bursts), np.int64), memory, all_banks(CLOSED, memory)).cycles
                cells += [f"{cycles * hbm.tck_ps / 1000:,.0f}", f"{cycles * hbm.tck_ps / 1000 / measured - 1:+.0%}"]
            table.add_row(f"{side} x {side}", str(channels), f"{measured:,}", *cells)


def main() -> None:
    """Print both tables."""
    small, large = (compose_experiment(f"hardware={name}").hardware.hbm for name in ("npu_small", "npu_datacenter"))
    heads = ["hardware", "descriptors", "number", "peak", "one run", "sum", "error", "by the clock", "sum", "error"]
    transfers = Table(*heads, title="descriptors one by one against all bursts in one run (memory cycles)")
    compare(small, transfers, "npu_small")
    compare(large, transfers, "npu_datacenter")
    fpga = Table("tile", "channels", "FPGA ns", "hbm2 ns", "error", "published timings ns", "error", title="prefetch")
    prefetches(small, fpga)
    console = Console(width=150)
    console.print(transfers)
    console.print(fpga)


if __name__ == "__main__":
    main()
