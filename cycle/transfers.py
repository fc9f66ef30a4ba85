"""The cost of one DMA descriptor: its bursts are simulated in full by `cycle.dram`, from one canonical state of the memory.

The canonical state (every bank open on a foreign row, nothing else going on) and the mean over a period of the mapping make the
cost a function of the descriptor's shape, its direction and its address modulo a burst, so a caller may look it up after the
first time. docs/dram.md states what this leaves out, and measures it.
"""

import math
from collections import namedtuple

import numpy as np
from numba import njit

from cycle.dram import FOREIGN, all_banks, memory_of, place, stream
from npu.hardware import Hbm

QUEUES_FILLED = 2
"""The steady state is measured over so many times the bursts that the read queues of all channels hold."""

MOST_BURSTS = 1 << 16
"""The steady state is measured over at most so many bursts."""

HISTORY = 1024
"""At most so many descriptors are searched for the rows that banks are open on."""

Transfer = namedtuple("Transfer", "occupied latency ideal row_cycles refresh_cycles bursts hits misses conflicts")
"""The cost of a descriptor in memory cycles.

`occupied`: so long the memory is taken, as far as a like descriptor behind this one is concerned. `latency`: from then to
the last data, so that without refresh a descriptor alone takes `occupied + latency`. `occupied` = `ideal` (the busiest data
bus moves its bursts without a gap) + `row_cycles` (timings of banks and rows) + `refresh_cycles` (its share of refresh).
`bursts`, and the rows that these found from the canonical state; a write to a burst that is still queued finds none.
"""

DmaMemory = namedtuple("DmaMemory", "memory period_bytes refresh_share")
"""`Hbm` as `transfer` takes it: `memory` for `cycle.dram.stream` without refresh, `mapping_period_bytes`, and whether
transfers bear a share of refresh (1) or none (0)."""


def dma_memory_of(hbm: Hbm) -> DmaMemory:
    """The facts of `hbm` for `transfer`."""
    memory = memory_of(hbm)
    return DmaMemory(
        memory=memory._replace(rules=memory.rules._replace(refresh_by_clock=0)),
        period_bytes=mapping_period_bytes(hbm), refresh_share=int(hbm.refresh == "per_transfer"),
    )  # fmt: skip


def mapping_period_bytes(hbm: Hbm) -> int:
    """Bytes after which addresses fall on the same channels, banks and columns again, all one row or more further."""
    row_bytes = hbm.page_bytes * hbm.pseudo_channels * hbm.bank_groups * hbm.banks_per_group
    return hbm.channels * math.lcm(row_bytes, hbm.interleave_bytes)


@njit(cache=True)
def transfer(rows, size, stride, address, write, memory):
    """`Transfer` of a descriptor: `rows` runs of `size` bytes, `stride` apart, from `address` on; `write`: 0 or 1.

    Runs that follow each other without a gap are one run. `memory`: from `dma_memory_of`.

    Steady state is a sequence of like descriptors, each beginning where the one before ends, over a whole period of the
    mapping (at most MOST_BURSTS): `occupied` is what one of them adds in the mean, to the nearest cycle, so that the rows
    that all banks change at a period's end are shared by all. Banks are open on the rows that those in front have left.
    """
    m = memory.memory.rules
    if stride == size:
        rows, size = 1, rows * size
    stride = abs(stride)  # upwards or downwards costs the same
    span = rows * stride if rows > 1 and stride else size
    own = bursts_of(rows, size, stride, address % m.burst_bytes, m.burst_bytes)
    queues = -(-QUEUES_FILLED * m.read_entries * m.channels // len(own))
    followers = max(1, min(max(queues, -(-memory.period_bytes // span)), MOST_BURSTS // len(own)))
    # Whole periods keep the addresses of those in front from falling below 0.
    start = address % m.burst_bytes + -(-HISTORY * span // memory.period_bytes) * memory.period_bytes
    opened = all_banks(FOREIGN, memory.memory)
    values = np.empty(5, np.int64)
    for i in range(1, HISTORY + 1):
        if opened.min() != FOREIGN:
            break
        before = bursts_of(rows, size, stride, start - i * span, m.burst_bytes)
        for j in range(len(before) - 1, -1, -1):
            _, bank, row = place(before[j], memory.memory, values)
            if opened[bank] == FOREIGN:
                opened[bank] = row
    numbers = np.empty((followers + 1) * (len(own) + rows), np.int64)
    count = 0
    for i in range(followers + 1):
        more = bursts_of(rows, size, stride, start + i * span, m.burst_bytes)
        numbers[count : count + len(more)] = more
        count += len(more)
    kinds = np.full(count, write)
    first = stream(numbers[: len(own)], kinds[: len(own)], memory.memory, opened).cycles
    added = stream(numbers[:count], kinds, memory.memory, opened).cycles - first
    alone = stream(own, kinds[: len(own)], memory.memory, all_banks(FOREIGN, memory.memory))
    ideal = -(-len(own) * m.nBL // (m.channels * m.pseudo_channels))
    busy = min(max((2 * added + followers) // (2 * followers), ideal), alone.cycles)
    occupied = busy
    if memory.refresh_share:  # of every nREFI cycles nRFC are lost
        working = followers * (m.nREFI - m.nRFC)
        occupied = max(busy, (2 * max(added, followers * ideal) * m.nREFI + working) // (2 * working))
    return Transfer(
        occupied, alone.cycles - busy, ideal, busy - ideal, occupied - busy, len(own), alone.hits, alone.misses,
        alone.conflicts,
    )  # fmt: skip


@njit(cache=True)
def bursts_of(rows, size, stride, address, burst_bytes):
    """Numbers of the bursts that a descriptor touches, row by row; a burst that two rows touch comes twice."""
    count = 0
    for row in range(rows):
        first = address + row * stride
        count += (first + size - 1) // burst_bytes - first // burst_bytes + 1
    numbers = np.empty(count, np.int64)
    at = 0
    for row in range(rows):
        first = address + row * stride
        for number in range(first // burst_bytes, (first + size - 1) // burst_bytes + 1):
            numbers[at] = number
            at += 1
    return numbers


@njit(cache=True)
def absolute_refresh(start, busy, nRFC, nREFI):
    """Refresh that work of `busy` cycles meets if it starts in cycle `start` of the memory's clock.

    The memory stands still for nRFC cycles from every whole multiple of nREFI (above 0) on.
    """
    if busy == 0:
        return 0
    phase = start % nREFI
    stopped = start >= nREFI and phase < nRFC
    waited, before_next = (nRFC - phase, nREFI - nRFC) if stopped else (0, nREFI - phase)
    return waited + -(-max(0, busy - before_next) // (nREFI - nRFC)) * nRFC
