"""Quantities as people write them: exact, in the unit of the key, and refused by name before anything starts."""

from fractions import Fraction

import pytest

from npu.units import WRITTEN, read_quantity
from tests.conftest import compose_experiment
from tests.test_cli import QUICK, InlineCluster, tripath_command  # noqa: F401  a fixture


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [("a.vector_bytes", "8MiB", 8388608), ("a.vector_bytes", "8 MB", 8 * 10**6), ("x_bytes", "1.5KiB", 1536), ("x_bytes", "7B", 7),
     ("clock_hz", "1GHz", 10**9), ("clock_hz", "1.2 GHz", 1_200_000_000), ("clock_hz", "800MHz", 8 * 10**8),
     ("memory_bytes_per_second", "1.6TB/s", 1_600_000_000_000), ("a_seconds", "0.1ms", Fraction(1, 10_000)), ("tck_ps", "1.25ns", 1250)],
)  # fmt: skip
def test_a_quantity_is_exact(key, text, value):
    assert read_quantity(key, text) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [("x_bytes", "8Mib"), ("x_bytes", "8GHz"), ("x_hz", "1ghz"), ("x_bytes", "-8MiB"), ("x_bytes", "8 M i B"), ("x_bytes", "1e3MiB"),
     ("steps", "8MiB"), ("x_bytes", "")],
)  # fmt: skip
def test_what_is_none_is_refused(key, text):
    with pytest.raises(ValueError, match=r"unknown unit|must be a number"):
        read_quantity(key, text)


def test_each_unit_of_a_kind_is_another_size():
    for units in WRITTEN.values():
        assert len(set(units.values())) == len(units)


def test_a_configuration_takes_them():
    written = compose_experiment("hardware.sram.vector_bytes=512KiB", "hardware.clock_hz=1.2GHz")
    plain = compose_experiment("hardware.sram.vector_bytes=524288", "hardware.clock_hz=1200000000")
    assert written == plain


@pytest.mark.parametrize(
    ("override", "message"),
    [("hardware.sram.vector_bytes=8MB2", "hardware.sram.vector_bytes: must be a number, got '8MB2'"),
     ("hardware.sram.vector_bytes=8GHz", "hardware.sram.vector_bytes: unknown unit 'GHz', one of B, kB"),
     ("hardware.sram.vector_bytes=0.3B", "hardware.sram.vector_bytes: must be an integer, got '0.3B', 0.3"),
     ("workload.steps=8MiB", "workload.steps: must be a number, got '8MiB'")],
)  # fmt: skip
def test_a_wrong_one_is_one_line_and_starts_no_cluster(tripath_command, override, message):  # noqa: F811
    made = InlineCluster.made
    status, _, errors = tripath_command(*QUICK, override)
    assert (status, errors.count("\n"), InlineCluster.made) == (2, 1, made)
    assert message in errors
