"""Fields of a dataclass that take one of a few values: stated beside the field, for the check and for docs/configuration.md."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from npu.errors import TripathError

KEY = "one_of"


def one_of(choices: Collection[object]) -> Mapping[str, Collection[object]]:
    """The metadata of a field whose value, or each value of which where it is a list, is one of `choices`."""
    return {KEY: choices}


def choices_of(field: dataclasses.Field[Any]) -> Collection[object]:
    """What a field takes; empty: anything of its type."""
    return field.metadata.get(KEY, ())


def check_choices(key: str, values: object) -> None:
    """Refuse a dataclass with a value that its field does not take; `key` is where it stands in the configuration.

    Raises:
        TripathError: naming the field, the value and what is known.
    """
    for field in dataclasses.fields(values):  # pyright: ignore[reportArgumentType]
        known, given = choices_of(field), getattr(values, field.name)
        for value in given if isinstance(given, list | tuple) else (given,):
            if known and value not in known:
                raise TripathError(f"{key}.{field.name}: unknown {value!r}, one of {', '.join(map(str, known))}")
