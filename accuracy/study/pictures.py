"""Two pictures of the study: exact match and logit KL, by scheme and format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Draw = Callable[[Axes, list[float], list[dict[str, Any]], str], None]


def write_pictures(results: Sequence[dict[str, Any]], out: Path) -> None:
    """`exact_match.png` (with 95 % intervals) and `logit_kl.png` (logarithmic), one panel per planted gain."""
    _write(results, out / "exact_match.png", "exact match (95 % Wilson interval)", _exact_match)
    _write(results, out / "logit_kl.png", "logit KL to FP32 on the same canvas, nats (± standard error)", _logit_kl)


def _exact_match(axes: Axes, places: list[float], rows: list[dict[str, Any]], label: str) -> None:
    shares = [row["exact_match"] for row in rows]
    bars = [[row["exact_match"] - row["exact_match_low"] for row in rows],
            [row["exact_match_high"] - row["exact_match"] for row in rows]]  # fmt: skip
    axes.errorbar(places, shares, yerr=bars, fmt="o", markersize=4, capsize=2, label=label)


def _logit_kl(axes: Axes, places: list[float], rows: list[dict[str, Any]], label: str) -> None:
    means = [max(row["logit_kl"], 1e-9) for row in rows]
    axes.errorbar(
        places, means, yerr=[row["logit_kl_error"] for row in rows], fmt="o", markersize=4, capsize=2, label=label
    )
    axes.set_yscale("log")


def _write(results: Sequence[dict[str, Any]], file: Path, title: str, draw: Draw) -> None:
    panels = [
        [row for row in results if row["planted"] == gain] for gain in dict.fromkeys(r["planted"] for r in results)
    ]
    width = max(len({row["scheme"] for row in panel}) for panel in panels)
    figure = Figure(figsize=(max(6.0, 0.75 * width + 2), 4.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        schemes, formats = (list(dict.fromkeys(row[key] for row in panel)) for key in ("scheme", "format"))
        for number, name in enumerate(formats):
            rows = [row for row in panel if row["format"] == name]
            if len(rows) == 1 and len(schemes) > 1:  # the baseline, to which no scheme applies
                value = rows[0]["exact_match" if draw is _exact_match else "logit_kl"]
                axes.axhline(value, color="0.4", linestyle="--", linewidth=1, label=name)
                continue
            offset = (number - (len(formats) - 1) / 2) * 0.7 / len(formats)
            draw(axes, [schemes.index(row["scheme"]) + offset for row in rows], rows, name)
        axes.set_xticks(range(len(schemes)), schemes, rotation=40, ha="right")
        gain = panel[0]["planted"]
        axes.set_title(title if gain == 1 else f"{title}; planted K outliers, x{gain:g}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, ncols=3)
    figure.savefig(file, dpi=100)
