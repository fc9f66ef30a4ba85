"""The page and the picture of all evidence: figures of others beside the models, what gave a number, what is missed."""

from collections.abc import Sequence
from pathlib import Path

from npu.metrics import Table
from tripath.validation import Discrepancy
from tripath.validation.evidence import Judged, quality_table
from tripath.validation.figures import Figure, misses

PANELS = {
    "seconds": ("s", "s/step", "s/request", "s/token"),
    "FLOP/s": ("FLOP/s",),
    "bytes/s": ("bytes/s",),
    "tokens/s": ("tokens/s",),
}
"""Panels of the picture, and the units of the figures in each."""
KINDS = {
    "gemm": ("#0072B2", "o"), "attention": ("#D55E00", "s"), "sampling": ("#009E73", "^"), "dram": ("#E69F00", "D"),
    "step": ("#CC79A7", "v"), "throughput": ("#56B4E9", "P"), "ar_baseline": ("#000000", "X"),
}  # fmt: skip
"""Colours of Okabe and Ito, which the colour-blind can tell apart, and a marker each."""
BAND = 1.25


def draw_evidence(files: Sequence[Path], judged: Sequence[Judged]) -> None:
    """Predicted against measured, logarithmic, a panel for each unit; hollow: figures that gave a number."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tripath"  # the same marks have the same names each time
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullFormatter

    figure, grid = plt.subplots(2, 2, figsize=(9, 8.4))
    for axes, (title, units) in zip(grid.flat, PANELS.items(), strict=True):
        rows = [
            row
            for row in judged
            if row.figure.unit in units and row.prediction is not None and row.figure.kind in KINDS
        ]
        values = [value for row in rows if row.prediction for value in (row.figure.value, row.prediction.value)]
        ends = min(values) / 1.6, max(values) * 1.6
        axes.fill_between(
            ends, [end / BAND for end in ends], [end * BAND for end in ends], color="#dddddd", label="within 25 %"
        )
        axes.plot(ends, ends, color="#888888", linewidth=0.8)
        for row in rows:
            assert row.prediction is not None
            colour, marker = KINDS[row.figure.kind]
            hollow = row.calibrates is not None
            axes.plot(row.figure.value, row.prediction.value, marker, color=colour, markerfacecolor="none" if hollow else colour,
                      markersize=6, alpha=0.8)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=title, xlabel="measured", ylabel="predicted")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.set_aspect("equal")
    handles: list[Line2D | Patch] = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=kind)
        for kind, (colour, marker) in KINDS.items()
    ]
    handles.append(
        Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor="none", label="gave a number")
    )
    handles.append(Patch(color="#dddddd", label="within 25 %"))
    figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    for file in files:
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def evidence_page(judged: Sequence[Judged], areas: Sequence[Discrepancy], template: str) -> str:
    """The page: `template` with its marks replaced by the tables."""
    compared = [row for row in judged if row.verdict in ("passed", "failed")]
    tables = {
        "QUALITIES": quality_table(judged),
        "COMPARED": Table(
            columns=["figure", "device", "measured", "ours", "unit", "error", "", "assumption that matters", "source"],
            rows=[_row(row) for row in compared],
        ),
        "MISSED": Table(columns=["figure", "error", "why"], rows=[_miss(row) for row in compared if row.missed]),
        "MISSED_CALIBRATION": Table(
            columns=["figure", "error", "why"], rows=[_miss(row) for row in judged if row.calibrates and row.missed]
        ),
        "CALIBRATION": Table(
            columns=["figure", "gives", "measured", "ours", "unit", "error", "source"],
            rows=[[row.figure.id, row.calibrates, *_values(row), _source(row.figure)] for row in judged if row.calibrates],
        ),
        "REFUSED": Table(
            columns=["figure", "kind", "quality", "why", "source"],
            rows=[[row.figure.id, row.figure.kind, row.figure.quality, row.reason, _source(row.figure)] for row in judged
                  if row.verdict == "not expressed"],
        ),
        "AREAS": Table(
            columns=["area", "published, um2", "ours", "error", "verdict"],
            rows=[_area(row) for row in areas if not row.scope.startswith("matrix")],
        ),
    }  # fmt: skip
    for mark, table in tables.items():
        template = template.replace(f"<!-- {mark} -->", markdown(table))
    return template


def markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _area(row: Discrepancy) -> list[str]:
    return [row.scope, f"{row.expected:,.0f}", f"{row.observed:,.0f}", f"{row.relative_error:+.1%}", row.verdict]


def _row(row: Judged) -> list[str]:
    assert row.prediction is not None
    figure = row.figure
    return [figure.id, figure.device_name, *_values(row), row.verdict, row.prediction.assumption, _source(figure)]


def _values(row: Judged) -> list[str]:
    """Measured, ours, unit and error; a figure without a prediction has its reason in place of ours."""
    ours, error = (f"{row.prediction.value:.4g}", f"{row.error:+.1%}") if row.prediction else (row.reason, "")
    return [f"{row.figure.value:.4g}", ours, row.figure.unit, error]


def _miss(row: Judged) -> list[str]:
    return [row.figure.id, f"{row.error:+.0%}", misses().get(row.figure.id, "not known")]


def _source(figure: Figure) -> str:
    return f"{figure.source}{' (second-hand)' if figure.second_hand else ''}"
