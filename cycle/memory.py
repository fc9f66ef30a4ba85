"""The machine's view of HBM: a table of descriptor costs, each filled in when the descriptor is first met.

A cost depends only on the descriptor's shape, its direction and its address modulo a burst, so the machine looks it up.
`cycle.transfers` simulates the bursts, or the simple model multiplies.
"""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numba import njit

from cycle.schema import record
from cycle.transfers import bursts_of, dma_memory_of, transfer
from npu.hardware import HardwareConfig

DESCRIPTOR = record(
    "known", "rows", "size", "stride", "offset", "write", "bursts", "data", "row_changes", "refreshes", "tail"
)
"""A line of the table: whether it is taken; the key (`write`: the direction); bursts; cycles of the bus that move data, that
banks and rows cost, that refresh costs; cycles from there to the last result."""

LINES = 1 << 12
MOST_LINES = LINES * 3 // 4


@njit(cache=True)
def line_of(costs, row, place, facts):
    """Line of the descriptor (its instruction, its place in the queue) in the table, or of where it belongs."""
    stride = place.row_stride if row.hbm_rows > 1 else 0
    offset, write = place.address[0] % facts.burst_bytes, row.direction
    mixed = ((row.hbm_rows * 31 + row.hbm_bytes) * 31 + stride) * 31 + offset * 2 + write
    number = (mixed ^ (mixed >> 13)) % LINES
    line = costs[number]
    while line.known and not (
        line.rows == row.hbm_rows and line.size == row.hbm_bytes and line.stride == stride and line.offset == offset
        and line.write == write
    ):  # fmt: skip
        number = (number + 1) % LINES
        line = costs[number]
    if not line.known:
        line.rows, line.size, line.stride, line.offset, line.write = row.hbm_rows, row.hbm_bytes, stride, offset, write
    return number


@lru_cache(maxsize=16)
def _found_on(_: str) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Costs found so far, by shape, on the memory that the text describes in full: the next programs of a process load the same
    weights."""
    return {}


class DescriptorCosts:
    """Costs of descriptors on the HBM of a machine, in core cycles. `table` is what the compiled machine reads."""

    def __init__(self, hardware: HardwareConfig) -> None:
        self._hbm = hardware.hbm
        self._bursts = dma_memory_of(self._hbm) if self._hbm.model == "bursts" else None
        self._clock_hz = hardware.clock_hz
        self._cycle = self._hbm.core_cycles_per_memory_cycle(hardware.clock_hz)
        self.table = np.zeros(LINES, DESCRIPTOR)
        self._found = _found_on(f"{self._hbm} {self._clock_hz}")

    def turnaround_cycles(self) -> tuple[int, int]:
        """Cycles between a write and a read behind it, and the other way round."""
        if self._bursts is None:
            return 0, 0
        t = self._hbm.timings
        return (
            _up((t["nCWL"] + t["nBL"] + t["nWTRL"]) * self._cycle),
            _up((t["nCL"] + t["nBL"] + 2 - t["nCWL"]) * self._cycle),
        )

    def refresh_cycles(self) -> tuple[int, int]:
        """Length and period of a refresh by the clock, in core cycles; (0, 0) where refresh does not follow the clock."""
        if self._bursts is None or self._hbm.refresh != "absolute":
            return 0, 0
        return _up(self._hbm.timings["nRFC"] * self._cycle), int(self._hbm.timings["nREFI"] * self._cycle)

    def fill(self, number: int) -> None:
        """Find out what the descriptor of a line costs."""
        line = self.table[number]
        if int(self.table["known"].sum()) >= MOST_LINES:
            key = line.copy()
            self.table[:] = 0
            self.table[number] = key
        values = self.of(*(int(line[name]) for name in ("rows", "size", "stride", "offset", "write")))
        line["bursts"], line["data"], line["row_changes"], line["refreshes"], line["tail"] = values
        line["known"] = 1

    def of(self, *shape: int) -> tuple[int, ...]:
        """The cost of a descriptor: bursts, data, row_changes, refreshes and tail; `shape`: rows, size, stride, offset, write."""
        if shape not in self._found:
            self._found[shape] = self._simple(*shape) if self._bursts is None else self._detailed(*shape)
        return self._found[shape]

    def _simple(self, rows: int, size: int, stride: int, offset: int, write: int) -> tuple[int, ...]:
        hbm = self._hbm
        if stride == size:
            rows, size = 1, rows * size
        bursts = len(bursts_of(rows, size, stride, offset, hbm.burst_bytes))
        data = _up(bursts * hbm.burst_bytes / hbm.simple_bytes_per_cycle(self._clock_hz))
        return bursts, data, 0, 0, hbm.simple_latency_cycles(self._clock_hz, write=bool(write))

    def _detailed(self, rows: int, size: int, stride: int, offset: int, write: int) -> tuple[int, ...]:
        cost = transfer(rows, size, stride, offset, write, self._bursts)
        occupied = _up(cost.occupied * self._cycle)
        data, refresh = min(occupied, _up(cost.ideal * self._cycle)), int(cost.refresh_cycles * self._cycle)
        refresh = min(refresh, occupied - data)
        tail = _up((cost.occupied + cost.latency) * self._cycle) - occupied
        return cost.bursts, data, occupied - data - refresh, refresh, tail


def _up(cycles: Fraction) -> int:
    return -(-cycles.numerator // cycles.denominator)
