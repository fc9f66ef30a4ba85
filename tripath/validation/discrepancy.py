"""The unit of cross-validation: one comparison of two witnesses, with its verdict."""

import math
from dataclasses import dataclass

KINDS = ("count", "bound", "estimate", "fidelity", "reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """One comparison: what was expected (and who says so), what was observed, and whether that is acceptable.

    `kind` decides the rule: a count must be equal, a bound must hold (observed >= expected), an estimate, a fidelity
    or a reference must lie within `tolerance` (relative), for which `reason` is the written ground.
    """

    metric: str
    scope: str
    kind: str
    expected: float | None
    expected_source: str
    observed: float
    observed_source: str
    tolerance: float
    reason: str

    @property
    def relative_error(self) -> float:
        """(observed - expected) / |expected|; 0 where both are 0 or nothing is expected, the sign of the error where expected is 0."""
        if self.expected is None or self.observed == self.expected:
            return 0.0
        if self.expected == 0:
            return math.copysign(1.0, self.observed)
        return (self.observed - self.expected) / abs(self.expected)

    @property
    def passed(self) -> bool:
        """Whether the rule of this kind holds."""
        if self.expected is None:
            return True
        if self.kind == "count":
            return self.observed == self.expected
        if self.kind in ("bound", "fidelity"):
            return self.relative_error >= -self.tolerance
        return abs(self.relative_error) <= self.tolerance

    @property
    def verdict(self) -> str:
        """`passed` or `failed`."""
        return "passed" if self.passed else "failed"
