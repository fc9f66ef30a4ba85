"""Cross-validation: `settings` holds tolerances, `discrepancy` one comparison, `checks` what is compared."""

from tripath.validation.checks import CHECKS, validate
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.settings import IDEAL, KINDS, MAXIMUM_TOLERANCE, Reference, Settings, Tolerance
from tripath.validation.streams import check_streams

__all__ = [
    "CHECKS", "IDEAL", "KINDS", "MAXIMUM_TOLERANCE", "Discrepancy", "Reference", "Settings", "Tolerance",
    "check_streams", "validate",
]  # fmt: skip
