"""The table of the study: on the console, as CSV, as JSON."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS: dict[str, tuple[str, str]] = {
    "exact_match": ("exact match", ".3f"), "logit_kl": ("logit KL, nats", ".2g"),
    "attention_error": ("attention error", ".4f"), "argmax_flips": ("arg max flips", ".4f"),
    "transfer_overlap": ("transfer overlap", ".4f"), "drift_blocks_k": ("K drift, blocks", ".3f"),
    "drift_steps_k": ("K drift, steps", ".3f"), "drift_blocks_v": ("V drift, blocks", ".3f"),
    "drift_steps_v": ("V drift, steps", ".3f"), "kv_bytes_per_token": ("KV bytes/token", ".1f"),
}  # fmt: skip
"""Metrics: heading and format. Drifts are mean |log2| changes of s (alpha 1)."""
SHOWN = [name for name in COLUMNS if not name.startswith("drift")]
"""Columns on the console and in Markdown; the drifts hardly depend on format and scheme."""
WIDTH = 150
"""Columns of the console table, whatever the terminal says: a wrapped table of numbers cannot be read."""


def write_tables(results: Sequence[dict[str, Any]], out: Path) -> None:
    """`kv.json` and `kv.csv`, one row per configuration."""
    (out / "kv.json").write_text(json.dumps(list(results), indent=1) + "\n")
    with (out / "kv.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in results for key in row)))
        writer.writeheader()
        writer.writerows(results)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """One row per configuration; exact match with its 95 % interval, logit KL with its standard error."""
    table = Table(box=None, header_style="bold")
    for heading in ("format", "scheme", "planted"):
        table.add_column(heading, no_wrap=True)
    for name in SHOWN:
        table.add_column(COLUMNS[name][0], justify="right", no_wrap=True)
    for row in results:
        cells = [cell(row, name) for name in SHOWN]
        table.add_row(row["format"], row["scheme"], f"x{row['planted']:g}" if row["planted"] != 1 else "", *cells)
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)


def cell(row: dict[str, Any], name: str) -> str:
    """One metric of one row, as text."""
    if name not in row:
        return ""
    text = format(row[name], COLUMNS[name][1])
    if name == "exact_match":
        text += f" ({row['exact_match_low']:.3f} to {row['exact_match_high']:.3f})"
    elif name == "logit_kl":
        text += f" ± {row['logit_kl_error']:.1g}"
    return text


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, for documents."""
    head = ["format", "scheme", "planted", *(COLUMNS[name][0] for name in SHOWN)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in results:
        planted = f"x{row['planted']:g}" if row["planted"] != 1 else ""
        lines.append(
            "| " + " | ".join([row["format"], row["scheme"], planted, *(cell(row, name) for name in SHOWN)]) + " |"
        )
    return "\n".join(lines) + "\n"
