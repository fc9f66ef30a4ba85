"""Cross-validation: `settings` holds tolerances, `discrepancy` one comparison, `checks` what is compared;
`published`, `areas`, `measurements` and `host` are about other hardware."""

from tripath.validation.areas import check_areas, read_areas
from tripath.validation.checks import CHECKS, validate
from tripath.validation.discrepancy import WHOLE_RUN, Discrepancy
from tripath.validation.measurements import check_measurements, check_names, read_measurements
from tripath.validation.published import check_published, published_models
from tripath.validation.settings import (
    IDEAL,
    KINDS,
    MAXIMUM_TOLERANCE,
    HostSettings,
    Reference,
    Settings,
    Tolerance,
)
from tripath.validation.streams import check_streams

__all__ = [
    "CHECKS", "IDEAL", "KINDS", "MAXIMUM_TOLERANCE", "WHOLE_RUN", "Discrepancy", "HostSettings", "Reference", "Settings",
    "Tolerance",
    "check_areas", "check_measurements", "check_names", "check_published", "check_streams", "published_models", "read_areas",
    "read_measurements", "validate",
]  # fmt: skip
