"""The facts of one piece of hardware: sizes, bandwidths, latencies with their provenance. No behaviour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

from npu.choices import Limits, check_choices, check_limits, one_of, within
from npu.errors import TripathError
from npu.units import GIB, format_bytes

EXECUTIONS = ("serial", "decoupled")
PROVENANCES = ("published", "rtl", "assumed")
QUEUED_UNITS = ("matrix", "vector", "dma_in", "dma_out")

MOST_CYCLES = 1 << 20
"""Of one instruction, control or access: a millisecond at 1 GHz. A run retires fewer than 2^42, so cycles fit 63 bits."""
INSTRUCTION_CYCLES = Limits(1, MOST_CYCLES)
"""Latency, and interval, of an instruction at the machine's widths."""
CYCLES = within(0, MOST_CYCLES)
SRAM_BYTES = within(1, 1 << 32)
MOST_ENTRIES = 4096
"""Of a queue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Latency and initiation interval of one instruction, as formulas over the widths of the machine, which checks it.

    latency_cycles = latency + latency_per_blen * BLEN + latency_per_tree_level * ceil(log2(VLEN + 1)) +
    latency_per_vlen * VLEN + latency_per_write_out * BLEN / write_out_columns; the interval likewise.

    Attributes:
        latency: Cycles from the start to the result, whatever the widths.
        latency_per_blen: More for each of BLEN.
        latency_per_tree_level: More for each level of the reduction tree over VLEN lanes.
        latency_per_vlen: More for each lane.
        latency_per_write_out: More for each cycle in which columns of a tile leave the array: BLEN / write_out_columns.
        interval: Cycles to the earliest start of the next instruction of the unit, whatever the widths.
        interval_per_blen: More for each of BLEN.
        interval_per_vlen: More for each lane.
        interval_per_write_out: More for each cycle in which columns of a tile leave the array.
        provenance: Where the numbers come from.
    """

    latency: int = field(metadata=CYCLES)
    latency_per_blen: int = field(default=0, metadata=CYCLES)
    latency_per_tree_level: int = field(default=0, metadata=CYCLES)
    latency_per_vlen: int = field(default=0, metadata=CYCLES)
    latency_per_write_out: int = field(default=0, metadata=CYCLES)
    interval: int = field(default=1, metadata=CYCLES)
    interval_per_blen: int = field(default=0, metadata=CYCLES)
    interval_per_vlen: int = field(default=0, metadata=CYCLES)
    interval_per_write_out: int = field(default=0, metadata=CYCLES)
    provenance: str = field(metadata=one_of(PROVENANCES))


DRAM_TIMINGS = (
    "nBL", "nCL", "nRCDRD", "nRCDWR", "nRP", "nRAS", "nRC", "nWR", "nRTPL", "nCWL", "nCCDS", "nCCDL", "nWTRS", "nWTRL",
    "nRRDS", "nRRDL", "nFAW", "nRFC", "nREFI",
)  # fmt: skip
"""Every timing of DRAM that is modelled, by JEDEC's names: `t` read as `n` for a number of memory cycles."""


MOST_BANKS = 1 << 16
LONGEST_TIMING = 1_000_000
"""A millisecond and more: no timing of a DRAM is longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddressMapping:
    """Mapping of an address within a channel to a DRAM location: its fields, from the least significant bit above the burst up.

    A field is (name, bits). Bits 0: all bits of that field in the organisation that are not placed yet; -1: all remaining
    bits of the address. Each field in `hashed` is XORed with column bits, taken just above those of the field before it.
    """

    fields: tuple[tuple[str, int], ...]
    hashed: tuple[str, ...] = ()


ADDRESS_MAPPINGS = {
    "RoBaRaCoCh": AddressMapping(
        fields=(("column", 0), ("pseudo_channel", 0), ("bank_group", 0), ("bank", 0), ("row", 0))
    ),
    "MOP4CLXOR": AddressMapping(
        fields=(("column", 2), ("pseudo_channel", 0), ("bank_group", 0), ("bank", 0), ("column", 0), ("row", -1)),
        hashed=("pseudo_channel", "bank_group", "bank"),
    ),
}
"""Source: hbm_streams.json, `memory.address_mapping`. The first leaves half of the bandwidth unused in a sequential stream:
neighbours lie in one bank group, which takes a burst every nCCDL. The second changes the bank group every four bursts."""

MEMORY_MODELS = ("bursts", "simple")
"""Banks, rows, refresh and queues; or a bandwidth and a latency."""
SIMPLE_CLOCK_HZ = 1_000_000_000
"""The core clock at which the simple memory is stated: it takes the same time at any other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """A generation of memory: what its standard fixes, so that channels, stacks and capacity follow from one another.

    Attributes:
        family: Whose PHY and standby power it has (`conf/technology`): hbm or lpddr.
        stack_channels: Channels of a stack; of LPDDR, of a package.
        channel_bytes: Capacities of a channel that the standard or products have.
        source: Where the numbers come from.
    """

    family: str
    stack_channels: int
    channel_bytes: tuple[int, ...]
    source: str


GENERATIONS: Mapping[str, Generation] = {
    "hbm2": Generation(
        family="hbm", stack_channels=8, channel_bytes=(GIB // 2, GIB), source="JESD235: 8 channels; products of 4 and 8 GiB"
    ),
    "hbm2e": Generation(
        family="hbm", stack_channels=8, channel_bytes=(GIB, 2 * GIB),
        source="JESD235D: 8 channels; products of 8 and 16 GiB (A100: five stacks of 8 or 16)",
    ),
    "hbm3": Generation(
        family="hbm", stack_channels=16, channel_bytes=(GIB, 3 * GIB // 2),
        source="JESD238: 16 channels; products of 16 GiB (H100: five stacks) and 24 GiB",
    ),
    "hbm3e": Generation(
        family="hbm", stack_channels=16, channel_bytes=(3 * GIB // 2, 9 * GIB // 4),
        source="JESD238B: 16 channels; products of 24 GiB (H200: six stacks) and 36 GiB",
    ),
    "lpddr5x": Generation(
        family="lpddr", stack_channels=4, channel_bytes=(GIB, 2 * GIB, 4 * GIB, 8 * GIB),
        source="JESD209-5B: channels of 16 bits, dies of 8 to 32 Gb, one rank or two; packages of 64 bits",
    ),
}  # fmt: skip
"""Generations by name. A stack that is used in part counts as that part: its other channels serve others.
Second-hand: neither the standards nor the products' data sheets were opened."""

REFRESHES = ("per_transfer", "absolute")
"""Refresh as a share of each transfer, or by the clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hbm:
    """Off-chip memory: `channels` that share the address space in granules of `interleave_bytes`, in turn.

    Stacks and capacity follow from `generation`, `channels` and the organisation of a channel; where they are stated too, they
    must agree.

    Attributes:
        channels: Channels, of all stacks together.
        bytes_per_cycle_per_channel: Of the simple memory, bandwidth in bytes per core cycle at 1 GHz.
        read_latency_cycles: Of the simple memory, in core cycles at 1 GHz.
        write_latency_cycles: Of the simple memory, in core cycles at 1 GHz.
        burst_bytes: Bytes of a burst, which occupies the bus for nBL of the memory's cycles.
        tck_ps: The memory's cycle in picoseconds.
        pseudo_channels: Halves of a channel with a data bus each.
        bank_groups: Bank groups of a pseudo channel.
        banks_per_group: Banks of a group.
        rows: Rows of a bank.
        page_bytes: Bytes of a row of one pseudo channel.
        timings: Every timing of the DRAM in the memory's cycles, by JEDEC's names with `n` for `t`.
        act_command_cycles: The memory's cycles for which an ACT occupies the row command bus.
        address_mapping: Which bits of an address choose the pseudo channel, bank group, bank, row and column.
        interleave_bytes: Bytes of the granules in which channels take turns.
        read_queue_entries: Bursts that the controller of a channel holds for reading.
        write_queue_entries: Bursts that it holds for writing.
        refresh: As a share of each transfer (per_transfer), or by the clock (absolute).
        model: Banks, rows, refresh and queues (bursts), or a bandwidth and a latency (simple).
        generation: Decides channels of a stack, capacity of a channel, energy per bit, PHY and standby power.
        stacks: Null, or the stacks that follow from `channels`, as a check.
        capacity_bytes: Null, or the bytes of all channels that follow from `channels` and the organisation, as a check.
    """

    channels: int = field(metadata=within(1, MOST_BANKS))
    bytes_per_cycle_per_channel: int = field(metadata=within(1, 1 << 20))
    read_latency_cycles: int = field(metadata=CYCLES)
    write_latency_cycles: int = field(metadata=CYCLES)
    burst_bytes: int = field(metadata=within(8, 4096, power_of_two=True))
    tck_ps: int = field(metadata=within(10, 100_000))
    pseudo_channels: int = field(metadata=within(1, 1024, power_of_two=True))
    bank_groups: int = field(metadata=within(1, 1024, power_of_two=True))
    banks_per_group: int = field(metadata=within(1, 1024, power_of_two=True))
    rows: int = field(metadata=within(1, 1 << 30))
    page_bytes: int = field(metadata=within(1, 1 << 20, power_of_two=True))
    timings: Mapping[str, int] = field(metadata=within(1, LONGEST_TIMING))
    act_command_cycles: int = field(metadata=within(1, 1024))
    address_mapping: str = field(metadata=one_of(ADDRESS_MAPPINGS))
    interleave_bytes: int = field(metadata=within(1, 1 << 30))
    read_queue_entries: int = field(metadata=within(1, MOST_ENTRIES))
    write_queue_entries: int = field(metadata=within(1, MOST_ENTRIES))
    refresh: str = field(metadata=one_of(REFRESHES))
    model: str = field(default="bursts", metadata=one_of(MEMORY_MODELS))
    generation: str = field(default="hbm2", metadata=one_of(GENERATIONS))
    stacks: int | None = field(default=None, metadata=within(1, MOST_BANKS))
    capacity_bytes: int | None = field(default=None, metadata=within(1, 1 << 50))

    def __post_init__(self) -> None:
        check_choices("hardware.hbm", self)
        for name in ("page_bytes", "interleave_bytes"):
            if getattr(self, name) % self.burst_bytes:
                raise TripathError(
                    f"hardware.hbm.{name}: must be a multiple of burst_bytes ({self.burst_bytes}), "
                    f"got {getattr(self, name)}"
                )
        banks = self.channels * self.pseudo_channels * self.bank_groups * self.banks_per_group
        if banks > MOST_BANKS:
            raise TripathError(f"hardware.hbm.channels: must make at most {MOST_BANKS} banks, got {banks}")
        _check_timings(self.timings)
        placed = sum(bits for name, bits in ADDRESS_MAPPINGS[self.address_mapping].fields if name == "column")
        if self.page_bytes // self.burst_bytes < 1 << placed:
            raise TripathError(
                f"hardware.hbm.page_bytes: {self.address_mapping} needs at least {1 << placed} bursts in a page, "
                f"got {self.page_bytes // self.burst_bytes}"
            )

    def check_generation(self) -> None:
        """Refuse an organisation, stacks or a capacity that the generation contradicts: asked of machines, not of streams.

        Raises:
            TripathError: naming what contradicts what.
        """
        made, each = GENERATIONS[self.generation].channel_bytes, self.channel_bytes
        if each not in made:
            raise TripathError(
                f"hardware.hbm.rows: {self.rows} rows in {self.pseudo_channels} x {self.bank_groups} x {self.banks_per_group} "
                f"banks make {format_bytes(each)} a channel, {self.generation} has {' or '.join(map(format_bytes, made))}"
            )
        if self.stacks is not None and self.stacks != self.used_stacks:
            raise TripathError(
                f"hardware.hbm.stacks: {self.stacks} contradicts hardware.hbm.channels {self.channels}, which are "
                f"{float(self.used_stacks):g} of {self.generation} ({GENERATIONS[self.generation].stack_channels} a stack)"
            )
        if self.capacity_bytes is not None and self.capacity_bytes != self.total_bytes:
            raise TripathError(
                f"hardware.hbm.capacity_bytes: {format_bytes(self.capacity_bytes)} contradicts hardware.hbm.channels "
                f"{self.channels}: with {format_bytes(each)} each they hold {format_bytes(self.total_bytes)}"
            )

    @property
    def channel_bytes(self) -> int:
        """Capacity of a channel, by its organisation."""
        return self.pseudo_channels * self.bank_groups * self.banks_per_group * self.rows * self.page_bytes

    @property
    def total_bytes(self) -> int:
        """Capacity of all channels."""
        return self.channels * self.channel_bytes

    @property
    def used_stacks(self) -> Fraction:
        """Stacks that the channels make; a part of one where they do not fill it."""
        return Fraction(self.channels, GENERATIONS[self.generation].stack_channels)

    @property
    def bytes_per_cycle(self) -> int:
        """Peak bandwidth of the simple memory over all channels, in bytes per core cycle at 1 GHz."""
        return self.channels * self.bytes_per_cycle_per_channel

    @property
    def bytes_per_memory_cycle(self) -> Fraction:
        """Peak bandwidth over all channels, in bytes per memory cycle."""
        return Fraction(self.channels * self.pseudo_channels * self.burst_bytes, self.timings["nBL"])

    def simple_latency_cycles(self, clock_hz: float, *, write: bool) -> int:
        """Core cycles from the last byte of a descriptor to its result, of the simple memory."""
        stated = self.write_latency_cycles if write else self.read_latency_cycles
        return math.ceil(stated * Fraction(clock_hz) / SIMPLE_CLOCK_HZ)

    def simple_bytes_per_cycle(self, clock_hz: float) -> Fraction:
        """Peak bandwidth of the simple memory over all channels, in bytes per core cycle."""
        return self.bytes_per_cycle * SIMPLE_CLOCK_HZ / Fraction(clock_hz)

    def core_cycles_per_memory_cycle(self, clock_hz: float) -> Fraction:
        """Core cycles in one memory cycle, exactly: a time of m memory cycles is ceil(m times this) core cycles."""
        return Fraction(self.tck_ps) * Fraction(clock_hz) / 10**12


def _check_timings(timings: Mapping[str, int]) -> None:
    """Refuse a set of timings that is not whole, or that a controller could not keep."""
    for name in timings:
        if name not in DRAM_TIMINGS:
            raise TripathError(f"hardware.hbm.timings.{name}: no such timing, one of {', '.join(DRAM_TIMINGS)}")
    for name in DRAM_TIMINGS:
        if name not in timings:
            raise TripathError(f"hardware.hbm.timings.{name}: is missing")
    # Between two refreshes, a row has to be opened, used and closed in each pseudo channel, or nothing would ever be served.
    parts = ("nRFC", "nRAS", "nRC", "nRCDRD", "nRCDWR", "nRP", "nRP", "nCWL", "nBL", "nWR", "nRTPL")
    longest = sum(timings[name] for name in parts)
    if timings["nREFI"] <= longest:
        raise TripathError(
            f"hardware.hbm.timings.nREFI: must be above {longest} ({' + '.join(parts)}), got {timings['nREFI']}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sram:
    """Capacities of the on-chip memories.

    Attributes:
        matrix_bytes: Matrix SRAM: MX weights and KV.
        vector_bytes: Vector SRAM: BF16 rows.
        fp_bytes: FP SRAM: FP32 scalars.
        int_bytes: Int SRAM: token ids, masks and positions.
    """

    matrix_bytes: int = field(metadata=SRAM_BYTES)
    vector_bytes: int = field(metadata=SRAM_BYTES)
    fp_bytes: int = field(metadata=SRAM_BYTES)
    int_bytes: int = field(metadata=SRAM_BYTES)

    def __post_init__(self) -> None:
        check_choices("hardware.sram", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontEnd:
    """Cycles that the front end takes.

    Attributes:
        issue_cycles: To dispatch a queued instruction.
        loop_cycles: To enter a loop.
        next_cycles: To go round a loop; 0: loops without overhead.
        exit_cycles: To leave a loop by its C_NEXT.
        break_cycles: For a C_BREAK_IF or a C_COUNT, from its token on.
        affine_cycles: For a C_AFFINE.
        control_cycles: For any other control instruction.
        dispatch_cycles: From a dispatched instruction to its queue, and from a place there that becomes free back to the
            front end: the registers between them, the same in both directions.
        address_step_cycles: For each address that moves with a loop or a ring: 0 where address registers step by
            themselves, 1 where scalar instructions add.
    """

    issue_cycles: int = field(default=1, metadata=CYCLES)
    loop_cycles: int = field(default=1, metadata=CYCLES)
    next_cycles: int = field(default=0, metadata=CYCLES)
    exit_cycles: int = field(default=0, metadata=CYCLES)
    break_cycles: int = field(default=1, metadata=CYCLES)
    affine_cycles: int = field(default=1, metadata=CYCLES)
    control_cycles: int = field(default=1, metadata=CYCLES)
    dispatch_cycles: int = field(default=0, metadata=CYCLES)
    address_step_cycles: int = field(default=0, metadata=CYCLES)

    def __post_init__(self) -> None:
        check_choices("hardware.frontend", self)

    def control_cycles_of(self, kind: Enum) -> int:
        """Cycles of a control instruction of a ControlKind, without those that step addresses; of a C_NEXT that goes round."""
        special = {
            "LOOP": self.loop_cycles, "NEXT": self.next_cycles, "BREAK": self.break_cycles,
            "COUNT": self.break_cycles, "TRIPS": self.affine_cycles,
        }  # fmt: skip
        return special.get(kind.name, self.control_cycles)


RATE = within(1e3, 1e18)
"""Bytes per second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The processor beside a core that does not sample: it reads logits over a link and writes tokens back.

    Attributes:
        link_bytes_per_s: Bytes that the link carries in one direction in a second.
        link_latency_s: A round trip: the core signals, the host notices, and the core goes on.
        sampling_bytes_per_s: Bytes of logits that the host reads, compares and sums in a second.
    """

    link_bytes_per_s: float = field(metadata=RATE)
    link_latency_s: float = field(metadata=within(0.0, 1.0))
    sampling_bytes_per_s: float = field(metadata=RATE)

    def __post_init__(self) -> None:
        check_choices("hardware.host", self)

    def cycles(self, sent: int, taken: int, clock_hz: float) -> int:
        """Core cycles of one turn: a round trip, `sent` bytes of logits over the link, then sampled, `taken` bytes back.

        Numbers count as they are written, in decimals: 20e-9 is not the binary fraction beside it, which would round
        a turn of exactly 157 cycles up to 158."""
        link, sampling, latency, clock = (
            Fraction(str(each))
            for each in (self.link_bytes_per_s, self.sampling_bytes_per_s, self.link_latency_s, clock_hz)
        )
        return math.ceil((latency + (sent + taken) / link + sent / sampling) * clock)


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareConfig:
    """One NPU core. The array multiplies (BLEN, MLEN) by (MLEN, BLEN); the vector unit has VLEN lanes.

    Attributes:
        name: Name in reports.
        clock_hz: Core clock.
        execution: Units side by side (decoupled), or one instruction after the other (serial).
        blen: Width of the array's tile.
        mlen: Contraction of the array's tile.
        vlen: Lanes of the vector unit.
        sram: The on-chip memories.
        hbm: The off-chip memory.
        queue_depth: Instructions that wait before each unit at most.
        accumulator_sets: Sets of accumulators in the array; with two, an M_OUT runs beside the products of the next tile.
        write_out_columns: Columns of a tile that leave the array in a cycle.
        fused_exponential: The vector unit has V_EXP_SUM_VF, which subtracts, takes exponentials and sums them in one pass; the
            compiler uses it for softmax.
        dma_outstanding: Descriptors that a DMA queue keeps in flight.
        prefetch_rows: Rows of VLEN elements that one descriptor brings at most where a long row streams in; null: all.
        frontend: The front end.
        host: The processor that samples for the core (`compiler.sampling=host`); null: the core samples.
        append_only_cache: Rows of the KV cache are written once: no step refreshes what later ones attend to.
        timing: Latency and interval of each instruction, by mnemonic.
    """

    name: str
    clock_hz: float = field(metadata=within(1e6, 1e11))
    execution: str = field(metadata=one_of(EXECUTIONS))
    blen: int = field(metadata=within(4, 128, power_of_two=True))
    mlen: int = field(metadata=within(32, 8192, power_of_two=True))
    vlen: int = field(metadata=within(32, 8192, power_of_two=True))
    sram: Sram
    hbm: Hbm
    queue_depth: Mapping[str, int] = field(metadata=within(1, MOST_ENTRIES))
    accumulator_sets: int = field(default=1, metadata=within(1, 2))
    write_out_columns: int = field(default=1, metadata=within(1, 128, power_of_two=True))
    fused_exponential: bool = False
    dma_outstanding: int = field(metadata=within(1, MOST_ENTRIES))
    prefetch_rows: int | None = field(default=None, metadata=within(1, 1 << 20))
    frontend: FrontEnd
    host: Host | None = None
    append_only_cache: bool = False
    timing: Mapping[str, Timing]

    def __post_init__(self) -> None:
        check_choices("hardware", self)
        self.hbm.check_generation()
        most = max(1, min(self.blen, self.vlen // self.blen))
        if self.write_out_columns > most:
            raise TripathError(
                f"hardware.write_out_columns: must be at most {most} (columns of BLEN {self.blen} rows, of which a row of Vector "
                f"SRAM, VLEN {self.vlen}, holds so many), got {self.write_out_columns}"
            )
        if set(self.queue_depth) != set(QUEUED_UNITS):
            raise TripathError(
                f"hardware.queue_depth: needs a depth for each of {', '.join(QUEUED_UNITS)}, "
                f"got {', '.join(self.queue_depth) or 'none'}"
            )
        for mnemonic, row in self.timing.items():
            key = f"hardware.timing.{mnemonic}"
            check_choices(key, row)
            for what, cycles in (("latency", self.latency_cycles), ("interval", self.interval_cycles)):
                check_limits(f"{key}.{what} with its terms per width", cycles(mnemonic), INSTRUCTION_CYCLES)

    @property
    def peak_bytes_per_cycle(self) -> float:
        """Bytes that HBM moves at most in a core cycle."""
        if self.hbm.model == "simple":
            return float(self.hbm.simple_bytes_per_cycle(self.clock_hz))
        return float(self.hbm.bytes_per_memory_cycle / self.hbm.core_cycles_per_memory_cycle(self.clock_hz))

    @property
    def writes_out_beside(self) -> bool:
        """True if an M_OUT occupies only the write-out port, not the array; never in serial execution, where nothing overlaps."""
        return self.accumulator_sets > 1 and self.execution == "decoupled"

    @property
    def tree_levels(self) -> int:
        """Levels of a reduction tree over VLEN lanes, as the published latencies count them: ceil(log2(VLEN + 1))."""
        return math.ceil(math.log2(self.vlen + 1))

    def latency_cycles(self, mnemonic: str) -> int:
        """Cycles from the start of an instruction to its result."""
        row = self._row(mnemonic)
        widths = self._of_widths(row.latency_per_blen, row.latency_per_vlen, row.latency_per_write_out)
        return row.latency + row.latency_per_tree_level * self.tree_levels + widths

    def interval_cycles(self, mnemonic: str) -> int:
        """Cycles from the start of an instruction to the earliest start of the next in the same unit."""
        row = self._row(mnemonic)
        return row.interval + self._of_widths(row.interval_per_blen, row.interval_per_vlen, row.interval_per_write_out)

    def _of_widths(self, per_blen: int, per_vlen: int, per_write_out: int) -> int:
        return per_blen * self.blen + per_vlen * self.vlen + per_write_out * (self.blen // self.write_out_columns)

    def _row(self, mnemonic: str) -> Timing:
        try:
            return self.timing[mnemonic]
        except KeyError:
            raise TripathError(f"hardware.timing: no entry for {mnemonic} (hardware {self.name})") from None
