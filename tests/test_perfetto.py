"""The trace for Perfetto, read back with the messages of Perfetto's own package."""

import random
import shutil
import subprocess
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from npu.metrics import UNITS, Table
from tests.conftest import compiled, compose_experiment
from tripath.report.perfetto import INSTRUCTIONS, QUEUES, write_trace

COLUMNS = ["instruction", "phase", "unit", "dispatched", "start", "end", "bytes"]
EVENT_BYTES = 400
"""More than seven packets take."""


def read(path):
    """{track: (name, parent)}, slices [(track, name, category, start, end, bytes)], {counter: [(cycle, value)]}.

    Asserts what the viewer expects: time never goes back, and in each track what ends is what began last.
    """
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

    trace, tracks, slices, counters, opened = Trace(), {}, [], defaultdict(list), defaultdict(list)
    trace.ParseFromString(path.read_bytes())
    assert trace.packet[0].sequence_flags == 1
    last = 0
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id == 1
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            name = descriptor.name
            assert not descriptor.HasField("process")  # below one the viewer sorts tracks by their names
            tracks[descriptor.uuid] = name, descriptor.parent_uuid, descriptor.HasField("counter")
            continue
        event = packet.track_event
        assert packet.timestamp >= last
        last = packet.timestamp
        name, _, counts = tracks[event.track_uuid]
        if event.type == TrackEvent.TYPE_COUNTER:
            assert counts
            counters[name].append((packet.timestamp, event.double_counter_value))
        elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert not opened[event.track_uuid]
            size = sum(note.uint_value for note in event.debug_annotations if note.name == "bytes")
            opened[event.track_uuid].append((event.name, *event.categories, packet.timestamp, size))
        else:
            name, category, start, size = opened[event.track_uuid].pop()
            slices.append((event.track_uuid, name, category, start, packet.timestamp, size))
    assert not any(opened.values())
    return tracks, slices, counters


def check(path, table):
    tracks, slices, counters = read(path)
    below = {number: tracks[parent][0] for number, (name, parent, _) in tracks.items() if name == INSTRUCTIONS}
    seen = Counter(
        (name, phase, below[track], start, end, size)
        for track, name, phase, start, end, size in slices
        if track in below
    )
    assert seen == Counter((i, p, u, s, e, b) for i, p, u, _, s, e, b in table.rows)
    units = {row[2] for row in table.rows}
    assert sorted(name for name, parent, counts in tracks.values() if parent == 1 and not counts) == sorted(units)
    for unit in units:  # the phases of a unit lie behind each other, and begin where an instruction of theirs does
        own = [row for row in slices if tracks[row[0]][0] == unit]
        starts = {(row[1], row[4]) for row in table.rows if row[2] == unit}
        assert all((phase, start) in starts for _, phase, _, start, _, _ in own)
    for name, values in counters.items():
        assert values[-1][1] == 0, name
        assert min(value for _, value in values) >= 0, name
        cycles = [cycle for cycle, _ in values]
        assert cycles == sorted(set(cycles))
    for queue, served in QUEUES.items():
        own = [row for row in table.rows if row[2] in served]
        for cycle, value in random.Random(0).sample(
            counters[f"{queue} queue"], min(20, len(counters[f"{queue} queue"]))
        ):
            assert value == sum(row[3] <= cycle < row[4] for row in own)
    for unit, name in (("dma_in", "HBM reads"), ("dma_out", "HBM writes")):
        values = counters[name]
        moved = sum(rate * (then - now) for (now, rate), (then, _) in pairwise(values))
        assert moved == pytest.approx(sum(row[6] for row in table.rows if row[2] == unit), abs=1e-6)
    return tracks, slices, counters


@pytest.fixture(scope="module")
def window():
    """The instructions of a window of a real run."""
    import cycle

    experiment = compose_experiment("experiment=quick")
    program, trace = compiled(experiment)
    result = cycle.simulate(program, hardware=experiment.hardware, trace=trace, trace_window=(5_000, 30_000))
    return result.tables["timeline"]


def test_a_real_window(tmp_path, window):
    table = window
    assert len(table.rows) > 1000
    path = write_trace(tmp_path / "trace", table, "a name")
    tracks, _, _ = check(path, table)
    assert tracks[1] == ("a name", 0, False)
    assert path.stat().st_size < EVENT_BYTES * len(table.rows)


def test_a_window_without_instructions(tmp_path):
    tracks, slices, counters = read(write_trace(tmp_path / "trace", Table(columns=COLUMNS, rows=[]), "nothing"))
    assert (len(tracks), slices, counters) == (1, [], {})


def test_by_hand(tmp_path):
    """Two overlapping adds need two lanes, the third fits the first; a descriptor of 64 bytes over 8 cycles is 8 a cycle."""
    rows = [
        ["V_ADD_VV", "ffn", "vector", 1, 2, 14, 0],
        ["V_ADD_VV", "ffn", "vector", 2, 3, 15, 0],
        ["V_EXP_V", "sampling", "vector", 3, 14, 35, 0],
        ["S_MOV_FP", "sampling", "scalar", 4, 15, 15, 0],
        ["H_LOAD_M", "ffn", "dma_in", 5, 6, 14, 64],
    ]
    table = Table(columns=COLUMNS, rows=rows)
    tracks, slices, counters = read(write_trace(tmp_path / "trace", table, "hand"))
    names = Counter(tracks[parent][0] for name, parent, _ in tracks.values() if name == INSTRUCTIONS)
    assert names == {"vector": 2, "scalar": 1, "dma_in": 1}
    phases = [(phase, start, end) for track, phase, _, start, end, _ in slices if tracks[track][0] == "vector"]
    assert phases == [("ffn", 2, 14), ("sampling", 14, 35)]
    assert counters["vector queue"] == [(1, 1), (4, 2), (14, 1), (15, 0)]
    assert counters["HBM reads"] == [(6, 8), (14, 0)]


def test_the_largest_window_stays_small(tmp_path):
    """100,000 events, the most that a run records: each leaves a slice in a lane, one of a phase, and its counters."""
    rows, units = [], ["matrix", "vector", "scalar", "dma_in", "dma_out"]
    for number in range(100_000):
        start = 3 * number
        rows.append(
            [
                "V_RED_MAX_IDX",
                ("sampling", "commit")[number // 5 % 2],
                units[number % 5],
                start - start % 7,
                start,
                start + 40,
                9,
            ]
        )
    path = write_trace(tmp_path / "trace", Table(columns=COLUMNS, rows=rows), "large")
    assert path.stat().st_size < EVENT_BYTES * len(rows) < 50e6


ENGINE = shutil.which("trace_processor_shell")
"""What Perfetto's viewer runs: built from its source, for no registry has it."""
ORDER = """INCLUDE PERFETTO MODULE viz.summary.track_event;
SELECT name FROM _track_event_tracks_ordered_groups WHERE name != 'instructions' ORDER BY order_id;"""


@pytest.mark.skipif(ENGINE is None, reason="no trace_processor_shell")
def test_the_viewer_s_engine_finds_no_error_and_keeps_the_order(tmp_path, window):
    path = write_trace(tmp_path / "trace", window, "a run")

    def query(sql):
        file = tmp_path / "query.sql"
        file.write_text(sql)
        done = subprocess.run([ENGINE, "-q", file, path], capture_output=True, text=True, check=True)
        return [line.strip('"') for line in done.stdout.splitlines()[1:]]

    assert query("SELECT name FROM stats WHERE value > 0 AND severity IN ('error', 'data_loss');") == []
    assert query("SELECT count(*) FROM slice WHERE dur < 0 OR depth > 0;") == ["0"]
    shown = "SELECT count(*) FROM slice JOIN track ON slice.track_id = track.id WHERE track.name = 'instructions';"
    assert query(shown) == [str(len(window.rows))]
    units = [unit for unit in UNITS if any(row[2] == unit for row in window.rows)]
    queues = [f"{unit} queue" for unit in QUEUES]
    assert [name for name in query(ORDER) if name in {*units, *queues}] == [*units, *queues]
