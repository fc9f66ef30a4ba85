"""What a DMA descriptor costs by its pattern, in closed form: peak bandwidth, rows that change, refresh.

A stream changes the rows of all banks once for each row set (a row of every bank of every channel). While one bank changes
its row (precharge, activate), the controller can serve as many further bank visits as its queue holds; what exceeds that
is lost, once for each bank. docs/dram.md compares with the burst model.
"""

from dataclasses import dataclass

from npu.hardware import ADDRESS_MAPPINGS, HardwareConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFacts:
    """HBM in core cycles: bytes a cycle at peak, how many times slower bursts of one bank group follow each other where the
    visits in flight reach no other (`crowding`), factor of refresh, latencies; `sweep` is lost when all banks change rows,
    a row set being `row_set_bytes`; a run apart from others costs `change`, shared by the `overlap` bank visits in flight."""

    peak: float
    crowding: float
    refresh: float
    read_latency: float
    write_latency: float
    burst_bytes: int
    row_set_bytes: float
    sweep: float
    interleave_bytes: int
    channels: int
    change: float
    overlap: float


def memory_facts(hardware: HardwareConfig) -> MemoryFacts:
    """The facts of a piece of hardware."""
    hbm, peak = hardware.hbm, hardware.peak_bytes_per_cycle
    if hbm.model == "simple":
        return MemoryFacts(
            peak=peak, crowding=1.0, refresh=1.0, read_latency=hbm.read_latency_cycles, write_latency=hbm.write_latency_cycles,
            burst_bytes=hbm.burst_bytes, row_set_bytes=1.0, sweep=0.0, interleave_bytes=hbm.interleave_bytes,
            channels=hbm.channels, change=0.0, overlap=1.0,
        )  # fmt: skip
    t, scale = hbm.timings, float(hbm.core_cycles_per_memory_cycle(hardware.clock_hz))
    columns = hbm.page_bytes // hbm.burst_bytes
    name, bits = ADDRESS_MAPPINGS[hbm.address_mapping].fields[0]
    visit = (1 << bits if name == "column" and bits else columns) * t["nBL"]
    overlap = max(1.0, hbm.read_queue_entries * t["nBL"] / (hbm.pseudo_channels * visit))
    change = t["nRP"] + t["nRCDRD"] + hbm.act_command_cycles
    banks = hbm.bank_groups * hbm.banks_per_group
    return MemoryFacts(
        peak=peak, crowding=max(1.0, t["nCCDL"] / (t["nBL"] * min(hbm.bank_groups, overlap))),
        refresh=t["nREFI"] / (t["nREFI"] - t["nRFC"]),
        read_latency=scale * (t["nRP"] + t["nRCDRD"] + t["nCL"] + t["nBL"]), write_latency=scale * (t["nRP"] + t["nRCDWR"]),
        burst_bytes=hbm.burst_bytes, row_set_bytes=hbm.channels * hbm.pseudo_channels * banks * hbm.page_bytes,
        sweep=scale * (banks * max(0.0, change / overlap - visit) + change), interleave_bytes=hbm.interleave_bytes,
        channels=hbm.channels, change=scale * change, overlap=overlap,
    )  # fmt: skip


def occupied_cycles(facts: MemoryFacts, bursts: float, rows: int, size: int) -> float:
    """Cycles that `rows` separate runs of `size` bytes take, `bursts` in all; whole cycles, as buses count."""
    data = bursts * facts.burst_bytes / facts.peak * facts.crowding
    if rows == 1:
        busy = data + rows * size / facts.row_set_bytes * facts.sweep
    else:  # each run opens rows of its own in the channels that it reaches
        granules = size / facts.interleave_bytes + 1
        busy = max(data, rows * granules / facts.channels * facts.change / facts.overlap)
    return max(1.0, round(busy * facts.refresh)) if facts.sweep else float(-(-busy // 1))
