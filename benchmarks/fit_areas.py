"""Fit the areas of conf/technology/n7.yaml to the synthesised arrays and cores; predict each that is left out.

python benchmarks/fit_areas.py: the coefficients, then the tables of docs/energy.md.
"""

import csv
from collections.abc import Callable, Hashable, Sequence
from importlib.resources import files
from statistics import median

import numpy as np

from tripath.validation.areas import SynthesisedArea, read_areas

INTEGER = ("array_mac_um2", "array_mac_bit_um2", "array_output_um2", "array_output_bit_um2")
FLOAT = ("float_mac_um2", "float_mac_bit_um2", "float_product_bit2_um2")
CORE = ("core_lane_um2", "core_row_um2", "core_fixed_um2")
CORE_MLENS = ("16", "64")
"""The cores that are fitted."""
KINDS = {"MXINT": (INTEGER, True), "MXFP": (FLOAT, False)}


def calibration() -> list[SynthesisedArea]:
    """The arrays that are fitted: every row of matrix.csv."""
    return [row for row in read_areas("published") if row.source == "matrix.csv"]


def is_integer(row: SynthesisedArea) -> bool:
    """True if the array multiplies integers only."""
    return row.activations.integer and row.weights.integer


def terms(row: SynthesisedArea) -> list[float]:
    """The terms that the coefficients of the row's kind multiply, in the same order."""
    macs, bits = row.mlen * row.blen, row.activations.bits + row.weights.bits
    if is_integer(row):
        return [macs, macs * bits, row.blen**2, row.blen**2 * bits]
    return [macs, macs * bits, macs * row.activations.significand_bits * row.weights.significand_bits]


def fit(rows: Sequence[SynthesisedArea]) -> np.ndarray:
    """Least relative squares."""
    areas = np.array([row.um2 for row in rows])
    return np.linalg.lstsq(np.array([terms(row) for row in rows]) / areas[:, None], np.ones(len(rows)), rcond=None)[0]


def formats(row: SynthesisedArea) -> str:
    """The formats of both operands; of cache and weights the wider."""
    activations, *others = row.name.split(": ")[1].split()[0].split("/")
    return f"{activations} x {max(others)}"


def left_out(
    rows: Sequence[SynthesisedArea], group: Callable[[SynthesisedArea], Hashable]
) -> dict[Hashable, list[float]]:
    """Relative errors of each group of rows, by a fit of the others."""
    found: dict[Hashable, list[float]] = {}
    for row in rows:
        seen = fit([other for other in rows if group(other) != group(row)])
        found.setdefault(group(row), []).append(float(np.dot(terms(row), seen) / row.um2 - 1))
    return found


GROUPS: dict[str, Callable[[SynthesisedArea], Hashable]] = {
    "point": lambda row: row.name,
    "shape": lambda row: f"{row.mlen} x {row.blen}",
    "format": formats,
}


def fit_cores() -> np.ndarray:
    """Lanes from the slope of the vector units; what the array and the lanes leave of a core, by MLEN, relative to the core."""
    text = files("tripath.validation").joinpath("data/areas/cores.csv").read_text(encoding="utf-8")
    rows = [
        row for row in csv.DictReader(line for line in text.splitlines() if line[0] != "#") if row["mlen"] in CORE_MLENS
    ]
    mlen, vlen, vector, array, whole = (
        np.array([float(row[name]) for row in rows])
        for name in ("mlen", "vlen", "vector_um2", "matrix_um2", "area_um2")
    )
    ones = np.ones(len(rows))
    lane = np.linalg.lstsq(np.stack([vlen, ones], 1), vector, rcond=None)[0][0]
    rest = np.linalg.lstsq(
        np.stack([mlen, ones], 1) / whole[:, None], (whole - array - lane * vlen) / whole, rcond=None
    )[0]
    return np.array([lane, *rest])


def main() -> None:
    """Print coefficients and tables."""
    for kind, (names, integer) in KINDS.items():
        rows = [row for row in calibration() if is_integer(row) == integer]
        print(kind, dict(zip(names, np.round(fit(rows), 4).tolist(), strict=True)))
        for label, group in GROUPS.items():
            errors = {key: [abs(each) for each in row] for key, row in left_out(rows, group).items()}
            every = [each for row in errors.values() for each in row]
            print(f"  left out by {label}: median {median(every):.1%}, worst {max(every):.1%}")
            if label != "point":
                for key, row in sorted(errors.items(), key=str):
                    print(f"    | {key} | {len(row)} | {median(row):.1%} | {max(row):.1%} |")
    print("cores", dict(zip(CORE, np.round(fit_cores(), 2).tolist(), strict=True)))


if __name__ == "__main__":
    main()
