"""Every number of a configuration has limits, which its page states and which are checked before anything is computed."""

import copy
import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence

import pytest

from dllm.model import ModelSpec
from npu.choices import Limits, choices_of, limits_of
from npu.errors import TripathError
from npu.sourced import LIMITS
from tests.conftest import compose_experiment
from tripath.command.building import build
from tripath.command.composition import build_experiment, compose_values
from tripath.command.manual import BESIDE, GROUPS, manual
from tripath.sweeps.search import Search
from tripath.validation.settings import MAXIMUM_TOLERANCE, HostSettings, Reference, Tolerance

BEYOND = (-(10**30), -(2**63), -1, 0, 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**64, 10**30, 1e-300, 1e300)
"""Numbers that wrapped, hung or raised in a machine of 64 bits."""
BY_KIND = {Tolerance, Reference}
"""Tolerances, whose limit depends on the kind of check (`MAXIMUM_TOLERANCE`)."""
SHAPES = {ModelSpec}
"""Bounded by the memory of the hardware, and by the checkpoint."""
OF_SHAPES = {"validation.host.shapes"}
"""Fields of such classes, under their names."""


def numeric(hint):
    """Whether values of a type, or the values in them, are numbers."""
    if typing.get_args(hint):
        return any(map(numeric, typing.get_args(hint)))
    return hint in (int, float)


def fields_of(key, kind):
    """Every field below a class of the configuration that takes numbers, with its key."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{key}.{field.name}"
        inner = [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]
        if inner:
            of_many = typing.get_origin(hint) in (Mapping, Sequence)
            yield from fields_of(f"{name}.NAME" if of_many else name, inner[0])
        elif numeric(hint) and kind not in BY_KIND | SHAPES and name not in OF_SHAPES:
            yield name, field


FIELDS = [each for group, (_, *kinds) in GROUPS.items() for kind in kinds for each in fields_of(group, kind)]
FIELDS += [*fields_of("validation.host", HostSettings), *fields_of("hydra.sweeper.search", Search)]
LIMITED = {key: limits for key, field in FIELDS if (limits := limits_of(field)) is not None}


def test_every_number_has_limits_or_choices():
    assert len(LIMITED) > 60
    assert not [key for key, field in FIELDS if limits_of(field) is None and not choices_of(field)]
    assert all(0 <= limit <= 0.5 for limit in MAXIMUM_TOLERANCE.values())


def test_the_page_states_the_limits():
    rows = [line for line in manual().splitlines() if line.startswith("| `")]
    for key, limits in LIMITED.items():
        assert [row for row in rows if row.startswith(f"| `{key}`") and str(limits).capitalize() in row], key


def keys_of(key, values):
    """The keys of a configuration that `key` with its `NAME`s stands for; of a mapping of numbers, all of them."""
    first, name, rest = key.partition(".NAME.")
    node = values
    for part in first.split("."):
        node = node[part]
    if name:
        return [f"{first}.{each}.{rest}" for each in list(node)[:3]]
    return [f"{first}.{each}" for each in node] if isinstance(node, Mapping) else [first]


VALUES = compose_values(
    "paths=[analytical,cycle]",
    "model.checkpoint=null",
    "workload.prompt_length=9",
    "workload.batch=1",
    "workload=wordmath",
    "workload.steps=32",
    "hardware/host=pcie4",
    "compiler=host_sampling",
)
VALUES["workload"]["default_prompt"] = None
OF_GROUPS = {
    key: limits for key, limits in LIMITED.items() if key.split(".")[0] in ("hardware", "workload", "numerics")
}


@pytest.mark.parametrize("key", OF_GROUPS)
def test_what_lies_beyond_a_limit_is_refused_by_its_key(key):
    limits = OF_GROUPS[key]
    kind = int if isinstance(limits.low, int) else float
    for place in keys_of(key, VALUES):
        for value in {kind(each) for each in BEYOND} | {kind(limits.low - 1), kind(limits.high * 2)}:
            changed = copy.deepcopy(VALUES)
            node = changed
            *path, last = place.split(".")
            for part in path:
                node = node[part]
            node[last] = value
            try:
                build_experiment(changed)
            except TripathError as error:
                said = str(error)
            else:
                said = ""
            if value not in limits:
                assert said.startswith(f"{place.partition('.NAME')[0].rpartition('.')[0]}"), said
                assert last in said and f"must be {limits}, got {value}" in said
            else:
                assert f"{place}: must be {limits}" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("hardware.timing.M_MM.interval=-5", "M_MM.interval: must be from 0 to 2^20, got -5"),
        ("hardware.timing.M_MM.interval_per_blen=-1", "M_MM.interval_per_blen: must be from 0 to 2^20, got -1"),
        (
            "hardware.timing.M_MM.interval_per_blen=0",
            "M_MM.interval with its terms per width: must be from 1 to 2^20, got 0",
        ),
        (
            "hardware.timing.V_TOPK_MASK.latency_per_vlen=100000",
            "V_TOPK_MASK.latency with its terms per width: must be",
        ),
    ],
)
def test_an_instruction_takes_from_one_cycle_to_a_million_at_the_widths_that_the_machine_has(change, said):
    with pytest.raises(TripathError) as refused:
        compose_experiment(change)
    assert said in str(refused.value)


@pytest.mark.parametrize("value", [0, -1.0, 1e300, 1e-300])
def test_a_number_of_a_technology_has_limits(value):
    with pytest.raises(TripathError, match=r"^technology.numbers.sram_cell_um2.value: must be from 1e-24 to 1e18, got"):
        compose_experiment(f"technology.numbers.sram_cell_um2.value={value}")
    assert value not in LIMITS


@pytest.mark.parametrize(("group", "kind"), [(group, kinds[0]) for group, (_, *kinds) in GROUPS.items()])
def test_what_is_no_number_has_no_place(group, kind):
    beside = {name for name, *_ in BESIDE.get(group, ())}
    for key in [key for key in LIMITED if key.startswith(f"{group}.") and "NAME" not in key and key.count(".") == 1]:
        node = {**VALUES[group], key.rpartition(".")[2]: "NaN"}
        with pytest.raises(TripathError, match=rf"^{key}: must be "):
            build(kind, group, {name: value for name, value in node.items() if name not in beside})


def test_limits_read_as_people_write_them():
    assert str(Limits(1, 1 << 20)) == "from 1 to 2^20"
    assert str(Limits(4, 128, power_of_two=True)) == "a power of two from 4 to 128"
    assert str(Limits(1e-6, 1e6)) == "from 1e-6 to 1e6"
    assert -math.inf not in Limits(-1e30, 1e30)
