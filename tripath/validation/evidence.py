"""Figures beside their predictions: what is compared, what gave a number, what cannot be expressed and why."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from npu.errors import TripathError
from npu.metrics import Table
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.figures import Figure, calibration
from tripath.validation.predictions import PREDICTORS, REFUSED_KINDS, Models, Prediction
from tripath.validation.settings import MAXIMUM_TOLERANCE

CALIBRATION = "calibration"
NOT_EXPRESSED = "not expressed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A figure beside its prediction; `prediction` None: `reason` says why there is none."""

    figure: Figure
    prediction: Prediction | None
    reason: str = ""

    @property
    def calibrates(self) -> str | None:
        """The number that the figure gave, None: none."""
        return calibration().get(self.figure.id)

    @property
    def error(self) -> float:
        """(ours - measured) / measured."""
        return self.prediction.value / self.figure.value - 1 if self.prediction else math.nan

    @property
    def missed(self) -> bool:
        """The prediction is further off than the tolerance, whether or not the figure gave a number."""
        return self.prediction is not None and abs(self.error) > MAXIMUM_TOLERANCE["reference"]

    @property
    def verdict(self) -> str:
        """`passed`, `failed`, `calibration` or `not expressed`."""
        if self.calibrates is not None:
            return CALIBRATION
        if self.prediction is None:
            return NOT_EXPRESSED
        return "failed" if self.missed else "passed"


def judge(figures: Iterable[Figure], models: Models) -> list[Judged]:
    """Every figure with its prediction, or with the reason why there is none."""
    return [_judged(figure, models) for figure in figures]


def _judged(figure: Figure, models: Models) -> Judged:
    if figure.kind not in PREDICTORS:
        reason = REFUSED_KINDS.get(figure.kind, f"no model of kind {figure.kind}")
        return Judged(figure=figure, prediction=None, reason=reason)
    try:
        return Judged(figure=figure, prediction=PREDICTORS[figure.kind](figure, models))
    except TripathError as error:
        return Judged(figure=figure, prediction=None, reason=str(error))


def discrepancies(judged: Sequence[Judged]) -> list[Discrepancy]:
    """A discrepancy for each figure that is compared."""
    return [
        Discrepancy(
            metric=f"{row.figure.kind} ({row.figure.quality})",
            scope=row.figure.id,
            kind="reference",
            expected=row.figure.value,
            expected_source=row.figure.source,
            observed=row.prediction.value,
            observed_source=f"device model {row.figure.device_name}",
            tolerance=MAXIMUM_TOLERANCE["reference"],
            reason=row.prediction.assumption,
        )
        for row in judged
        if row.prediction is not None and row.calibrates is None
    ]


COLUMNS = [
    "figure",
    "kind",
    "quality",
    "device",
    "measured",
    "ours",
    "unit",
    "error",
    "verdict",
    "assumption or reason",
    "source",
]


def figure_table(judged: Sequence[Judged]) -> Table:
    """Every figure: measured, ours, error, verdict, and the assumption that matters or the reason why it is not expressed."""
    rows = [
        [row.figure.id, row.figure.kind, row.figure.quality, row.figure.device, f"{row.figure.value:.4g}",
         f"{row.prediction.value:.4g}" if row.prediction else "", row.figure.unit,
         f"{row.error:+.1%}" if row.prediction else "", row.verdict,
         f"gives {row.calibrates}" if row.calibrates else row.prediction.assumption if row.prediction else row.reason,
         row.figure.source]
        for row in judged
    ]  # fmt: skip
    return Table(columns=COLUMNS, rows=rows)


def quality_table(judged: Sequence[Judged]) -> Table:
    """By quality and kind: figures, those that gave a number, those compared, the median error and the share within 25 %."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for row in judged:
        groups.setdefault((row.figure.quality, "all"), []).append(row)
        groups.setdefault((row.figure.quality, row.figure.kind), []).append(row)
    rows = []
    for (quality, kind), group in sorted(groups.items()):
        errors = [abs(row.error) for row in group if row.verdict in ("passed", "failed")]
        shown = (
            [f"{median(errors):.1%}", f"{sum(row.verdict == 'passed' for row in group) / len(errors):.0%}"]
            if errors
            else ["", ""]
        )
        counts = [sum(row.verdict == name for row in group) for name in (CALIBRATION, NOT_EXPRESSED)]
        rows.append([quality, kind, len(group), *counts, len(errors), *shown])
    columns = ["quality", "kind", "figures", CALIBRATION, NOT_EXPRESSED, "compared", "median error", "within 25 %"]
    return Table(columns=columns, rows=rows)
