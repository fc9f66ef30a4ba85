"""The files that a run leaves: report.json for scripts, report.html for people, the program, and pictures."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from npu.files import write_atomically
from npu.metrics import Table
from npu.units import format_bytes
from npu_compiler import compile_passes, explain
from tripath.experiment import Experiment, Generated, Outcome
from tripath.paths import Picture
from tripath.report.bounds import PHASES, STALLS, STEPS, by_phase, by_step, first_block
from tripath.report.explanation import NAME, explanation_of
from tripath.report.headline import energy_line, headline, verdicts
from tripath.report.page import (
    Markup,
    caption,
    code,
    document,
    folded,
    heading,
    picture,
    reproduce,
    table,
    verdict,
    wrapped,
)
from tripath.report.perfetto import FILE, write_trace
from tripath.report.pictures import draw_pictures, pictures_of
from tripath.tracking.record import FILE as FILE_OF_RECORD
from tripath.tracking.record import git_commit, record_of, to_json

SCHEMA_VERSION = 1
LONGEST_TABLE = 64
"""Tables with more rows stay out of the page; MLflow keeps them."""
CAPTIONS = {
    "stalls": "A bar for each unit, as long as the run. Busy: it works. The rest is what it waits for: semaphore UNIT, "
    "for data or room from that unit; queue full, for a unit to take its next instruction; drained, for the others to end.",
    "roofline": "The line is the most that this machine does at each arithmetic intensity; left of the bend memory limits, right "
    "of it the matrix unit. Hollow: the whole run; filled: its phases with MACs and HBM traffic, the larger the longer.",
    "energy": "Where the energy of the run goes, and the area of the core with its share of the HBM interface.",
    "timeline": "The recorded cycles (simulator.cycle.trace_window): when each unit runs instructions, coloured by "
    "phase. timeline.perfetto-trace beside this file shows every instruction, in Perfetto.",
}  # fmt: skip
"""An explanation of each picture, in the order of the page."""
MEAN_STEPS = (
    "A mean step of each kind, by the phases that prolong the run; all layers of a phase stand together. Those too short to see "
    "are left out."
)
TABLES = {"stalls": STALLS}
"""Explanations of tables that would otherwise be misread."""


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
                {"prompt": prompt, "text": text, "token_ids": ids, "tokens": tokens, "commit_steps": steps}
                for prompt, text, ids, tokens, steps in zip(
                    generated.prompts, generated.texts, generated.token_ids, generated.tokens, generated.commit_steps,
                    strict=True,
                )
            ],
        },
    }  # fmt: skip


def write_files(
    folder: Path, experiment: Experiment, outcome: Outcome, *, configuration: str, command: str, name: str | None = None
) -> list[Path]:
    """Write all files of a run to `folder`; report.json last, and atomically, so that where it is, all is.

    `configuration` is the composed configuration as YAML, `command` the command line that ran; record.json is what a
    tracking server is told (tripath.tracking.record), of a run that is called `name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {"config.yaml": configuration.encode(), **{name: text.encode() for name, text in outcome.files.items()}}
    if outcome.program is not None:
        files |= {"program.asm": outcome.program.to_text().encode(), "program.bin": outcome.program.to_bytes()}
        if outcome.prompt_lengths:
            e = experiment
            options = outcome.compiler or e.compiler
            made = compile_passes(e.model, e.workload, e.hardware, e.numerics, outcome.prompt_lengths, options)
            files["program.stages"] = explain(made).encode()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    pictures, traces = draw_pictures(folder, experiment, outcome), []
    for path, result in outcome.results.items():
        if Picture.TIMELINE in pictures_of(path):
            process = f"{experiment.model.name} on {experiment.hardware.name}"
            traces.append(write_trace(folder / FILE, result.tables["timeline"], process))
    page, record, report = (folder / name for name in ("report.html", FILE_OF_RECORD, "report.json"))
    explained = explanation_of(experiment, outcome)
    why = {} if explained is None else {NAME: explained}
    page.write_text(page_of(experiment, outcome, pictures, configuration, command), encoding="utf-8")
    logged = [*files, *(file.name for file in (*pictures, *traces, page, report))]
    record.write_bytes(to_json(record_of(experiment, outcome, files=logged, name=name, tables=why)))
    write_atomically(report, (json.dumps(report_of(outcome), indent=1, allow_nan=False) + "\n").encode())
    return [*(folder / file for file in files), *pictures, *traces, page, record, report]


def page_of(
    experiment: Experiment, outcome: Outcome, pictures: Sequence[Path], configuration: str, command: str
) -> str:
    """The run as one HTML file: verdict, text, figures, where the time goes, checks, what it was and how to run it again."""
    program = outcome.program
    title = "Checks without a program" if not outcome.results else experiment.model.name
    title += f" on {experiment.hardware.name}" if program else ""
    failed, checks = len(outcome.failures), len(outcome.discrepancies)
    line = f"{failed} of {checks} checks failed" if failed else f"all {checks} checks hold" if checks else "no checks"
    parts: list[str] = [verdict(line, good=not failed)]
    if failed:
        parts.append(table(_those_that(verdicts(outcome), "failed")))
    if outcome.reference_only:
        parts.append(caption(f"Reference path only: no program carries out {outcome.reference_only}."))
    if outcome.generated:
        parts += _denoising(outcome.generated, experiment.workload.block_length)
    if program:
        parts += [heading("Headline"), table(headline(experiment, outcome)), caption(energy_line(outcome))]
    if (why := explanation_of(experiment, outcome)) is not None:
        told = [[fact, value, Markup(wrapped(str(meaning)))] for fact, value, meaning in why.rows]
        parts += [heading("Why this fast?"), table(Table(columns=why.columns, rows=told))]
    parts += _where_time_goes(experiment, outcome, {path.stem: path for path in pictures if path.suffix == ".png"})
    if checks:
        parts += [
            heading("Discrepancies"),
            caption("Who expected what, and what was found; an error beyond its tolerance fails."),
            table(verdicts(outcome)),
        ]  # fmt: skip
    for name, rows in outcome.tables.items():
        parts += [heading(name.capitalize()), table(rows)]
    others = [
        folded(f"{name}: {what}", f"{caption(TABLES[what]) if what in TABLES else ''}{table(rows)}")
        for name, result in outcome.results.items()
        for what, rows in result.tables.items()
        if len(rows.rows) <= LONGEST_TABLE
    ]
    parts += [heading("All tables"), *others] if others else []
    provenance: dict[str, object] = {"tripath": version("tripath"), "git commit": git_commit() or "not known"}
    if program:
        provenance |= {
            "program digest": program.digest, "instruction words": len(program.words),
            "program file": format_bytes(len(program.to_bytes())), "trace digest": outcome.trace_digest,
        }  # fmt: skip
    again = "The same program has the digest above." if program else ""
    parts += [
        heading("Configuration"), folded("the composed configuration, as config.yaml", code(configuration)),
        heading("Provenance"), table(Table(columns=["what", "which"], rows=list(provenance.items()))),
        heading("How to run it again"), reproduce(command, git_commit()), caption(again),
    ]  # fmt: skip
    return document(title, parts)


def _those_that(rows: Table, what: str) -> Table:
    return Table(columns=rows.columns, rows=[row for row in rows.rows if row[-1] == what])


def _where_time_goes(experiment: Experiment, outcome: Outcome, pictures: Mapping[str, Path]) -> list[str]:
    """Phases, kinds of steps, then the pictures that there are."""
    parts: list[str] = []
    if (phases := by_phase(outcome.results)) is not None:
        parts += [heading("Phases"), caption(PHASES), table(phases)]
    if (steps := by_step(outcome.results, experiment.model)) is not None:
        parts += [heading("Steps"), caption(f"{STEPS} {first_block(experiment, outcome)}"), table(steps)]
        if (drawn := pictures.get("steps")) is not None:
            parts.append(picture(drawn, MEAN_STEPS))
    for stem in [*CAPTIONS, *(stem for stem in pictures if stem not in CAPTIONS)]:
        if stem in pictures and stem != "steps":
            parts += [heading(stem.capitalize()), picture(pictures[stem], CAPTIONS.get(stem, ""))]
    return parts


def _denoising(generated: Generated, length: int) -> list[str]:
    """Each sequence, its tokens by block, each with the step that committed it."""
    steps = " + ".join(map(str, generated.trip_counts))
    parts: list[str] = [
        heading("Generated text"),
        caption(
            f"Tokens by block; the number and the depth of colour say at which denoising step of its block a token was "
            f"committed, 1 first and faintest. {steps} steps."
        ),
    ]
    sequences = zip(generated.prompts, generated.texts, generated.tokens, generated.commit_steps, strict=True)
    for prompt, text, tokens, committed in sequences:
        parts.append(f"<p>{html.escape(prompt)}<br><b>{html.escape(text)}</b></p>")
        for block, trips in enumerate(generated.trip_counts):
            place = slice(block * length, (block + 1) * length)
            cells = "".join(map(_token, tokens[place], committed[place], [trips] * length))
            parts.append(f'<div class="block">{cells}</div>')
    return parts


def _token(text: str, step: int, trips: int) -> Markup:
    late = 0.08 + 0.62 * step / max(trips, 1)
    return Markup(
        f'<span class="token" style="--late:{late:.2f}" title="committed at step {step} of {trips}">'
        f"<b>{html.escape(text)}</b><small>{step or '-'}</small></span>"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
