"""Costs of DMA descriptors by their pattern.

In closed form: peak bandwidth, row changes, refresh. A stream changes the rows of all banks once for each row set (a row of every
bank of every channel). While one bank changes its row (precharge, activate), the controller serves as many other bank visits as
its queue holds; the time beyond that is lost, once for each bank. This holds if the queue reaches all bank groups and holds a
channel's granule, so that channels and bank groups work side by side; for other memories `bursts` follows a stream of
descriptors. docs/dram.md compares both with the burst model.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from analytical.bursts import Channels, channels_of, cost_of
from npu.hardware import ADDRESS_MAPPINGS, HardwareConfig


class Pattern(NamedTuple):
    """An access to HBM: `rows` separate runs of `size` bytes, `stride` apart; all begin at multiples of `step` bytes."""

    rows: int
    size: int
    stride: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFacts:
    """HBM for one direction, in core cycles: bytes a cycle at peak, factor of refresh, latency; `sweep` is lost when all banks
    change rows, a row set being `row_set_bytes`; a run apart from others costs `change`, shared by the `overlap` bank visits in
    flight. `channels` where the closed form does not hold, with the core's cycles in one of the memory's, and whether
    transfers bear a share of refresh in whole cycles."""

    peak: float
    refresh: float
    latency: float
    burst_bytes: int
    row_set_bytes: float = 1.0
    sweep: float = 0.0
    interleave_bytes: int = 1
    channel_count: int = 1
    change: float = 0.0
    overlap: float = 1.0
    channels: Channels | None = None
    scale: float = 1.0
    share: bool = True


def memory_facts(hardware: HardwareConfig, *, write: bool) -> MemoryFacts:
    """The facts of a piece of hardware."""
    hbm, peak = hardware.hbm, hardware.peak_bytes_per_cycle
    if hbm.model == "simple":
        latency = hbm.simple_latency_cycles(hardware.clock_hz, write=write)
        return MemoryFacts(peak=peak, refresh=1.0, latency=latency, burst_bytes=hbm.burst_bytes)
    t, scale = hbm.timings, float(hbm.core_cycles_per_memory_cycle(hardware.clock_hz))
    columns, interleave = hbm.page_bytes // hbm.burst_bytes, hbm.interleave_bytes // hbm.burst_bytes
    name, bits = ADDRESS_MAPPINGS[hbm.address_mapping].fields[0]
    visit = (1 << bits if name == "column" and bits else columns) * t["nBL"]
    entries = hbm.write_queue_entries if write else hbm.read_queue_entries
    overlap = entries * t["nBL"] / (hbm.pseudo_channels * visit)
    closed = overlap >= hbm.bank_groups >= t["nCCDL"] / t["nBL"] and entries >= interleave
    change, banks = t["nRP"] + t["nRCDRD"] + hbm.act_command_cycles, hbm.bank_groups * hbm.banks_per_group
    alone = t["nRP"] + (t["nRCDWR"] if write else t["nRCDRD"] + t["nCL"] + t["nBL"])
    return MemoryFacts(
        peak=peak, refresh=t["nREFI"] / (t["nREFI"] - t["nRFC"]), latency=scale * alone, burst_bytes=hbm.burst_bytes,
        row_set_bytes=hbm.channels * hbm.pseudo_channels * banks * hbm.page_bytes,
        sweep=scale * (banks * max(0.0, change / max(1.0, overlap) - visit) + change), interleave_bytes=hbm.interleave_bytes,
        channel_count=hbm.channels, change=scale * change, overlap=max(1.0, overlap),
        channels=None if closed else channels_of(hbm, write=write), scale=scale, share=hbm.refresh == "per_transfer",
    )  # fmt: skip


def cycles_of(facts: MemoryFacts, pattern: Pattern) -> tuple[float, float]:
    """Cycles for which a descriptor takes the memory, and from its start to its last result."""
    if facts.channels is not None:
        return _followed(facts, facts.channels, pattern)
    bursts = _bursts(facts.burst_bytes, pattern)
    data = bursts * facts.burst_bytes / facts.peak
    if pattern.rows == 1:
        busy = data + pattern.size / facts.row_set_bytes * facts.sweep
    else:  # each run opens rows of its own in the channels that it reaches
        granules = pattern.size / facts.interleave_bytes + 1
        busy = max(data, pattern.rows * granules / facts.channel_count * facts.change / facts.overlap)
    cycles = max(1.0, round(busy * facts.refresh)) if facts.sweep else float(math.ceil(busy))
    return cycles, cycles + facts.latency


def _bursts(burst: int, pattern: Pattern) -> float:
    """Bursts of a descriptor: exact where its runs begin with one, else the mean over where they may begin."""
    aligned = pattern.step % burst == 0
    return pattern.rows * (-(-pattern.size // burst) if aligned else 1 + (pattern.size - 1) / burst)


def _followed(facts: MemoryFacts, memory: Channels, pattern: Pattern) -> tuple[float, float]:
    """The same from a stream of bursts, in the whole cycles of the memory that its buses count."""
    half = 0 if pattern.step % memory.burst_bytes == 0 else memory.burst_bytes // 2 // pattern.step * pattern.step
    cost = cost_of(memory, pattern.rows, pattern.size, pattern.stride, half)
    data = math.ceil(_bursts(facts.burst_bytes, pattern) * facts.burst_bytes / facts.peak / facts.scale)
    work = max(cost.busy, data)
    behind = max(0.0, cost.alone - work)
    cycles = round(work * facts.refresh) if facts.share else round(work) * facts.refresh
    cycles *= facts.scale
    return cycles, cycles + facts.scale * behind
