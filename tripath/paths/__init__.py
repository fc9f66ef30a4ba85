"""Paths as rows: `row` says what a path states of itself, `registry` holds those of the package and makes a user's own."""

from tripath.paths.registry import (
    EXACTNESS,
    PATHS,
    cycles_of,
    giver_name,
    giver_of,
    gives,
    in_order,
    most_exact,
    own_path,
)
from tripath.paths.row import FROM_PATHS, INPUTS, Fact, Path, Picture

__all__ = [
    "EXACTNESS", "FROM_PATHS", "INPUTS", "PATHS", "Fact", "Path", "Picture", "cycles_of", "giver_name", "giver_of",
    "gives", "in_order", "most_exact", "own_path",
]  # fmt: skip
