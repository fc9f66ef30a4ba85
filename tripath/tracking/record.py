"""The record of a run for a tracking server, as plain data for JSON. It is made from an outcome and logged now or later."""

import dataclasses
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from npu.errors import TripathError
from npu.metrics import Table
from tripath.experiment import Experiment, Outcome
from tripath.paths import Fact, gives
from tripath.validation import WHOLE_RUN

FILE = "record.json"
"""The record in a run folder."""
TRACKED = "tracked.json"
"""Beside it where it was logged: to which store, as which run."""
HEADLINE = {
    "makespan_cycles", "seconds", "tokens_per_second", "lower_bound_cycles", "estimated_cycles", "token_agreement",
    "logit_kl", "exact_match", "steps_per_block", "sampling_share", "matrix_utilisation", "generated_tokens",
}  # fmt: skip
"""Metrics that a run repeats of its simulators, so that runs can be sorted by them."""
LEFT_OUT = {"timeline"}
"""Tables that the pictures and the Perfetto trace show, and that no server draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A run of the tracking server.

    `tables` by name, each a column by name; `files` are names in the run's folder; `children` are the simulators' runs.
    """

    name: str
    status: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)
    files: Sequence[str] = ()
    children: Sequence["Record"] = ()


def record_of(
    experiment: Experiment, outcome: Outcome, *, files: Sequence[str] = (), name: str | None = None,
    tables: Mapping[str, Table] | None = None,
) -> Record:  # fmt: skip
    """The record of a run that left `files`, with a child for each simulator; who gives times has the pictures too.

    `tables` are those of the run as a whole.
    """
    pictures = [file for file in files if file.endswith(".png")]
    tags = tags_of(experiment, outcome)
    children = [
        Record(
            name=simulator, status="FINISHED", tags=tags, parameters={"simulator": simulator},
            metrics=_finite({
                **{f"{simulator}.{key}": value for key, value in result.metrics.items()},
                "wall_seconds": outcome.wall_seconds[simulator],
            }),
            tables={
                title: _columns(table) for title, table in result.tables.items() if title not in LEFT_OUT
            },
            files=pictures if Fact.TIMES in gives(simulator) else [],
        )
        for simulator, result in outcome.results.items()
    ]  # fmt: skip
    of_experiment = f"{experiment.model.name} {experiment.hardware.name} {experiment.workload.cache}"
    return Record(
        name=name or of_experiment, status="FINISHED" if outcome.status == "passed" else "FAILED", tags=tags,
        parameters=parameters(experiment), metrics=headline_metrics(outcome), files=list(files),
        tables={title: _columns(table) for title, table in (tables or {}).items()},
        children=children,
    )  # fmt: skip


def _columns(table: Table) -> dict[str, list[object]]:
    """The table, a column by name."""
    return {column: [row[i] for row in table.rows] for i, column in enumerate(table.columns)}


def flat(record: Record) -> Record:
    """The record as one run that has the metrics and tables of its children itself: a row of a sweep."""
    metrics, tables = dict(record.metrics), dict(record.tables)
    for child in record.children:
        own = {"wall_seconds": f"{child.name}.wall_seconds"}
        metrics |= {own.get(name, name): value for name, value in child.metrics.items()}
        tables |= {f"{child.name}_{title}": table for title, table in child.tables.items()}
    return replace(record, metrics=metrics, tables=tables, children=[])


def to_json(record: Record) -> bytes:
    """The record as JSON."""
    return (json.dumps(asdict(record), default=lambda scalar: scalar.item()) + "\n").encode()


def from_json(data: bytes) -> Record:
    """The record that `to_json` wrote.

    Raises:
        TripathError: it is not one.
    """
    try:
        return _of(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TripathError(f"{FILE}: not a record ({str(error).splitlines()[0]})") from None


def _of(content: dict[str, Any]) -> Record:
    for name in (*content["files"], *content["tables"]):
        if not isinstance(name, str) or Path(name).name != name or name in {"", ".", ".."}:
            raise ValueError(f"{name!r} is no name of a file in the folder")
    return Record(**{**content, "children": [_of(child) for child in content["children"]]})


def tags_of(experiment: Experiment, outcome: Outcome) -> dict[str, str]:
    """Tags by which runs are filtered."""
    of_program = {} if outcome.program is None else {
        "program_digest": outcome.program.digest, "trace_digest": outcome.trace_digest,
    }  # fmt: skip
    tags = {
        **of_program, "model": experiment.model.name, "hardware": experiment.hardware.name, "cache": experiment.workload.cache,
        "verdict": outcome.status, "mlflow.source.name": "tripath",
    }  # fmt: skip
    commit = git_commit()
    return tags if commit is None else {**tags, "git_commit": commit}


def headline_metrics(outcome: Outcome) -> dict[str, float]:
    """Metrics of the parent run: those of `HEADLINE`, and the relative error of every check that is no count."""
    metrics: dict[str, float] = {
        "validation.discrepancies": len(outcome.discrepancies), "validation.failed": len(outcome.failures),
    }  # fmt: skip
    for row in outcome.discrepancies:
        if row.kind != "count":
            subject = row.metric if row.scope in WHOLE_RUN else f"{row.metric}.{row.scope}"
            metrics[f"validation.{row.kind}.{subject}.relative_error"] = row.relative_error
    for simulator, result in outcome.results.items():
        metrics |= {f"{simulator}.{key}": value for key, value in result.metrics.items() if key in HEADLINE}
    return _finite(metrics)


def parameters(experiment: Experiment) -> dict[str, str]:
    """Parameters of a run, flat: `workload.steps`, `hardware.hbm.channels`, ... Only config.yaml has the tables of timings."""
    names = ("model", "workload", "hardware", "numerics", "compiler")
    groups = {name: dataclasses.asdict(getattr(experiment, name)) for name in names}
    groups["hardware"].pop("timing")
    groups["hardware"]["hbm"].pop("timings")
    flat: dict[str, str] = {"paths": ",".join(experiment.paths)}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            flat[prefix] = str(value)

    for name, group in {**groups, "simulator": experiment.options}.items():
        walk(name, group)
    return flat


@cache
def git_commit() -> str | None:
    """Commit of the source tree that runs (`-dirty` if changed since), or None where git does not know this file."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    known = [*git, "ls-files", "--error-unmatch", here.name]  # not so for an installed copy below another repository
    try:
        subprocess.run(known, capture_output=True, check=True, timeout=5)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
