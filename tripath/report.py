"""What a run leaves behind: report.json for scripts, report.html for people, the program, and pictures."""

import base64
import html
import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tripath.experiment import Experiment, Outcome, headline, verdicts
from tripath.metrics import Table
from tripath.perfetto import FILE, write_trace
from tripath.pictures import draw_pictures
from tripath.record import FILE as FILE_OF_RECORD
from tripath.record import record_of, to_json
from tripath.results import write_atomically
from tripath.units import format_bytes

SCHEMA_VERSION = 1
LONGEST_TABLE = 64
"""Tables with more rows stay out of the page; MLflow keeps them."""
HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style>"""
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid #8886; }
img { max-width: 100%; background: white; }
.passed { color: #2a8a3e; } .failed { color: #d03030; font-weight: bold; }
"""


def report_of(outcome: Outcome) -> dict[str, object]:
    """Contents of report.json (docs/validation.md describes them); what is not finite is null, or left out."""
    generated = outcome.generated
    return {
        "schema_version": SCHEMA_VERSION,
        "status": outcome.status,
        "reference_only": outcome.reference_only or None,
        "program": None if outcome.program is None else {
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
        "devices": {
            name: {key: value for key, value in metrics.items() if math.isfinite(value)}
            for name, metrics in outcome.devices.items()
        },
        "discrepancies": [
            {
                "metric": row.metric, "scope": row.scope, "kind": row.kind, "expected": _finite(row.expected),
                "expected_source": row.expected_source, "observed": _finite(row.observed),
                "observed_source": row.observed_source, "relative_error": _finite(row.relative_error),
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


def write_files(
    folder: Path, experiment: Experiment, outcome: Outcome, *, configuration: str, command: str, name: str | None = None
) -> list[Path]:
    """Write all files of a run to `folder`; report.json last, and atomically, so that where it is, all is.

    `configuration` is the composed configuration as YAML, `command` the command line that ran; record.json is what a
    tracking server is told (tripath.record), of a run that is called `name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {"config.yaml": configuration.encode(), **{name: text.encode() for name, text in outcome.files.items()}}
    if outcome.program is not None:
        files |= {"program.asm": outcome.program.to_text().encode(), "program.bin": outcome.program.to_bytes()}
    for file, content in files.items():
        (folder / file).write_bytes(content)
    pictures, traces = draw_pictures(folder, experiment, outcome), []
    if "cycle" in outcome.results:
        process = f"{experiment.model.name} on {experiment.hardware.name}"
        traces.append(write_trace(folder / FILE, outcome.results["cycle"].tables["timeline"], process))
    page, record, report = (folder / name for name in ("report.html", FILE_OF_RECORD, "report.json"))
    page.write_text(page_of(experiment, outcome, pictures, configuration, command), encoding="utf-8")
    logged = [*files, *(file.name for file in (*pictures, *traces, page, report))]
    record.write_bytes(to_json(record_of(experiment, outcome, files=logged, name=name)))
    write_atomically(report, (json.dumps(report_of(outcome), indent=1, allow_nan=False) + "\n").encode())
    return [*(folder / file for file in files), *pictures, *traces, page, record, report]


def page_of(
    experiment: Experiment, outcome: Outcome, pictures: Sequence[Path], configuration: str, command: str
) -> str:
    """The run as one HTML file that loads nothing: pictures are inside, and all text is escaped."""
    program, generated = outcome.program, outcome.generated
    title = "Checks without a program" if not outcome.results else experiment.model.name
    title += f" on {experiment.hardware.name}" if program else ""
    failed, checks = len(outcome.failures), len(outcome.discrepancies)
    verdict = (
        f"{failed} of {checks} checks failed" if failed else f"all {checks} checks hold" if checks else "no checks"
    )
    parts = [
        HEAD.format(title=html.escape(title), style=STYLE),
        f'<h1>{html.escape(title)}</h1><p class="{outcome.status}">{verdict}</p>',
    ]
    if generated:
        parts.append("<h2>Generated text</h2>")
        for prompt, text in zip(generated.prompts, generated.texts, strict=True):
            parts.append(f"<p>{html.escape(prompt)}<br><b>{html.escape(text)}</b></p>")
        parts.append(f"<p>Denoising steps of each block: {', '.join(map(str, generated.trip_counts))}</p>")
    if outcome.reference_only:
        parts.append(f"<p>Reference path only: no program carries out {html.escape(outcome.reference_only)}.</p>")
    if program:
        parts += ["<h2>Paths</h2>", _table(headline(experiment, outcome))]
    if checks:
        parts += ["<h2>Checks</h2>", _table(verdicts(outcome))]
    for heading, table in outcome.tables.items():
        parts += [f"<h2>{html.escape(heading)}</h2>", _table(table)]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{data}">')
    for name, result in outcome.results.items():
        for heading, table in result.tables.items():
            if len(table.rows) <= LONGEST_TABLE:
                parts += [f"<h2>{html.escape(name)}: {html.escape(heading)}</h2>", _table(table)]
    provenance = {"tripath": version("tripath")}
    if program:
        provenance |= {
            "program digest": program.digest, "instruction words": f"{len(program.words):,}",
            "program file": format_bytes(len(program.to_bytes())),
            "trace digest": outcome.trace_digest,
        }  # fmt: skip
    parts += [
        "<h2>Provenance</h2>", _table(Table(columns=["", ""], rows=list(provenance.items()))),
        f"<h2>To run it again</h2><pre>{html.escape(command)}</pre>",
        f"<details><summary>Configuration</summary><pre>{html.escape(configuration)}</pre></details></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _table(table: Table) -> str:
    def cell(value: object) -> str:
        text = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        mark = f' class="{text}"' if text in ("passed", "failed") else ""
        return f"<td{mark}>{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
