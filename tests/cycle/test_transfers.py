"""What one DMA descriptor costs: period of the mapping, parts that add up, and how far it is from all bursts in one run."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cycle.dram import FOREIGN, READ, all_banks, place, stream
from cycle.transfers import absolute_refresh, bursts_of, dma_memory_of, mapping_period_bytes, transfer
from tests.conftest import compose_experiment

HBM2 = compose_experiment().hardware.hbm
PHASES = (Phase.explicit, Phase.generate)

memories = st.builds(
    lambda channels, mapping, interleave, refresh: dataclasses.replace(
        HBM2, channels=channels, address_mapping=mapping, interleave_bytes=interleave, refresh=refresh
    ),
    st.sampled_from([1, 2, 3, 8]), st.sampled_from(["RoBaRaCoCh", "MOP4CLXOR"]), st.sampled_from([32, 256, 96, 65536]),
    st.sampled_from(["per_transfer", "absolute"]),
)  # fmt: skip
descriptors = st.tuples(
    st.integers(1, 12), st.integers(1, 400), st.integers(401, 5000), st.integers(0, 1 << 30), st.integers(0, 1)
)


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(descriptors, memories, st.integers(1, 50_000))
def test_whole_bursts_further_on_the_cost_is_the_same(descriptor, hbm, bursts):
    rows, size, stride, address, write = descriptor
    memory, further = dma_memory_of(hbm), address + bursts * hbm.burst_bytes
    assert transfer(rows, size, stride, address, write, memory) == transfer(rows, size, stride, further, write, memory)


@settings(max_examples=80, deadline=None, phases=PHASES)
@given(st.integers(0, 1 << 22), memories)
def test_a_period_further_lies_the_same_place_some_rows_on(number, hbm):
    memory, values = dma_memory_of(hbm).memory, np.empty(5, np.int64)
    channel, bank, row = place(number, memory, values)
    column, other = values[0], place(number + mapping_period_bytes(hbm) // hbm.burst_bytes, memory, values)
    assert (other[0], other[1], values[0]) == (channel, bank, column)
    assert other[2] > row


@settings(max_examples=80, deadline=None, phases=PHASES)
@given(descriptors, memories)
def test_parts_add_up_and_the_whole_is_what_the_descriptor_takes_alone(descriptor, hbm):
    memory = dma_memory_of(hbm)
    cost = transfer(*descriptor, memory)
    rows, size, stride, address, write = descriptor
    numbers = bursts_of(rows, size, stride, address, hbm.burst_bytes)
    touched = [{(address + row * stride + byte) // 32 for byte in range(size)} for row in range(rows)]
    assert cost.bursts == len(numbers) == sum(map(len, touched))
    assert cost.occupied == cost.ideal + cost.row_cycles + cost.refresh_cycles
    assert cost.ideal * hbm.bytes_per_memory_cycle >= cost.bursts * hbm.burst_bytes
    assert min(cost.row_cycles, cost.refresh_cycles, cost.latency) >= 0
    start = address % hbm.burst_bytes
    alone = stream(
        bursts_of(rows, size, stride, start, hbm.burst_bytes), np.full(len(numbers), write), memory.memory,
        all_banks(FOREIGN, memory.memory),
    )  # fmt: skip
    assert cost.occupied - cost.refresh_cycles + cost.latency == alone.cycles
    assert (cost.hits, cost.misses, cost.conflicts) == (alone.hits, alone.misses, alone.conflicts)
    if not write:  # twins of writes are merged in the queue
        assert cost.hits + cost.misses + cost.conflicts == cost.bursts


def test_one_burst_by_hand():
    """PRE in 1, ACT in 14, RD in 29, data in 45. Further bursts in a row come every cycle: 32 bytes a cycle and channel."""
    cost = transfer(1, 32, 32, 0, READ, dma_memory_of(dataclasses.replace(HBM2, channels=1)))
    assert cost.occupied + cost.latency == 45
    assert (cost.ideal, cost.bursts, cost.hits, cost.misses, cost.conflicts) == (1, 1, 0, 0, 1)


def test_runs_without_a_gap_are_one_run():
    memory = dma_memory_of(HBM2)
    assert transfer(32, 33, 33, 64, READ, memory) == transfer(1, 32 * 33, 32 * 33, 64, READ, memory)


@settings(max_examples=200, deadline=None, phases=PHASES)
@given(st.integers(0, 20_000), st.integers(0, 20_000))
def test_refresh_by_the_clock_is_a_walk_over_the_cycles(start, busy):
    clock, left, lost = start, busy, 0
    while left:
        stopped = clock >= 3900 and clock % 3900 < 350
        lost, left, clock = lost + stopped, left - (not stopped), clock + 1
    assert absolute_refresh(start, busy, 350, 3900) == lost


def in_one_run(size, periods, hbm):
    """Memory cycles of all bursts of contiguous panels over some periods of the mapping, and the number of panels."""
    memory = dma_memory_of(hbm)
    panels = periods * memory.period_bytes // size
    numbers = np.arange(panels * size // 32)
    return stream(
        numbers, np.zeros(len(numbers), np.int64), memory.memory, all_banks(FOREIGN, memory.memory)
    ).cycles, panels


@pytest.mark.parametrize("kib", [1, 4, 16, 64, 68])
@pytest.mark.parametrize("channels", [2, 8])
def test_weight_panels_one_by_one_are_near_all_their_bursts_in_one_run(kib, channels):
    """Within 4 % and a cycle of rounding for panels that follow each other, over eight periods of the mapping."""
    hbm = dataclasses.replace(HBM2, channels=channels)
    run, panels = in_one_run(kib * 1024, 8, hbm)
    cost = transfer(1, kib * 1024, kib * 1024, 0, READ, dma_memory_of(hbm))
    assert abs(panels * (cost.occupied - cost.refresh_cycles) - run) <= 0.04 * run + panels / 2
    assert panels * cost.ideal <= run


@pytest.mark.parametrize("kib", [4, 64, 256])
def test_refresh_takes_its_share_of_the_time(kib):
    cost = transfer(1, kib * 1024, kib * 1024, 0, READ, dma_memory_of(HBM2))
    without = transfer(1, kib * 1024, kib * 1024, 0, READ, dma_memory_of(dataclasses.replace(HBM2, refresh="absolute")))
    assert without.refresh_cycles == 0
    assert cost.occupied == pytest.approx(without.occupied * 3900 / (3900 - 350), abs=1)
