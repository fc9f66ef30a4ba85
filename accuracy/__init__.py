"""The accuracy path: `simulator` is the entry, `executor` runs programs bit by bit, `image` fills HBM, `reference` is the
unquantised model, `checkpoint` reads files, `training` makes the shipped model."""

import npu  # noqa: F401  before Numba is imported: it decides where compiled code is kept
from accuracy.simulator import AccuracyOutcome, final_state, simulate

__all__ = ["AccuracyOutcome", "final_state", "simulate"]
