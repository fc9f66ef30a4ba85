"""What a run leaves behind: report.json, the program, and pictures."""

import json
import math
from pathlib import Path

from tripath.experiment import Experiment, Outcome
from tripath.metrics import UNITS

SCHEMA_VERSION = 1
COLOURS = {"busy": "#3b6ea5", "frontend": "#bcbcbc", "semaphore": "#e0a030", "operand": "#c0504d", "memory": "#7a4ea3",
           "queue_full": "#8c8c8c", "shared_queue": "#9fc5e8", "drained": "#eeeeee"}  # fmt: skip


def report_of(outcome: Outcome) -> dict[str, object]:
    """Contents of report.json (docs/validation.md describes them); finite numbers only."""
    generated = outcome.generated
    return {
        "schema_version": SCHEMA_VERSION,
        "status": outcome.status,
        "program": {
            "digest": outcome.program.digest, "words": len(outcome.program.words),
            "bytes": len(outcome.program.to_bytes()),
        },
        "simulators": {
            name: {
                "metrics": {f"{name}.{key}": value for key, value in result.metrics.items() if math.isfinite(value)},
                "wall_seconds": outcome.wall_seconds[name],
            }
            for name, result in outcome.results.items()
        },
        "discrepancies": [
            {
                "metric": row.metric, "scope": row.scope, "kind": row.kind, "expected": row.expected,
                "expected_source": row.expected_source, "observed": row.observed,
                "observed_source": row.observed_source, "relative_error": row.relative_error,
                "tolerance": row.tolerance, "verdict": row.verdict,
            }
            for row in outcome.discrepancies
        ],
        "generation": None if generated is None else {
            "prompt": generated.prompts[0], "text": generated.texts[0], "token_ids": generated.token_ids[0],
            "trip_counts": generated.trip_counts,
            "sequences": [
                {"prompt": prompt, "text": text, "token_ids": ids}
                for prompt, text, ids in zip(generated.prompts, generated.texts, generated.token_ids, strict=True)
            ],
        },
    }  # fmt: skip


def write_files(folder: Path, experiment: Experiment, outcome: Outcome, configuration: str) -> list[Path]:
    """Write report.json, program.asm, program.bin, config.yaml and the pictures; report.json last, and atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("program.asm", "program.bin", "config.yaml")]
    files[0].write_text(outcome.program.to_text())
    files[1].write_bytes(outcome.program.to_bytes())
    files[2].write_text(configuration)
    files += draw_pictures(folder, experiment, outcome)
    report = folder / "report.json"
    partial = report.with_suffix(".partial")
    partial.write_text(json.dumps(report_of(outcome), indent=1, allow_nan=False) + "\n")
    partial.replace(report)
    return [*files, report]


def draw_pictures(folder: Path, experiment: Experiment, outcome: Outcome) -> list[Path]:
    """Roofline and stall breakdown of the timing paths that ran."""
    if "cycle" not in outcome.results:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    return [_roofline(folder / "roofline.png", experiment, outcome), _stalls(folder / "stalls.png", outcome)]


def _roofline(path: Path, experiment: Experiment, outcome: Outcome) -> Path:
    from matplotlib import pyplot as plt

    hardware, result = experiment.hardware, outcome.results["cycle"]
    peak, bandwidth = hardware.blen * hardware.mlen, hardware.hbm.bytes_per_cycle
    macs, moved = result.counts["macs"], result.counts["hbm_read_bytes"] + result.counts["hbm_write_bytes"]
    intensity, reached = macs / moved, macs / result.metrics["makespan_cycles"]
    ridge = peak / bandwidth
    low, high = min(intensity, ridge) / 8, max(intensity, ridge) * 8
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog([low, ridge, high], [low * bandwidth, peak, peak], color="black", label="peak")
    axes.loglog([intensity], [reached], "o", color=COLOURS["busy"], label=f"this run: {reached:.3g} MAC/cycle")
    axes.annotate(f"{reached / min(peak, intensity * bandwidth):.0%} of the roof", (intensity, reached), xytext=(8, -12),
                  textcoords="offset points")  # fmt: skip
    axes.set(xlabel="arithmetic intensity (MAC per HBM byte)", ylabel="MAC per cycle",
             title=f"Roofline: {experiment.model.name} on {hardware.name}")  # fmt: skip
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _stalls(path: Path, outcome: Outcome) -> Path:
    from matplotlib import pyplot as plt

    result = outcome.results["cycle"]
    makespan, table = result.metrics["makespan_cycles"], result.tables["units"]
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    left = [0.0] * len(UNITS)
    for column, name in enumerate(table.columns[1:], 1):
        share = [100 * float(str(row[column])) / makespan for row in table.rows]
        axes.barh(UNITS, share, left=left, color=COLOURS[name], label=name.replace("_", " "))
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel=f"share of the makespan of {makespan:,.0f} cycles (%)", xlim=(0, 100),
             title="What each unit does, and what it waits for")  # fmt: skip
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
