"""The burst model of HBM: hand-computed latencies, an oracle that looks at every cycle, published streams, laws."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cycle.dram import CLOSED, FOREIGN, READ, WRITE, all_banks, memory_of, place, stream
from cycle.streams import PUBLISHED, read_streams
from npu.errors import TripathError
from tests.conftest import compose_experiment
from tests.cycle.clocked_dram import run_clocked

HBM2 = dataclasses.replace(compose_experiment().hardware.hbm, refresh="absolute")
PHASES = (Phase.explicit, Phase.generate)
MAPPINGS = ("RoBaRaCoCh", "MOP4CLXOR")


def serve(numbers, kinds=READ, hbm=HBM2, state=CLOSED):
    memory = memory_of(hbm)
    numbers = np.array(numbers, np.int64)
    return stream(numbers, np.broadcast_to(np.int64(kinds), numbers.shape).copy(), memory, all_banks(state, memory))


def with_(**changes):
    return dataclasses.replace(HBM2, **changes)


def timed(**changes):
    return with_(timings={**HBM2.timings, **changes})


# ---- hand-computed: HBM2 at 2 Gb/s; a command may issue in cycle 1 for a burst handed over in cycle 0


def test_a_read_of_a_closed_bank_takes_activation_latency_and_burst():
    """ACT in cycle 1; RD nRCDRD after the second command cycle of ACT: 1 + 1 + 14; data nCL + nBL later: 16 + 14 + 2."""
    assert serve([0]).cycles == 32


def test_a_write_ends_with_its_column_command():
    """ACT in 1, WR in 1 + 1 + nRCDWR."""
    assert serve([0], WRITE).cycles == 14


def test_a_conflict_precharges_first():
    """PRE in 1, ACT begins nRP - 1 after it (it acts in its second cycle): 14, RD in 14 + 1 + 14 = 29, data at 45."""
    served = serve([0], state=FOREIGN)
    assert served.cycles == 45
    assert (served.hits, served.misses, served.conflicts) == (0, 0, 1)


def test_neighbours_in_a_bank_group_are_a_long_gap_apart_and_others_a_short_one():
    """Bursts 0 to 3 of RoBaRaCoCh are columns of one row: RD in 16, 20, 24, 28."""
    assert serve(range(4), hbm=with_(channels=1, address_mapping="RoBaRaCoCh")).cycles == 32 + 3 * 4


def test_pseudo_channels_have_their_own_data_bus_but_share_the_commands():
    """MOP4CLXOR, one channel: burst 0 is in pseudo channel 0, burst 1 in 1: ACTs in 1 and 3 (two command cycles each),
    RDs in 16 and 18."""
    assert serve([0, 1], hbm=with_(channels=1)).cycles == 32 + 2


def test_the_bus_turns_from_reads_to_writes():
    """Two reads and two writes of one row: RDs in 16 and 20. Writes are served when no read waits in the queue: WR at
    nCL + nBL + 2 - nCWL = 13 after the last RD, 33, and nCCDL later, 37."""
    one_row = with_(channels=1, address_mapping="RoBaRaCoCh")
    assert serve(range(4), [READ, READ, WRITE, WRITE], one_row).cycles == 37


def test_the_bus_turns_from_writes_to_reads():
    """A read opens a row (ACT in 1) and waits for nRCDRD; no other read waits, so a write to that row goes first: WR in
    1 + 1 + nRCDWR = 14. RD at nCWL + nBL + nWTRL = 15 after it, 29; data in 45."""
    one_row = with_(channels=1, address_mapping="RoBaRaCoCh")
    assert serve([0, 1], [READ, WRITE], one_row).cycles == 45


def test_at_most_four_activations_in_a_window():
    """Five rows in different bank groups and banks of one pseudo channel: ACTs nRRDS = 4 apart, 1, 5, 9, 13; the fifth at
    17, or nFAW after the first. Its data comes 31 cycles after it."""
    rows = [i << 6 for i in range(5)]  # RoBaRaCoCh: bit 5 the pseudo channel, bits 6 to 9 the bank
    for window, fifth in ((15, 17), (40, 41)):
        timings = {**HBM2.timings, "nFAW": window}
        hbm = with_(channels=1, address_mapping="RoBaRaCoCh", timings=timings)
        assert serve(rows, hbm=hbm).cycles == fifth + 31


def test_refresh_falls_due_by_the_clock_and_keeps_the_memory_busy():
    """One bank, a new row each time: nRC = 48 apart, so the 81st ACT would be in 1 + 80 * 48 = 3841. Its row cannot be
    closed before 3841 + 35, PRE in 3876, ACT in 3889, and RD in 3904. In 3900 refresh falls due. Bursts after that wait."""
    one_bank = [i * 1024 * 32 for i in range(83)]  # RoBaRaCoCh: the row is above 10 bits
    hbm = with_(channels=1, address_mapping="RoBaRaCoCh")
    before, behind = serve(one_bank[:82], hbm=hbm), serve(one_bank, hbm=hbm)
    assert before.cycles == 3904 + 16
    assert before.refresh_cycles == 20
    assert behind.cycles > before.cycles + HBM2.timings["nRFC"]
    assert serve(one_bank, hbm=dataclasses.replace(hbm, refresh="per_transfer")).refresh_cycles == 0


def test_a_read_of_a_burst_that_waits_to_be_written_is_answered_from_the_queue():
    hbm = with_(channels=1)
    numbers = [i << 15 for i in range(8)]
    alone, answered = serve(numbers, WRITE, hbm), serve([*numbers, numbers[-1]], [*[WRITE] * 8, READ], hbm)
    assert answered.cycles == alone.cycles
    assert answered.hits + answered.misses + answered.conflicts == 8


# ---- published streams


@pytest.mark.parametrize("published", read_streams(PUBLISHED, HBM2), ids=lambda s: f"{s.name}-{s.mapping}-{s.channels}")
def test_published_streams_to_the_cycle(published):
    assert published.run().cycles == published.cycles


def test_published_rows_found():
    """The file also says what the streams found; hits, misses and conflicts are equal."""
    import json
    from importlib.resources import files

    entries = json.loads(files("cycle").joinpath("data/hbm_streams.json").read_text())["streams"]
    for entry, published in zip(entries, read_streams(PUBLISHED, HBM2), strict=True):
        served = published.run()
        expected = [entry[f"row_{kind}"] for kind in ("hits", "misses", "conflicts")]
        assert [served.hits, served.misses, served.conflicts] == expected, published.name


# ---- laws

bursts = st.lists(st.tuples(st.integers(0, 1 << 14), st.sampled_from([READ, WRITE])), min_size=1, max_size=200)
hardware = st.builds(
    lambda channels, mapping, interleave: with_(channels=channels, address_mapping=mapping, interleave_bytes=interleave),
    st.sampled_from([1, 2, 3, 8]), st.sampled_from(MAPPINGS), st.sampled_from([32, 256, 1024]),
)  # fmt: skip


places = st.one_of(st.integers(0, 63), st.integers(0, 1 << 14), st.integers(0, 31).map(lambda row: row << 15))
mixes = st.lists(st.tuples(places, st.integers(1, 24), st.sampled_from([READ, WRITE])), min_size=1, max_size=12)
intervals = st.sampled_from([HBM2.timings["nREFI"], 700])


@settings(max_examples=40, deadline=None, phases=PHASES)
@given(mixes, hardware, intervals, st.sampled_from([32, 5]))
def test_streams_are_served_as_by_a_controller_that_looks_at_every_cycle(runs, hbm, interval, entries):
    """Reads and writes mixed, with repeated bursts; short intervals of refresh, short queues."""
    numbers = [first + i for first, count, _ in runs for i in range(count)]
    kinds = [kind for _, count, kind in runs for _ in range(count)]
    timings = {**HBM2.timings, "nREFI": interval}
    hbm = dataclasses.replace(hbm, timings=timings, read_queue_entries=entries, write_queue_entries=entries)
    served = serve(numbers, kinds, hbm)
    expected = run_clocked(numbers, kinds, memory_of(hbm), np.empty(5, np.int64))
    assert (served.cycles, served.hits, served.misses, served.conflicts) == expected


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(bursts, hardware)
def test_every_burst_is_counted_once_and_no_data_bus_carries_two(requests, hbm):
    requests = list({number: (number, kind) for number, kind in requests}.values())  # twins are merged in the queue
    numbers, kinds = zip(*requests, strict=True)
    served = serve(numbers, list(kinds), hbm)
    assert served.hits + served.misses + served.conflicts == len(requests)
    memory, values = memory_of(hbm), np.empty(5, np.int64)
    halves = [place(number, memory, values)[1] // 16 for number in numbers]
    assert served.cycles >= 2 * max(halves.count(half) for half in halves)
    banks = {place(number, memory, values)[1] for number in numbers}
    assert served.misses >= len(banks)


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=30), st.sampled_from(MAPPINGS))
def test_rows_found_when_nothing_can_be_reordered_by_brute_force(numbers, mapping):
    """One burst after the other: a queue of one place serves in order of entry, so the rows found are those of a walk."""
    hbm = with_(channels=1, address_mapping=mapping, read_queue_entries=1, refresh="per_transfer")
    memory, values = memory_of(hbm), np.empty(5, np.int64)
    opened, tally = {}, {"hits": 0, "misses": 0, "conflicts": 0}
    for number in numbers:
        _, bank, row = place(number, memory, values)
        found = "misses" if bank not in opened else "hits" if opened[bank] == row else "conflicts"
        tally[found] += 1
        opened[bank] = row
    served = serve(numbers, hbm=hbm)
    assert {name: getattr(served, name) for name in tally} == tally


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("kind", [READ, WRITE])
def test_more_channels_never_slow_a_sequential_stream(mapping, kind):
    for count in (1, 64, 1024, 8192):
        cycles = [
            serve(range(count), kind, with_(channels=channels, address_mapping=mapping)).cycles
            for channels in (1, 2, 4, 8, 16)
        ]
        assert cycles == sorted(cycles, reverse=True)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("channels", [1, 8])
def test_more_bytes_never_take_less(mapping, channels):
    hbm = with_(channels=channels, address_mapping=mapping)
    cycles = [serve(range(count), hbm=hbm).cycles for count in range(8, 2000, 8)]
    assert cycles == sorted(cycles)


def test_the_default_mapping_hides_the_long_gap_in_a_bank_group():
    """Sequential reads of a MiB, no refresh: over 90 % of the peak, where RoBaRaCoCh reaches 56 %."""
    hbm = with_(channels=1, refresh="per_transfer")
    assert HBM2.address_mapping == "MOP4CLXOR"
    assert serve(range(32768), hbm=hbm).cycles < 32768 / 0.9
    assert serve(range(32768), hbm=dataclasses.replace(hbm, address_mapping="RoBaRaCoCh")).cycles > 32768 / 0.6


@pytest.mark.parametrize("name", ["nCL", "nRCDRD", "nRP", "nRAS", "nRC", "nCCDL", "nRRDS", "nFAW", "nRFC"])
def test_a_slower_timing_is_seen(name):
    """On a stream that hangs on it: random rows, or a sequential stream for nCCDL and nRFC."""
    numbers = range(8192) if name in ("nCCDL", "nRFC") else np.random.default_rng(1).integers(0, 1 << 22, 2048)
    hbm = timed(**{name: HBM2.timings[name] * 2})
    assert (
        serve(numbers, hbm=with_(channels=2)).cycles < serve(numbers, hbm=dataclasses.replace(hbm, channels=2)).cycles
    )


@settings(max_examples=100, deadline=None, phases=PHASES)
@given(hardware)
def test_a_mapping_places_every_burst_elsewhere(hbm):
    memory, values = memory_of(hbm), np.empty(5, np.int64)
    placed = set()
    for number in range(4096):
        channel, bank, row = place(number, memory, values)
        assert bank // 32 == channel
        placed.add((bank, row, values[0]))
    assert len(placed) == 4096


# ---- presets


@pytest.mark.parametrize(
    ("preset", "peak"), [("hbm2", 32), ("hbm2e", 51.2), ("hbm3", 51.2), ("hbm3e", 73.6), ("lpddr5x", 17.066)]
)
def test_presets_compose_and_reach_their_bandwidth(preset, peak):
    """Bytes per nanosecond and channel: pins times rate, 128 x 2 and 3.2, 64 x 6.4 and 9.2, 16 x 8.533 Gb/s."""
    hbm = compose_experiment(f"hardware/hbm={preset}", "hardware.hbm.channels=1").hardware.hbm
    assert float(hbm.bytes_per_memory_cycle) / hbm.tck_ps * 1000 == pytest.approx(peak, rel=1e-3)
    count = 16384
    cycles = serve(range(count), hbm=hbm).cycles
    assert count * hbm.burst_bytes / cycles > 0.8 * hbm.bytes_per_memory_cycle
    assert hbm.core_cycles_per_memory_cycle(1e9) * 1000 == hbm.tck_ps


BROKEN = [
    ({"page_bytes": 1000}, "page_bytes: must be a power of two"),
    ({"interleave_bytes": 48}, "interleave_bytes: must be a multiple of burst_bytes"),
    ({"address_mapping": "ChRaBaRoCo"}, "address_mapping: unknown 'ChRaBaRoCo', one of RoBaRaCoCh, MOP4CLXOR"),
    ({"refresh": "never"}, "refresh: unknown 'never', one of per_transfer, absolute"),
    ({"page_bytes": 64}, "page_bytes: MOP4CLXOR needs at least 4 bursts"),
    ({"channels": 4096}, "channels: must make at most 65536 banks"),
    ({"timings": {"nBL": 2}}, "timings.nCL: is missing"),
    ({"timings": {**HBM2.timings, "nXY": 1}}, "timings.nXY: no such timing"),
    ({"timings": {**HBM2.timings, "nCL": 0}}, "timings.nCL: must be from 1"),
    ({"timings": {**HBM2.timings, "nREFI": 400}}, "timings.nREFI: must be above"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_memory_that_cannot_be_is_refused(changes, message):
    with pytest.raises(TripathError, match=f"hardware.hbm.{message}"):
        with_(**changes)


def test_the_shortest_interval_of_refresh_still_serves():
    """Just above the limit, every kind of stream ends."""
    with pytest.raises(TripathError) as refused:
        timed(nREFI=400)
    needed = int(str(refused.value).split("above ")[1].split()[0])
    hbm = dataclasses.replace(timed(nREFI=needed + 1), channels=1)
    draw = np.random.default_rng(3)
    for kinds, span in itertools.product((READ, WRITE, draw.integers(0, 2, 500)), (500, 1 << 22)):
        assert serve(draw.integers(0, span, 500), kinds, hbm).cycles
