"""The unit of cross-validation: one comparison of two witnesses, with its verdict."""

import math
from dataclasses import dataclass

from npu.errors import TripathError
from tripath.validation.settings import KINDS, check_tolerance

WHOLE_RUN = ("program", "generation")
"""Scopes of which a run has one; others are named beside the metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """One comparison: what was expected (and who says so), what was observed, and whether that is acceptable.

    The rule follows from the kind. count: equal. bound: observed >= expected. estimate, reference: relative error at
    most `tolerance`. fidelity: distance from the ideal value `expected` at most `tolerance`, absolute. A value that is
    not finite fails every rule. `reason` is the written ground of the tolerance.

    Raises:
        TripathError: unknown kind, or a tolerance above the maximum of its kind.
    """

    metric: str
    scope: str
    kind: str
    expected: float
    expected_source: str
    observed: float
    observed_source: str
    tolerance: float
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TripathError(f"validation: unknown kind {self.kind!r} of {self.metric}, one of {', '.join(KINDS)}")
        check_tolerance(self.kind, f"validation: {self.metric}", self.tolerance)

    @property
    def relative_error(self) -> float:
        """(observed - expected) / |expected|; where nothing is expected, the observed value itself."""
        difference = self.observed - self.expected
        return difference / abs(self.expected) if self.expected else difference

    @property
    def passed(self) -> bool:
        """True if the rule of this kind holds."""
        if not (math.isfinite(self.expected) and math.isfinite(self.observed)):
            return False
        if self.kind == "count":
            return self.observed == self.expected
        if self.kind == "bound":
            return self.observed >= self.expected
        if self.kind == "fidelity":
            return abs(self.observed - self.expected) <= self.tolerance
        return abs(self.relative_error) <= self.tolerance

    @property
    def verdict(self) -> str:
        """`passed` or `failed`."""
        return "passed" if self.passed else "failed"
