"""Units and the text in which people read and write them."""

import re
from collections.abc import Mapping
from fractions import Fraction

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def format_bytes(count: float) -> str:
    """Text of a byte count in binary units, e.g. ``9.4 MiB``."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Text of a duration, e.g. ``1.24 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = {f"{prefix}B": size for prefix, size in _DECIMAL.items()} | {
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1024 * GIB,
}
WRITTEN: Mapping[str, Mapping[str, int | Fraction]] = {
    "_bytes": _BYTES,
    "_bytes_per_second": {f"{unit}/s": size for unit, size in _BYTES.items()},
    "_hz": {f"{prefix}Hz": size for prefix, size in _DECIMAL.items()},
    "_seconds": {"s": 1, "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9)},
    "_ps": {"ps": 1, "ns": 10**3},
}
"""Units that a quantity may be written in, by the end of a key's name, which is the unit of its number."""
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]+)\s*")


def read_quantity(key: str, text: str) -> Fraction:
    """A quantity as people write it (`8 MiB`, `1.6TB/s`, `1 GHz`), in the unit that ends the name of its key.

    Raises:
        ValueError: saying what is wrong, in words that follow the key.
    """
    end = max((end for end in WRITTEN if key.endswith(end)), key=len, default=None)
    found = _QUANTITY.fullmatch(text)
    if end is None or found is None:
        raise ValueError(f"must be a number, got {text!r}")
    number, unit = found.groups()
    if unit not in WRITTEN[end]:
        raise ValueError(f"unknown unit {unit!r}, one of {', '.join(WRITTEN[end])}")
    return Fraction(number) * WRITTEN[end][unit]
