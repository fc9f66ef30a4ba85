"""Values in the rows of a user's CSV files."""

import math
from collections.abc import Mapping

from npu.errors import TripathError


def positive(where: str, values: Mapping[str, str], name: str) -> float:
    """The positive number in a column of a row; `where` begins the error.

    Raises:
        TripathError: there is none.
    """
    try:
        number = float(values[name])
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise TripathError(f"{where}: {name} must be a positive number, got {values[name]!r}")
    return number
