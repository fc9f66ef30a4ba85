"""The unit of cross-validation: one comparison of two witnesses, with its verdict."""

import math
from dataclasses import dataclass

from tripath.errors import TripathError

KINDS = ("count", "bound", "estimate", "fidelity", "reference")
MAXIMUM_TOLERANCE = {"count": 0.0, "bound": 0.0, "estimate": 0.15, "fidelity": 0.5, "reference": 0.25}
"""No configuration may be more forgiving than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """One comparison: what was expected (and who says so), what was observed, and whether that is acceptable.

    The rule follows from the kind. count: equal. bound: observed >= expected. estimate, reference: relative error at
    most `tolerance`. fidelity: distance from the ideal value `expected` at most `tolerance`, absolute. `reason` is the
    written ground of the tolerance.

    Raises:
        TripathError: unknown kind, a tolerance above the maximum of its kind, or a value that is not finite.
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
        if not 0.0 <= self.tolerance <= MAXIMUM_TOLERANCE[self.kind]:
            raise TripathError(
                f"validation: tolerance of {self.metric} is {self.tolerance}, limit {MAXIMUM_TOLERANCE[self.kind]} "
                f"({self.kind})"
            )
        if not (math.isfinite(self.expected) and math.isfinite(self.observed)):
            raise TripathError(f"validation: {self.metric} is not finite ({self.expected}, {self.observed})")

    @property
    def relative_error(self) -> float:
        """(observed - expected) / |expected|; where nothing is expected, the observed value itself."""
        difference = self.observed - self.expected
        return difference / abs(self.expected) if self.expected else difference

    @property
    def passed(self) -> bool:
        """Whether the rule of this kind holds."""
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
