"""Names of metrics that scripts rely on, and what a path hands back (see docs/validation.md for the list)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UNITS = ("frontend", "matrix", "vector", "scalar", "dma_in", "dma_out")
PHASES = ("setup", "embed", "qkv", "smooth", "rotate", "attention", "out", "ffn", "lm_head", "sampling", "commit",
          "host")  # fmt: skip
SAMPLING_PHASES = ("lm_head", "sampling", "commit", "host")
"""Phases from the last hidden state to tokens; what else there is belongs to the transformer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A named table of results: column names and rows, as people read them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The results of one simulator for one program.

    `metrics` maps names (without the simulator's prefix) to numbers. `counts` are event counts, which every path must
    reproduce exactly; `trace_digest` identifies the trip counts that they belong to. `tables` are for people. A path that
    runs no program has an empty `program_digest`.
    """

    simulator: str
    program_digest: str
    trace_digest: str
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    tables: Mapping[str, Table] = field(default_factory=dict)
