"""The facts of one piece of hardware: sizes, bandwidths, latencies with their provenance. No behaviour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tripath.errors import TripathError

EXECUTIONS = ("serial", "decoupled")
PROVENANCES = ("published", "rtl", "assumed")
QUEUED_UNITS = ("matrix", "vector", "dma_in", "dma_out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Latency and initiation interval of one instruction, as formulas over the machine's widths.

    latency_cycles = latency + latency_per_blen * BLEN + latency_per_tree_level * ceil(log2(VLEN + 1)); the interval
    likewise. `provenance` says where the numbers come from.
    """

    latency: int
    latency_per_blen: int = 0
    latency_per_tree_level: int = 0
    latency_per_vlen: int = 0
    interval: int = 1
    interval_per_blen: int = 0
    interval_per_vlen: int = 0
    provenance: str

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise TripathError(
                f"hardware.timing: unknown provenance {self.provenance!r}, one of {', '.join(PROVENANCES)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Hbm:
    """Off-chip memory: `channels` of `bytes_per_cycle_per_channel`, one latency, bursts of `burst_bytes`."""

    channels: int
    bytes_per_cycle_per_channel: int
    read_latency_cycles: int
    write_latency_cycles: int
    burst_bytes: int
    capacity_bytes: int

    def __post_init__(self) -> None:
        for field in ("channels", "bytes_per_cycle_per_channel", "burst_bytes", "capacity_bytes"):
            if getattr(self, field) < 1:
                raise TripathError(f"hardware.hbm.{field}: must be at least 1, got {getattr(self, field)}")
        for field in ("read_latency_cycles", "write_latency_cycles"):
            if getattr(self, field) < 0:
                raise TripathError(f"hardware.hbm.{field}: must not be negative, got {getattr(self, field)}")

    @property
    def bytes_per_cycle(self) -> int:
        """Peak bandwidth over all channels."""
        return self.channels * self.bytes_per_cycle_per_channel


@dataclass(frozen=True, kw_only=True, slots=True)
class Sram:
    """Capacities of the on-chip memories in bytes."""

    matrix_bytes: int
    vector_bytes: int
    fp_bytes: int
    int_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareConfig:
    """One NPU core. The array multiplies (BLEN, MLEN) by (MLEN, BLEN); the vector unit has VLEN lanes."""

    name: str
    clock_hz: float
    execution: str
    blen: int
    mlen: int
    vlen: int
    sram: Sram
    hbm: Hbm
    queue_depth: Mapping[str, int]
    dma_outstanding: int
    frontend: Mapping[str, int]
    timing: Mapping[str, Timing]

    def __post_init__(self) -> None:
        if self.execution not in EXECUTIONS:
            raise TripathError(f"hardware.execution: unknown mode {self.execution!r}, one of {', '.join(EXECUTIONS)}")
        for field, low, high in (("blen", 4, 128), ("mlen", 32, 8192), ("vlen", 32, 8192)):
            value = getattr(self, field)
            if not low <= value <= high or value & (value - 1):
                raise TripathError(f"hardware.{field}: must be a power of two from {low} to {high}, got {value}")
        if set(self.queue_depth) != set(QUEUED_UNITS) or min(self.queue_depth.values()) < 1:
            raise TripathError(
                f"hardware.queue_depth: needs a depth of at least 1 for each of {', '.join(QUEUED_UNITS)}"
            )
        if self.dma_outstanding < 1:
            raise TripathError(f"hardware.dma_outstanding: must be at least 1, got {self.dma_outstanding}")
        if self.clock_hz <= 0:
            raise TripathError(f"hardware.clock_hz: must be positive, got {self.clock_hz}")

    @property
    def tree_levels(self) -> int:
        """Levels of a reduction tree over VLEN lanes, as the published latencies count them: ceil(log2(VLEN + 1))."""
        return math.ceil(math.log2(self.vlen + 1))

    def latency_cycles(self, mnemonic: str) -> int:
        """Cycles from the start of an instruction to its result."""
        row = self._row(mnemonic)
        return (
            row.latency
            + row.latency_per_blen * self.blen
            + row.latency_per_tree_level * self.tree_levels
            + row.latency_per_vlen * self.vlen
        )

    def interval_cycles(self, mnemonic: str) -> int:
        """Cycles from the start of an instruction to the earliest start of the next in the same unit."""
        row = self._row(mnemonic)
        return row.interval + row.interval_per_blen * self.blen + row.interval_per_vlen * self.vlen

    def _row(self, mnemonic: str) -> Timing:
        try:
            return self.timing[mnemonic]
        except KeyError:
            raise TripathError(f"hardware.timing: no entry for {mnemonic} (hardware {self.name})") from None
