"""The pictures of a run: roofline, what units wait for, kinds of steps, energy and area, timeline."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from npu.metrics import UNITS, Result, Table
from tripath.experiment import Experiment, Outcome
from tripath.paths import PATHS, Picture, most_exact
from tripath.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    literal,
    new_figure,
    save,
    ticks_in_figures,
)

COLOURS = {
    "busy": (BLUE, ""), "frontend": ("#999999", ""), "semaphore_matrix": (YELLOW, ""),
    "semaphore_vector": (ORANGE, ""), "semaphore_dma_in": (VERMILION, ""), "semaphore_dma_out": (VERMILION, "///"),
    "operand": (PURPLE, ""), "write_out": (PURPLE, "///"),
    "dram_bandwidth": (GREEN, ""), "dram_latency": (GREEN, "///"),
    "dram_row": (GREEN, "..."), "dram_refresh": (GREEN, "xxx"), "host": (BLACK, ""), "queue_full": ("#CCCCCC", "///"),
    "serial": ("#999999", "///"), "shared_queue": (SKY, ""), "drained": ("#EEEEEE", ""),
}  # fmt: skip
"""Colour and hatching of what a unit does: colours of Okabe and Ito, and greys."""
PHASES = {
    "setup": (BLACK, ""), "embed": ("#999999", ""), "qkv": (BLUE, ""), "smooth": (BLUE, "///"),
    "rotate": (BLUE, "..."), "attention": (ORANGE, ""), "out": (SKY, ""), "ffn": (GREEN, ""),
    "lm_head": (YELLOW, ""), "sampling": (VERMILION, ""), "commit": (PURPLE, ""),
    "host": (VERMILION, "///"),
}  # fmt: skip
"""Colour and hatching of each phase, in all pictures."""
BLOCKS = {"hbm": "HBM", "hbm_phy": "HBM PHY"}
"""Blocks whose names are not words."""
SHORT = 0.005
"""A step that is shorter than such a share of the longest is too short to see."""
MOST_TICKS = 5
"""On an axis of cycles, whose numbers are long."""
LEGEND: Mapping[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "fontsize": 9}


def pictures_of(path: str) -> Sequence[Picture]:
    """The pictures that are drawn of a path's result; none of a user's own."""
    return PATHS[path].pictures if path in PATHS else ()


def draw_pictures(folder: Path, experiment: Experiment, outcome: Outcome) -> list[Path]:
    """The pictures of the paths that ran: one roofline of all that have one, the others singly."""
    results = {name: result for name, result in outcome.results.items() if pictures_of(name)}
    files: list[Path] = []
    roofs = {name: result for name, result in results.items() if Picture.ROOFLINE in pictures_of(name)}
    if any(result.counts["macs"] for result in roofs.values()):
        files += _roofline(folder / f"{Picture.ROOFLINE.value}.png", experiment, roofs)
    for name, result in results.items():
        for picture in pictures_of(name):
            if picture in OF_ONE_RESULT:
                files += OF_ONE_RESULT[picture](folder / f"{picture.value}.png", result)
    return files


def _roofline(path: Path, experiment: Experiment, timed: Mapping[str, Result]) -> list[Path]:
    """The roof of the hardware, what each path says of the whole run, and the phases of the most exact."""
    hardware, scale = experiment.hardware, 2 * experiment.hardware.clock_hz / 1e12  # 1 MAC is 2 operations
    peak, bandwidth = hardware.blen * hardware.mlen, hardware.peak_bytes_per_cycle
    exact = most_exact(timed)
    assert exact is not None
    phases = _phases_of(timed[exact].tables["phases"])
    counts = timed[exact].counts
    whole = counts["macs"] / (counts["hbm_read_bytes"] + counts["hbm_write_bytes"])
    at = [whole, peak / bandwidth, *(macs / moved for macs, moved, _ in phases.values())]
    low, high = min(at) / 3, max(at) * 3
    figure = new_figure(8, 4.4)
    axes = figure.subplots()
    corners = [2 * low, 2 * peak / bandwidth, 2 * high]
    axes.loglog(corners, [scale * low * bandwidth, scale * peak, scale * peak], color="black",
                label=f"roof: {scale * peak:.3g} TOP/s, {bandwidth * hardware.clock_hz / 1e9:.4g} GB/s")  # fmt: skip
    makespan = sum(cycles for _, _, cycles in phases.values())
    for phase, (macs, moved, cycles) in phases.items():
        fill, hatch = PHASES.get(phase, ("#999999", ""))
        label = literal(f"{phase}: {_reached(macs, moved, cycles, hardware.clock_hz)}")
        axes.scatter([2 * macs / moved], [scale * macs / cycles], s=30 + 400 * cycles / makespan, color=fill, hatch=hatch,
                     edgecolor="black", linewidth=0.5, alpha=0.85, label=label)  # fmt: skip
    for name, result in timed.items():
        cycles = result.metrics[PATHS[name].cost]
        share = counts["macs"] / cycles / min(peak, whole * bandwidth)
        moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
        label = f"{name}: {_reached(counts['macs'], moved, cycles, hardware.clock_hz)}, {share:.0%} of the roof"
        axes.loglog([2 * whole], [scale * counts["macs"] / cycles], PATHS[name].style[0], color="black", markersize=9,
                    markerfacecolor="none", label=label)  # fmt: skip
    axes.set(xlabel="arithmetic intensity (operations per byte of HBM)", ylabel="throughput (TOP/s)")
    figure.suptitle(literal(f"{experiment.model.name} on {hardware.name}"), fontsize=11)
    ticks_in_figures(axes)
    axes.grid(visible=True, alpha=0.2)
    legend = axes.legend(**LEGEND)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([50])  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]  of a scatter
    return save(figure, path)


def _phases_of(table: Table) -> dict[str, tuple[int, int, int]]:
    """MACs, bytes of HBM and cycles of the phases that have all three; none where the path does not say."""
    if "macs" not in table.columns:
        return {}
    at = [list(table.columns).index(name) for name in ("macs", "hbm bytes", "cycles")]
    found = {str(row[0]): [int(str(row[place])) for place in at] for row in table.rows}
    return {phase: (macs, moved, cycles) for phase, (macs, moved, cycles) in found.items() if macs and moved and cycles}


def _reached(macs: int, moved: int, cycles: float, clock_hz: float) -> str:
    return f"{2 * macs / cycles * clock_hz / 1e12:.3g} TOP/s, {moved / cycles * clock_hz / 1e9:.3g} GB/s"


def _stalls(path: Path, result: Result) -> list[Path]:
    makespan, table = result.metrics["makespan_cycles"], result.tables["units"]
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    left = [0.0] * len(UNITS)
    for column, name in enumerate(table.columns[1:], 1):
        share = [100 * float(str(row[column])) / makespan for row in table.rows]
        if not any(share):
            continue
        fill, hatch = COLOURS[name]
        axes.barh(
            UNITS,
            share,
            left=left,
            color=fill,
            hatch=hatch,
            edgecolor="#444444",
            linewidth=0.2,
            label=name.replace("_", " "),
        )
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel=f"share of the run of {makespan:,.0f} cycles (%)", xlim=(0, 100))
    axes.legend(**LEGEND)
    return save(figure, path)


def _steps(path: Path, result: Result) -> list[Path]:
    """A mean pass of each kind of step as a bar of its phases, those of all layers together."""
    steps: dict[str, dict[str, float]] = {}
    for step, passes, _, phase, cycles, *_ in result.tables["steps"].rows:
        own = steps.setdefault(f"{step}\nmean of {passes}" if passes != 1 else str(step), {})
        own[str(phase)] = own.get(str(phase), 0.0) + int(str(cycles)) / max(1, int(str(passes)))
    longest = max(sum(own.values()) for own in steps.values())
    steps = {step: own for step, own in steps.items() if sum(own.values()) > SHORT * longest}
    figure = new_figure(9, 1.2 + 0.6 * len(steps))
    axes = figure.subplots()
    at, left = {step: place for place, step in enumerate(steps)}, dict.fromkeys(steps, 0.0)
    for phase, (fill, hatch) in PHASES.items():
        widths = {step: own[phase] for step, own in steps.items() if phase in own}
        if widths:
            axes.barh([at[step] for step in widths], [*widths.values()], left=[left[step] for step in widths], color=fill,
                      hatch=hatch, edgecolor="#444444", linewidth=0.2, label=phase.replace("_", " "))  # fmt: skip
            left |= {step: left[step] + width for step, width in widths.items()}
    axes.set_yticks(range(len(steps)), [*steps])
    axes.invert_yaxis()
    axes.set(xlabel="cycles by which a step prolongs the run", xlim=(0, None))
    axes.locator_params("x", nbins=MOST_TICKS)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(**LEGEND)
    return save(figure, path)


def _energy(path: Path, result: Result) -> list[Path]:
    """Energy and area by block; none where no technology was given."""
    metrics = result.metrics
    blocks = {
        name: {key.partition(".")[2]: value for key, value in metrics.items() if key.startswith(f"block_{name}.")}
        for name in ("energy_joules", "area_mm2")
    }
    if not all(blocks.values()):
        return []
    names = list(dict.fromkeys([*blocks["energy_joules"], *blocks["area_mm2"]]))
    figure = new_figure(9, 1.2 + 0.3 * len(names))
    plots = figure.subplots(1, 2, sharey=True)
    for axes, (name, own), unit, fill in zip(plots, blocks.items(), ("J", "mm2"), (ORANGE, BLUE), strict=True):
        shares = [100 * own.get(block, 0.0) / metrics[name] for block in names]
        axes.barh([BLOCKS.get(block, block.replace("_", " ")) for block in names], shares, color=fill)
        for place, share in enumerate(shares):
            axes.text(share + 1, place, f"{share:.1f} %", va="center", fontsize=8)
        axes.set(xlabel=f"{name.partition('_')[0]} (% of {metrics[name]:.3g} {unit})", xlim=(0, 1.2 * max(shares)))
    plots[0].invert_yaxis()
    return save(figure, path)


def _timeline(path: Path, result: Result) -> list[Path]:
    """Which unit runs an instruction of which phase, over the recorded window."""
    table, makespan = result.tables["timeline"], result.metrics["makespan_cycles"]
    at = {name: table.columns.index(name) for name in ("phase", "unit", "start", "end")}
    spans: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for row in table.rows:
        runs = spans.setdefault(str(row[at["phase"]]), {}).setdefault(str(row[at["unit"]]), [])
        start, end = int(str(row[at["start"]])), int(str(row[at["end"]]))
        if runs and start <= runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end - runs[-1][0]))
        else:
            runs.append((start, end - start))
    figure = new_figure(10, 3)
    axes = figure.subplots()
    for phase in (phase for phase in PHASES if phase in spans):
        fill, hatch = PHASES[phase]
        for number, (unit, runs) in enumerate(spans[phase].items()):
            label = phase.replace("_", " ") if number == 0 else None
            axes.broken_barh(runs, (UNITS.index(unit) - 0.4, 0.8), facecolors=fill, hatch=hatch, label=label)
    times = [(start, start + length) for units in spans.values() for runs in units.values() for start, length in runs]
    first, last = min((start for start, _ in times), default=0), max((end for _, end in times), default=0)
    axes.set(xlabel="cycle", ylim=(len(UNITS) - 0.5, 0.5),
             title=f"cycles {first:,} to {last:,}: {(last - first) / makespan:.2%} of the run of {makespan:,.0f}")  # fmt: skip
    axes.title.set_fontsize(10)
    axes.locator_params("x", nbins=MOST_TICKS)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(range(1, len(UNITS)), UNITS[1:])
    if spans:
        axes.legend(**LEGEND)
    return save(figure, path)


OF_ONE_RESULT: Mapping[Picture, Callable[[Path, Result], list[Path]]] = {
    Picture.STALLS: _stalls, Picture.STEPS: _steps, Picture.ENERGY: _energy, Picture.TIMELINE: _timeline,
}  # fmt: skip
"""Functions that draw a picture of a single result."""
