"""Numbers that say where they come from: a mapping name -> {value, provenance, source}, as `conf` holds them."""

from collections.abc import Mapping, Sequence

from npu.choices import Limits, check_limits
from npu.errors import TripathError

PROVENANCES: tuple[str, ...] = ("published", "synthesis", "derived", "second-hand", "assumed")
"""As printed in a source that was opened; mapped from `rtl/` to a cell library (docs/rtl.md); by a law, a fit or a measurement of
ours that the source names; of a source that was not opened, as others quote it or as remembered; without a source. From strong
to weak."""

Numbers = Mapping[str, Mapping[str, float | str]]
FIELDS = {"value", "provenance", "source"}
LIMITS = Limits(1e-24, 1e18)
"""Of any number, whatever its unit: from picoseconds and square micrometres to operations and bytes per second."""


def check_numbers(key: str, numbers: Numbers, names: Sequence[str]) -> None:
    """Refuse numbers other than exactly `names`, each within LIMITS and with a source.

    Raises:
        TripathError: naming `key` and the number.
    """
    for name in (*numbers, *names):
        if name not in names:
            raise TripathError(f"{key}.{name}: no such number, one of {', '.join(names)}")
        row = numbers.get(name)
        if row is None or set(row) != FIELDS:
            raise TripathError(
                f"{key}.{name}: needs value, provenance and source, got {None if row is None else dict(row)}"
            )
        value = row["value"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TripathError(f"{key}.{name}.value: must be a number, got {value!r}")
        check_limits(f"{key}.{name}.value", value, LIMITS)
        if row["provenance"] not in PROVENANCES:
            raise TripathError(
                f"{key}.{name}.provenance: unknown {row['provenance']!r}, one of {', '.join(PROVENANCES)}"
            )
        if not str(row["source"]).strip():
            raise TripathError(f"{key}.{name}.source: must not be empty")


def weakest(numbers: Numbers, *names: str) -> str:
    """The weakest provenance of some numbers: a result is no better than what it rests on."""
    return max((str(numbers[name]["provenance"]) for name in names), key=PROVENANCES.index)
