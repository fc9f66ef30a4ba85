"""What the machine knows of HBM: a table of what each descriptor costs, filled when a descriptor is met for the first time.

A cost depends on the descriptor's shape, its direction and its address modulo a burst alone, so the machine looks it up;
`cycle.transfers` simulates the bursts, or the simple model multiplies.
"""

from fractions import Fraction

import numpy as np
from numba import njit

from cycle.state import BURST_BYTES, DMA_OUT, HBM_BYTES, HBM_ROWS, PLACE, QUEUE
from cycle.transfers import bursts_of, dma_memory_of, transfer
from npu.hardware import HardwareConfig

KNOWN, ROWS, SIZE, STRIDE, OFFSET, WRITE, BURSTS, DATA, ROW_CHANGES, REFRESHES, TAIL, COLUMNS = range(12)
"""Columns of the table: whether the line is taken; the key; bursts; cycles of the bus that move data, that banks and rows
cost, that refresh costs; cycles from there to the last result."""

LINES = 1 << 12
MOST_LINES = LINES * 3 // 4


@njit(cache=True)
def line_of(costs, row, place, facts):
    """Line of the descriptor (row of the code, place in its queue) in the table, or of where it belongs."""
    stride = place[PLACE + 1] if row[HBM_ROWS] > 1 else 0
    offset, write = place[PLACE] % facts[BURST_BYTES], np.int64(row[QUEUE] == DMA_OUT)
    mixed = ((row[HBM_ROWS] * 31 + row[HBM_BYTES]) * 31 + stride) * 31 + offset * 2 + write
    line = (mixed ^ (mixed >> 13)) % LINES
    while costs[line, KNOWN] and not (
        costs[line, ROWS] == row[HBM_ROWS] and costs[line, SIZE] == row[HBM_BYTES] and costs[line, STRIDE] == stride
        and costs[line, OFFSET] == offset and costs[line, WRITE] == write
    ):  # fmt: skip
        line = (line + 1) % LINES
    if not costs[line, KNOWN]:
        costs[line, ROWS], costs[line, SIZE], costs[line, STRIDE] = row[HBM_ROWS], row[HBM_BYTES], stride
        costs[line, OFFSET], costs[line, WRITE] = offset, write
    return line


class Memory:
    """The HBM of a piece of hardware, in core cycles. `costs` is the table that the machine reads."""

    def __init__(self, hardware: HardwareConfig) -> None:
        self._hbm = hardware.hbm
        self._bursts = dma_memory_of(self._hbm) if self._hbm.model == "bursts" else None
        self._cycle = self._hbm.core_cycles_per_memory_cycle(hardware.clock_hz)
        self.costs = np.zeros((LINES, COLUMNS), np.int64)

    def turnaround_cycles(self) -> tuple[int, int]:
        """Cycles between a read and a write behind it, and the other way round."""
        if self._bursts is None:
            return 0, 0
        t = self._hbm.timings
        return (
            _up((t["nCL"] + t["nBL"] + 2 - t["nCWL"]) * self._cycle),
            _up((t["nCWL"] + t["nBL"] + t["nWTRL"]) * self._cycle),
        )

    def refresh_cycles(self) -> tuple[int, int]:
        """How long a refresh by the clock takes, and how often it comes; (0, 0) where transfers bear it."""
        if self._bursts is None or self._hbm.refresh != "absolute":
            return 0, 0
        return _up(self._hbm.timings["nRFC"] * self._cycle), int(self._hbm.timings["nREFI"] * self._cycle)

    def fill(self, line: int) -> None:
        """Find out what the descriptor of a line costs."""
        if int(self.costs[:, KNOWN].sum()) >= MOST_LINES:
            key = self.costs[line].copy()
            self.costs[:] = 0
            self.costs[line] = key
        rows, size, stride, offset, write = map(int, self.costs[line, ROWS : WRITE + 1])
        values = self._simple(rows, size, stride, offset, write) if self._bursts is None else None
        self.costs[line, BURSTS:] = values or self._detailed(rows, size, stride, offset, write)
        self.costs[line, KNOWN] = 1

    def _simple(self, rows: int, size: int, stride: int, offset: int, write: int) -> tuple[int, ...]:
        hbm = self._hbm
        if stride == size:
            rows, size = 1, rows * size
        bursts = len(bursts_of(rows, size, stride, offset, hbm.burst_bytes))
        latency = hbm.write_latency_cycles if write else hbm.read_latency_cycles
        return bursts, -(-bursts * hbm.burst_bytes // hbm.bytes_per_cycle), 0, 0, latency

    def _detailed(self, rows: int, size: int, stride: int, offset: int, write: int) -> tuple[int, ...]:
        cost = transfer(rows, size, stride, offset, write, self._bursts)
        occupied = _up(cost.occupied * self._cycle)
        data, refresh = min(occupied, _up(cost.ideal * self._cycle)), int(cost.refresh_cycles * self._cycle)
        refresh = min(refresh, occupied - data)
        tail = _up((cost.occupied + cost.latency) * self._cycle) - occupied
        return cost.bursts, data, occupied - data - refresh, refresh, tail


def _up(cycles: Fraction) -> int:
    return -(-cycles.numerator // cycles.denominator)
