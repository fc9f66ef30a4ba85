"""Cross-validation: each check is one function in `checks` that yields `Discrepancy` rows; `validate` runs them all."""

from tripath.validation.checks import Settings, Tolerance, validate
from tripath.validation.discrepancy import KINDS, Discrepancy

__all__ = ["KINDS", "Discrepancy", "Settings", "Tolerance", "validate"]
