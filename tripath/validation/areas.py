"""Areas of synthesised arrays and cores, as a file: rows of shape and format, each held against the laws of `npu.energy.area`.

A file of arrays has the columns activations, kv, weights (formats: mxintN, mxfp_eEmM), mlen, blen, area_um2. A file of cores has
format, mlen, vlen, blen, area_um2, and any others. Lines that begin with # are remarks.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from npu.energy import Technology
from npu.energy.area import Operand, core_rest_um2, matrix_unit_um2
from npu.errors import TripathError
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.rows import positive
from tripath.validation.settings import MAXIMUM_TOLERANCE

KEY = "validation.areas"
PUBLISHED = "published"
"""The files in the package: those that were fitted, and those that were not."""
FILES = ("matrix.csv", "cores.csv", "others.csv")
ARRAY_COLUMNS = ("activations", "kv", "weights", "mlen", "blen", "area_um2")
CORE_COLUMNS = ("format", "mlen", "vlen", "blen", "area_um2")
FITTED_MLEN = range(16, 65)
BAND = 0.10
"""Within the shapes that were fitted: the worst that leaving out a shape or a format gave is half of it (docs/energy.md)."""
LARGEST = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisedArea:
    """One row: an array of MLEN x BLEN for activations and a second operand, or with `vlen` a whole core around it."""

    name: str
    mlen: int
    blen: int
    vlen: int | None
    activations: Operand
    weights: Operand
    um2: float
    source: str


def read_areas(file: str) -> list[SynthesisedArea]:
    """The rows of a file, or with `published` of those in the package.

    Raises:
        TripathError: it cannot be read, lacks a column, or a row breaks a rule; the message names the line.
    """
    if file == PUBLISHED:
        folder = files("tripath.validation").joinpath("data/areas")
        return [row for name in FILES for row in _rows(name, folder.joinpath(name).read_text(encoding="utf-8"))]
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TripathError(f"{KEY}: cannot read {file} ({error})") from None
    return _rows(file, text)


def check_areas(rows: Sequence[SynthesisedArea], technology: Technology | None) -> list[Discrepancy]:
    """Each row against its law.

    Raises:
        TripathError: there is no technology.
    """
    if technology is None:
        raise TripathError(f"{KEY}: needs a technology, got null")
    return [_compare(row, technology) for row in rows]


def predicted_um2(row: SynthesisedArea, technology: Technology) -> float:
    """Area of an array by its law; of a core, with everything around the array."""
    array = matrix_unit_um2(technology, mlen=row.mlen, blen=row.blen, weights=row.weights, activations=row.activations)
    return array if row.vlen is None else array + core_rest_um2(technology, mlen=row.mlen, vlen=row.vlen)


def _compare(row: SynthesisedArea, technology: Technology) -> Discrepancy:
    inside = row.mlen in FITTED_MLEN
    return Discrepancy(
        metric="array_um2" if row.vlen is None else "core_um2", scope=row.name, kind="reference", expected=row.um2,
        expected_source=row.source, observed=predicted_um2(row, technology), observed_source=f"technology {technology.name}",
        tolerance=BAND if inside else MAXIMUM_TOLERANCE["reference"],
        reason="within the shapes that were fitted" if inside else "beyond MLEN 16 to 64 nothing of this corner is at hand",
    )  # fmt: skip


def _rows(file: str, text: str) -> list[SynthesisedArea]:
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line[0] != "#"]
    reader = csv.DictReader([line for _, line in numbered], skipinitialspace=True)
    columns = reader.fieldnames or []
    if len(set(columns)) != len(columns) or not any(
        set(known) <= set(columns) for known in (ARRAY_COLUMNS, CORE_COLUMNS)
    ):
        raise TripathError(
            f"{KEY}: {file} must have the columns {', '.join(ARRAY_COLUMNS)}, or {', '.join(CORE_COLUMNS)}, "
            f"got {', '.join(columns) or 'none'}"
        )
    found = [_row(file, number, row) for (number, _), row in zip(numbered[1:], reader, strict=True)]
    if not found:
        raise TripathError(f"{KEY}: no rows in {file}")
    return found


def _row(file: str, line: int, row: Mapping[str | None, str | None]) -> SynthesisedArea:
    where = f"{KEY}: {file} line {line}"
    if None in row or None in row.values():
        raise TripathError(f"{where}: needs a value for each column")
    values = {str(name): str(value).strip() for name, value in row.items()}
    core = not set(ARRAY_COLUMNS) <= set(values)
    sizes = {name: _size(where, name, values[name]) for name in ("mlen", "blen", *(("vlen",) if core else ()))}
    um2 = positive(where, values, "area_um2")
    names = [values["format"]] * 3 if core else [values[name] for name in ARRAY_COLUMNS[:3]]
    activations, kv, weights = (_operand(where, name) for name in names)
    # The array has one port for weights and cache, as wide as the wider: the tables are the same whichever of them has 8 bits.
    second = max(kv, weights, key=lambda each: (each.bits, each.significand_bits))
    formats = values["format"] if core else "/".join(names)
    shape = f"{sizes['mlen']}x{sizes['blen']}" + (f" VLEN {sizes['vlen']}" if core else "")
    return SynthesisedArea(
        name=f"{Path(file).stem} line {line}: {formats} {shape}", mlen=sizes["mlen"], blen=sizes["blen"], vlen=sizes.get("vlen"),
        activations=activations, weights=second, um2=um2, source=file,
    )  # fmt: skip


def _size(where: str, name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST:
        raise TripathError(f"{where}: {name} must be an integer from 1 to {LARGEST}, got {text!r}")
    return int(text)


def _operand(where: str, name: str) -> Operand:
    if integer := re.fullmatch(r"mxint([2-9]|1[0-6])", name):
        bits = int(integer[1])
        return Operand(integer=True, bits=bits, significand_bits=bits)
    if element := re.fullmatch(r"mxfp\d*_e([1-8])m(1?\d)", name):
        exponent, mantissa = int(element[1]), int(element[2])
        return Operand(integer=False, bits=1 + exponent + mantissa, significand_bits=mantissa + 1)
    raise TripathError(f"{where}: unknown format {name!r}, one of mxintN, mxfp_eEmM")
