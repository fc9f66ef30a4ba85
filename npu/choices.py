"""Allowed values of dataclass fields: one of a few choices, or a number within limits. They are stated beside the field; the
check and docs/configuration.md read them there."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from npu.errors import TripathError

CHOICES, LIMITS = "one_of", "within"
TYPE_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}


@dataclass(frozen=True, slots=True)
class Limits:
    """A range of numbers, both ends included."""

    low: float
    high: float
    power_of_two: bool = False

    def __str__(self) -> str:
        """The range in words: `from 1 to 8`."""
        return f"{'a power of two ' if self.power_of_two else ''}from {_plain(self.low)} to {_plain(self.high)}"

    def __contains__(self, value: float) -> bool:
        """True if a number satisfies the limits; NaN never does."""
        return self.low <= value <= self.high and not (self.power_of_two and int(value).bit_count() != 1)


def one_of(choices: Collection[object]) -> Mapping[str, Any]:
    """The metadata of a field whose value, or each value of which where it is a list, is one of `choices`."""
    return {CHOICES: choices}


def within(low: float, high: float, *, power_of_two: bool = False) -> Mapping[str, Any]:
    """The metadata of a field whose number, or each number of which where it is a list or mapping, lies from `low` to `high`."""
    return {LIMITS: Limits(low, high, power_of_two)}


def choices_of(field: dataclasses.Field[Any]) -> Collection[object]:
    """The choices of a field; empty if it has none."""
    return field.metadata.get(CHOICES, ())


def limits_of(field: dataclasses.Field[Any]) -> Limits | None:
    """Where the numbers of a field lie; None: no limits are stated."""
    return field.metadata.get(LIMITS)


def check_choices(key: str, values: object) -> None:
    """Refuse a dataclass with a value that its field does not take; `key` is where it stands in the configuration.

    Raises:
        TripathError: naming the field, the value and what is known.
    """
    for field in dataclasses.fields(values):  # pyright: ignore[reportArgumentType]
        known, limits = choices_of(field), limits_of(field)
        for name, given in _leaves(f"{key}.{field.name}", getattr(values, field.name)):
            if known and given not in known:
                raise TripathError(f"{name}: unknown {given!r}, one of {', '.join(map(str, known))}")
            if limits is not None and isinstance(given, int | float):
                check_limits(name, given, limits)


def is_a(value: object, kind: object) -> bool:
    """True if a configuration value has the plain type `kind` (a key of TYPE_NAMES). An integer is also a float; a Boolean is not
    a number, and an infinity or NaN is not a float."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (str, bool) else False


def check_limits(key: str, value: float, limits: Limits) -> None:
    """Refuse a number beyond its limits.

    Raises:
        TripathError: naming the key, the limits and the number.
    """
    if value not in limits:
        raise TripathError(f"{key}: must be {limits}, got {value}")


def _leaves(key: str, value: object) -> Iterator[tuple[str, Any]]:
    """The single values of a field, each with its key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(key, inner)
    else:
        yield key, value


def _plain(number: float) -> str:
    if isinstance(number, float):
        return f"{number:g}".replace("e+", "e").replace("e-0", "e-").replace("e0", "e")
    large = abs(number) >= 1 << 20 and abs(number).bit_count() == 1
    return f"{'-' * (number < 0)}2^{abs(number).bit_length() - 1}" if large else str(number)
