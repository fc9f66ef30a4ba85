"""Style and files of pictures: colours that the colour-blind can tell apart, axes in words, PNG for pages and SVG for papers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from npu.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW, BLACK) = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
)  # fmt: skip
"""Colours of Okabe and Ito; pictures take them in this order."""
SETTINGS: Any = {"svg.hashsalt": "tripath", "svg.fonttype": "none"}
"""The same marks have the same names each time; text stays text."""
DPI = 110
UNITS = {"cycles": "cycles", "seconds": "s", "joules": "J", "watts": "W", "bytes": "bytes", "mm2": "mm2", "hz": "Hz"}
"""Endings of metrics, and the unit that each means."""
WORDS = {
    "makespan_cycles": "cycles", "estimated_cycles": "cycles", "lower_bound_cycles": "bound_cycles", "seconds": "time_seconds",
    "tokens_per_second": "tokens/s", "tokens_per_joule": "tokens/J",
    "matrix_utilisation": "array_use", "sampling_share": "sampling",
}  # fmt: skip
"""Names of metrics in tables, pictures and pages, where they differ from their own (docs/glossary.md)."""
SHARES = ("share", "utilisation", "match", "agreement", "overlap", "flips", "error")
"""Endings of metrics whose axes stay linear."""


def load() -> None:
    """Load the library that draws, which takes longer than drawing: for who has to wait for something else."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401


def new_figure(width: float, height: float) -> "Figure":
    """An empty picture of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: "Figure", path: Path) -> list[Path]:
    """Write a picture to `path`, a PNG, and beside it as SVG; the files."""
    import matplotlib as mpl

    beside, layout = path.with_suffix(".svg"), figure.get_layout_engine()
    if layout is not None:  # once: each savefig would lay the picture out anew, and draw it twice for that
        layout.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(path)
    with mpl.rc_context(SETTINGS):
        figure.savefig(beside, metadata={"Date": None})
    return [path, beside]


def ticks_in_figures(axes: "Axes") -> None:
    """Ticks at 1, 2 and 5 of each power of ten of two logarithmic axes, as plain numbers."""
    from matplotlib.ticker import LogLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def colour_of(number: int) -> str:
    """The colour of a series by its number."""
    return OKABE_ITO[number % len(OKABE_ITO)]


def literal(text: str) -> str:
    """Text as a picture shows it: a dollar starts no formula, and control characters are spelled out."""
    return printable(text).replace("$", r"\$")


def worded(metric: str) -> str:
    """A metric as tables and pictures name it: `cycle.matrix_utilisation` is `array use (by cycle)`."""
    path, _, name = metric.partition(".")
    name = WORDS.get(name, name)
    words, _, ending = name.rpartition("_")
    if words and ending in UNITS and not words.endswith("_per"):
        return literal(f"{words.replace('_', ' ').replace('.', ' ')} ({UNITS[ending]}, by {path})")
    return literal(f"{name.replace('_', ' ').replace('.', ' ')} (by {path})")


def worded_key(key: str) -> str:
    """A configuration key as an axis names it: `workload.block_length` is `block length (workload.block_length)`."""
    last = key.rpartition(".")[2].replace("_", " ")
    return literal(last if last == key else f"{last} ({key})")


def explained(heading: str) -> str:
    """The meaning, in words, of a heading that is a metric's name; empty if it is not one."""
    path, _, name = heading.partition(".")
    return worded(heading) if path and name and " " not in heading else ""


def is_share(metric: str) -> bool:
    """True if a metric is a share; its axis stays linear."""
    return metric.rpartition("_")[2].rpartition(".")[2] in SHARES
