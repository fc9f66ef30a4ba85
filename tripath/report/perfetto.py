"""The recorded window of a run as a trace that https://ui.perfetto.dev opens: a nanosecond there is a cycle here.

A unit is a track of phases with its instructions below. Instructions of a pipelined unit overlap, slices of one track may
not: they lie in lanes, tracks of one name, which the viewer draws as one. Counters: how many instructions each queue holds,
and what HBM moves. The window holds a bounded number of instructions, and each leaves at most seven packets.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from npu.metrics import UNITS, Table

if TYPE_CHECKING:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket

FILE = "timeline.perfetto-trace"
INSTRUCTIONS = "instructions"
"""Name of the lanes below a unit."""
QUEUES = {"matrix": ("matrix",), "vector": ("vector", "scalar"), "dma_in": ("dma_in",), "dma_out": ("dma_out",)}
"""Units that each queue serves."""
DIRECTIONS = {"dma_in": "HBM reads", "dma_out": "HBM writes"}
SEQUENCE = 1
"""All packets come from one writer."""


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the table `timeline`."""

    instruction: str
    phase: str
    unit: str
    dispatched: int
    start: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class Mark:
    """One packet to write: a slice that begins (`name`, `category`) or ends (neither), or the `value` of a counter."""

    cycle: int
    track: int
    name: str | None = None
    category: str | None = None
    size: int = 0
    value: float | None = None


def write_trace(path: Path, timeline: Table, title: str) -> Path:
    """Write the table `timeline` of the cycle path to `path`, below a track of that title."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    events = _events(timeline)
    builder = TraceProtoBuilder()
    root = _describe(builder.add_packet(), 1, None, title, 0)
    root.sequence_flags = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    marks: list[Mark] = []
    track, rank = 1, 0
    for unit in UNITS:
        own = sorted((event for event in events if event.unit == unit), key=lambda event: (event.start, event.end))
        if not own:
            continue
        rank, track = rank + 1, track + 1
        _describe(builder.add_packet(), track, 1, unit, rank)
        marks += _phases(own, track)
        above = track
        for lane in _lanes(own):
            track += 1
            _describe(builder.add_packet(), track, above, INSTRUCTIONS, 0)
            for event in lane:
                marks.append(Mark(event.start, track, event.instruction, event.phase, event.size))
                marks.append(Mark(event.end, track))
    for name, unit_of_measure, changes in _counters(events):
        rank, track = rank + 1, track + 1
        _describe(builder.add_packet(), track, 1, name, rank).track_descriptor.counter.unit_name = unit_of_measure
        marks += [Mark(cycle, track, value=value) for cycle, value in _levels(changes)]
    for mark in sorted(marks, key=lambda mark: mark.cycle):  # stable: in each track a slice ends before the next begins
        _write(builder.add_packet(), mark)
    path.write_bytes(builder.serialize())
    return path


def _events(timeline: Table) -> list[Event]:
    columns = ("instruction", "phase", "unit", "dispatched", "start", "end", "bytes")
    at = [list(timeline.columns).index(name) for name in columns]
    rows = ([row[place] for place in at] for row in timeline.rows)
    return [
        Event(str(mnemonic), str(phase), str(unit), *(int(str(number)) for number in numbers))
        for mnemonic, phase, unit, *numbers in rows
    ]


def _phases(events: Iterable[Event], track: int) -> Iterator[Mark]:
    """Instructions of one phase in a row, in order of their starts, are one slice; the next one cuts it off."""
    runs: list[tuple[str, int, int]] = []
    for event in events:
        if runs and runs[-1][0] == event.phase:
            runs[-1] = (event.phase, runs[-1][1], max(runs[-1][2], event.end))
        else:
            runs.append((event.phase, event.start, event.end))
    for number, (phase, start, end) in enumerate(runs):
        until = min(end, runs[number + 1][1]) if number + 1 < len(runs) else end
        if start < until:
            yield Mark(start, track, phase, phase)
            yield Mark(until, track)


def _lanes(events: Iterable[Event]) -> list[list[Event]]:
    """As few rows as hold events in order of their starts without any overlap."""
    lanes: list[list[Event]] = []
    for event in events:
        free = next((lane for lane in lanes if lane[-1].end <= event.start), None)
        if free is None:
            lanes.append([event])
        else:
            free.append(event)
    return lanes


def _counters(events: Iterable[Event]) -> Iterator[tuple[str, str, dict[int, Fraction]]]:
    """(name, unit of measure, changes by cycle) of each counter: what is in a queue, and bytes a cycle in each direction.

    The bytes of a transfer count evenly from its first cycle on HBM to its completion.
    """
    for queue, units in QUEUES.items():
        changes: dict[int, Fraction] = defaultdict(Fraction)
        for event in events:
            if event.unit in units:
                changes[event.dispatched] += 1
                changes[event.start] -= 1
        if changes:
            yield f"{queue} queue", "instructions", changes
    for unit, name in DIRECTIONS.items():
        changes = defaultdict(Fraction)
        for event in events:
            if event.unit == unit and event.size and event.end > event.start:
                rate = Fraction(event.size, event.end - event.start)
                changes[event.start] += rate
                changes[event.end] -= rate
        if changes:
            yield name, "bytes/cycle", changes


def _levels(changes: dict[int, Fraction]) -> Iterator[tuple[int, float]]:
    """The value of a counter after each of its changes."""
    level = Fraction(0)
    for cycle in sorted(changes):
        if changes[cycle]:
            level += changes[cycle]
            yield cycle, float(level)


def _describe(packet: "TracePacket", track: int, parent: int | None, name: str, rank: int) -> "TracePacket":
    """Make a packet the descriptor of a track; the root has no parent, and is no process: below one Perfetto ignores ranks."""
    packet.trusted_packet_sequence_id = SEQUENCE
    descriptor = packet.track_descriptor
    descriptor.uuid, descriptor.sibling_order_rank = track, rank
    descriptor.child_ordering, descriptor.name = descriptor.EXPLICIT, name
    if parent is not None:
        descriptor.parent_uuid = parent
    return packet


def _write(packet: "TracePacket", mark: Mark) -> None:
    packet.timestamp, packet.trusted_packet_sequence_id = mark.cycle, SEQUENCE
    event = packet.track_event
    event.track_uuid = mark.track
    if mark.value is not None:
        event.type, event.double_counter_value = event.TYPE_COUNTER, mark.value
    elif mark.name is None or mark.category is None:
        event.type = event.TYPE_SLICE_END
    else:
        event.type, event.name = event.TYPE_SLICE_BEGIN, mark.name
        event.categories.append(mark.category)
        if mark.size:
            event.debug_annotations.add(name="bytes", uint_value=mark.size)
