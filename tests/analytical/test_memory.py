"""What the analytical path says of descriptors, against the burst model of the cycle path, which serves every burst."""

import dataclasses
import random

import pytest

from analytical.bursts import channels_of, cost_of
from analytical.memory import Pattern, cycles_of, memory_facts
from cycle.transfers import dma_memory_of, transfer
from tests.conftest import compose_experiment

SHAPES = [(1, 528, 0), (1, 2112, 0), (1, 16384, 0), (16, 264, 1056), (4, 1056, 8448)]


def memories(seed, number):
    """Memories that the closed form does not know: short queues, or neighbours in one bank group."""
    chance, shipped = random.Random(seed), compose_experiment().hardware.hbm
    for _ in range(number):
        yield dataclasses.replace(
            shipped, channels=chance.choice([1, 2, 4, 8]), address_mapping=chance.choice(["MOP4CLXOR", "RoBaRaCoCh"]),
            read_queue_entries=chance.choice([1, 2, 3, 4, 8, 16]), write_queue_entries=chance.choice([1, 2, 4, 8, 16]),
            interleave_bytes=chance.choice([64, 256, 1024]),
        )  # fmt: skip


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_streams_of_bursts_take_what_the_burst_model_says(write):
    errors = []
    for memory in memories(int(write), 8):
        for rows, size, stride in SHAPES:
            exact = transfer(rows, size, stride, 0, int(write), dma_memory_of(memory))
            cost = cost_of(channels_of(memory, write=write), rows, size, stride, 0)
            busy = exact.occupied - exact.refresh_cycles
            errors.append(abs(max(cost.busy, exact.ideal) - busy) / busy)
            # Whole cycles, so one more or less; a burst may wait for another that overtakes it.
            assert cost.alone == pytest.approx(exact.occupied - exact.refresh_cycles + exact.latency, rel=0.15, abs=2)
    errors.sort()
    assert errors[len(errors) // 2] <= 0.02
    assert errors[-1] <= 0.3


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("hbm", ["hbm2", "hbm2e", "hbm3", "hbm3e", "lpddr5x"])
def test_presets_are_priced_in_closed_form_near_the_burst_model(hbm, write):
    hardware = compose_experiment(f"hardware/hbm={hbm}", "hardware.hbm.channels=4").hardware
    facts = memory_facts(hardware, write=write)
    assert facts.channels is None
    exact = transfer(1, 65536, 0, 0, int(write), dma_memory_of(hardware.hbm)).occupied * facts_scale(hardware)
    assert cycles_of(facts, Pattern(1, 65536, 0, 65536))[0] == pytest.approx(exact, rel=0.1)


def facts_scale(hardware):
    return float(hardware.hbm.core_cycles_per_memory_cycle(hardware.clock_hz))


def test_a_longer_queue_never_costs_cycles():
    shipped = compose_experiment().hardware.hbm
    for mapping in ("MOP4CLXOR", "RoBaRaCoCh"):
        busy = [
            cost_of(
                channels_of(
                    dataclasses.replace(shipped, address_mapping=mapping, channels=4, read_queue_entries=entries),
                    write=False,
                ),
                1,
                2112,
                0,
                0,
            ).busy
            for entries in (1, 2, 4, 8, 16)
        ]
        assert busy == sorted(busy, reverse=True)
