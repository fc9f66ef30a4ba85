"""A rebuild changes nothing that a user measures: every recorded program, cycle, count, token and bit is as it was."""

import json

import pytest

from tests.record.configurations import configurations
from tests.record.make import FILE, compiled, measured

RECORD = json.loads(FILE.read_text())


def test_every_configuration_is_recorded():
    assert list(RECORD) == list(configurations())
    assert len(RECORD) >= 60


@pytest.mark.parametrize("name", configurations())
def test_the_program_is_the_one_recorded(name):
    found = compiled(configurations()[name])
    assert found == {key: RECORD[name][key] for key in found}


@pytest.mark.slow  # four minutes on one core
@pytest.mark.parametrize("name", configurations())
def test_cycles_counts_tokens_and_bits_are_those_recorded(name):
    assert measured(configurations()[name]) == RECORD[name]
