"""The pictures of a run: roofline, stall breakdown, timeline."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from npu.errors import printable
from npu.metrics import UNITS, Result
from tripath.experiment import Experiment, Outcome
from tripath.paths import PATHS, Picture

COLOURS = {"busy": "#3b6ea5", "frontend": "#bcbcbc", "semaphore_matrix": "#f2cf8f", "semaphore_vector": "#e0a030",
           "semaphore_dma_in": "#b87a10", "semaphore_dma_out": "#7d5206", "operand": "#c0504d",
           "dram_bandwidth": "#7a4ea3", "dram_latency": "#a98bc6", "dram_row": "#d06fb0", "dram_refresh": "#5b2a6e",
           "queue_full": "#8c8c8c", "serial": "#6b8e6b", "shared_queue": "#9fc5e8", "drained": "#eeeeee"}  # fmt: skip
MARGINS = {"left": 0.13, "right": 0.97, "bottom": 0.13, "top": 0.92}
"""Of the roofline, as shares of the picture: fitting them to the text takes longer than all of an analytical run."""


def literal(text: str) -> str:
    """Text as a picture shows it: a dollar starts no formula, and control characters are spelled out."""
    return printable(text).replace("$", r"\$")


def pictures_of(path: str) -> Sequence[Picture]:
    """The pictures that are drawn of a path's result; none of a user's own."""
    return PATHS[path].pictures if path in PATHS else ()


def draw_pictures(folder: Path, experiment: Experiment, outcome: Outcome) -> list[Path]:
    """The pictures of the paths that ran: one roofline of all that have one, the others singly."""
    results = {name: result for name, result in outcome.results.items() if pictures_of(name)}
    if not results:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    pictures = []
    roofs = {name: result for name, result in results.items() if Picture.ROOFLINE in pictures_of(name)}
    if any(result.counts["macs"] for result in roofs.values()):
        pictures.append(_roofline(folder / f"{Picture.ROOFLINE.value}.png", experiment, roofs))
    for name, result in results.items():
        singly = [picture for picture in pictures_of(name) if picture in OF_ONE_RESULT]
        pictures += [OF_ONE_RESULT[picture](folder / f"{picture.value}.png", result) for picture in singly]
    return pictures


def _roofline(path: Path, experiment: Experiment, timed: Mapping[str, Result]) -> Path:
    from matplotlib import pyplot as plt

    hardware = experiment.hardware
    counts = next(iter(timed.values())).counts
    peak, bandwidth = hardware.blen * hardware.mlen, hardware.peak_bytes_per_cycle
    intensity = counts["macs"] / (counts["hbm_read_bytes"] + counts["hbm_write_bytes"])
    ridge = peak / bandwidth
    low, high = min(intensity, ridge) / 8, max(intensity, ridge) * 8
    figure, axes = plt.subplots(figsize=(6, 4), gridspec_kw=MARGINS)
    axes.loglog([low, ridge, high], [low * bandwidth, peak, peak], color="black", label="roof of this hardware")
    for name, result in timed.items():
        reached = counts["macs"] / result.metrics[PATHS[name].cost]
        share = reached / min(peak, intensity * bandwidth)
        label = f"{name}: {reached:.3g} MAC/cycle, {share:.0%} of the roof"
        axes.loglog([intensity], [reached], PATHS[name].style[0], label=label)
    axes.set(xlabel="arithmetic intensity (MAC per HBM byte)", ylabel="MAC per cycle",
             title=literal(f"Roofline: {experiment.model.name} on {hardware.name}"))  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")  # powers of ten are set by a formula parser: a third of the time
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.2)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _stalls(path: Path, result: Result) -> Path:
    from matplotlib import pyplot as plt

    makespan, table = result.metrics["makespan_cycles"], result.tables["units"]
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    left = [0.0] * len(UNITS)
    for column, name in enumerate(table.columns[1:], 1):
        share = [100 * float(str(row[column])) / makespan for row in table.rows]
        if not any(share):
            continue
        axes.barh(UNITS, share, left=left, color=COLOURS.get(name), label=name.replace("_", " "))
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel=f"share of the makespan of {makespan:,.0f} cycles (%)", xlim=(0, 100),
             title="What each unit does, and what it waits for")  # fmt: skip
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _timeline(path: Path, result: Result) -> Path:
    """Which unit runs an instruction of which phase, over the recorded window."""
    from matplotlib import pyplot as plt

    table = result.tables["timeline"]
    at = {name: table.columns.index(name) for name in ("phase", "unit", "start", "end")}
    spans: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for row in table.rows:
        runs = spans.setdefault(str(row[at["phase"]]), {}).setdefault(str(row[at["unit"]]), [])
        start, end = int(str(row[at["start"]])), int(str(row[at["end"]]))
        if runs and start <= runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end - runs[-1][0]))
        else:
            runs.append((start, end - start))
    figure, axes = plt.subplots(figsize=(10, 3), layout="constrained")
    for (phase, units), colour in zip(spans.items(), itertools.cycle(plt.get_cmap("tab10").colors), strict=False):  # pyright: ignore[reportAttributeAccessIssue]
        for number, (unit, runs) in enumerate(units.items()):
            label = phase if number == 0 else None
            axes.broken_barh(runs, (UNITS.index(unit) - 0.4, 0.8), facecolors=colour, label=label)
    axes.set(xlabel="cycle", title="The recorded window: what runs where, by phase", ylim=(len(UNITS) - 0.5, 0.5))
    axes.set_yticks(range(1, len(UNITS)), UNITS[1:])
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


OF_ONE_RESULT: Mapping[Picture, Callable[[Path, Result], Path]] = {Picture.STALLS: _stalls, Picture.TIMELINE: _timeline}
"""What draws a picture of a single result."""
