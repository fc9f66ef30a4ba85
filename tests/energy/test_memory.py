"""Memory that belongs together: stacks, capacity, PHY and standby power follow from generation and channels."""

import dataclasses
import itertools

import pytest

from npu.energy.area import area_terms, static_terms
from npu.errors import TripathError
from npu.hardware import GENERATIONS
from npu.units import GIB
from tests.conftest import compose_experiment

PRODUCTS = {
    # preset, stacks: capacity in GiB and peak in GB/s of what is sold
    ("hbm2", 4): (32, 1024, "MI50, Radeon VII class: four stacks of 8 GB at 2 Gb/s (AMD MI50: 32 GB, 1,024 GB/s)"),
    ("hbm2e", 5): (80, 2039, "A100 80 GB: five stacks, 2,039 GB/s at 3.2 Gb/s"),
    ("hbm3", 8): (128, 6554, "MI300A: 128 GB; 8 stacks at 6.4 Gb/s are 6,554 GB/s, at its 5.2 Gb/s 5,300"),
    ("hbm3e", 6): (144, 7066, "H200: six stacks of 24 GB, 141 GB usable; at 9.2 Gb/s 1,178 GB/s a stack"),
    ("lpddr5x", 4): (32, 273, "256 bits at 8,533 Mb/s: 273 GB/s (DGX Spark)"),
}


def memory(preset, *overrides):
    return compose_experiment("hardware=npu_datacenter", f"hardware/hbm={preset}", *overrides)


@pytest.mark.parametrize(("preset", "stacks"), PRODUCTS)
def test_a_preset_is_what_is_sold(preset, stacks):
    gib, peak, _ = PRODUCTS[preset, stacks]
    hbm = memory(preset, f"hardware.hbm.channels={stacks * GENERATIONS[preset].stack_channels}").hardware.hbm
    assert hbm.used_stacks == stacks
    assert hbm.total_bytes == gib * GIB
    assert float(hbm.bytes_per_memory_cycle) / hbm.tck_ps * 1000 == pytest.approx(peak, rel=0.01)


def test_the_datacenter_core_has_four_stacks():
    hbm = compose_experiment("hardware=npu_datacenter").hardware.hbm
    assert (hbm.generation, hbm.used_stacks, hbm.total_bytes) == ("hbm2e", 4, 64 * GIB)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("hardware.hbm.capacity_bytes=85899345920",), "capacity_bytes: 80 GiB contradicts hardware.hbm.channels 32: .* hold 64 GiB"),
        (("hardware.hbm.stacks=5",), "stacks: 5 contradicts hardware.hbm.channels 32, which are 4 of hbm2e"),
        (("hardware.hbm.stacks=1", "hardware.hbm.channels=6"), "stacks: 1 contradicts .* 6, which are 0.75 of hbm2e"),
        (("hardware.hbm.rows=131072",), "rows: 131072 rows in 2 x 4 x 4 banks make 4 GiB a channel, hbm2e has 1 GiB or 2 GiB"),
        (("hardware.hbm.generation=hbm3",), "make 2 GiB a channel, hbm3 has 1 GiB or 1.5 GiB"),
        (("hardware.hbm.banks_per_group=16",), "make 8 GiB a channel, hbm2e has"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_line(overrides, message):
    with pytest.raises(TripathError, match=message) as caught:
        compose_experiment("hardware=npu_datacenter", *overrides)
    assert "\n" not in str(caught.value)


def test_what_agrees_may_be_stated():
    stated = ("hardware.hbm.stacks=8", "hardware.hbm.channels=64", f"hardware.hbm.capacity_bytes={128 * GIB}")
    assert compose_experiment("hardware=npu_datacenter", *stated).hardware.hbm.used_stacks == 8


def test_another_memory_brings_its_own_capacity():
    hbm = memory("hbm3", "hardware.hbm.channels=8").hardware.hbm
    assert (float(hbm.used_stacks), hbm.total_bytes) == (0.5, 8 * GIB)


@pytest.mark.parametrize("preset", GENERATIONS)
def test_phy_and_standby_follow_the_stacks(preset):
    experiment = memory(preset)
    technology, generation = experiment.technology, GENERATIONS[preset]
    found = {}
    for stacks in (1, 2, 6):
        hbm = dataclasses.replace(experiment.hardware.hbm, channels=stacks * generation.stack_channels)
        hardware = dataclasses.replace(experiment.hardware, hbm=hbm)
        areas = area_terms(technology, hardware, [])
        phy = sum(term.mm2 for term in areas if term.block == "hbm_phy")
        assert phy == pytest.approx(stacks * technology[f"{generation.family}_phy_stack_um2"] * 1e-6)
        found[stacks] = sum(watts for block, watts, _ in static_terms(technology, hardware, areas) if block == "hbm")
    for few, many in itertools.pairwise(found):
        assert found[many] / found[few] == pytest.approx(many / few)
    a_stack = generation.stack_channels * experiment.hardware.hbm.channel_bytes / GIB
    assert found[1] == pytest.approx(a_stack * technology[f"{generation.family}_standby_mw_gib"] * 1e-3)
