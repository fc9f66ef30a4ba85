"""The accuracy path: `simulator` is the entry, `executor` runs programs bit by bit, `image` fills HBM, `reference` is the
unquantised model, `checkpoint` reads files, `training` makes the shipped model."""

from accuracy.simulator import AccuracyOutcome, simulate

__all__ = ["AccuracyOutcome", "simulate"]
