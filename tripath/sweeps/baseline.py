"""Baselines of sweeps: every metric of every job is compared with a file that is kept in a repository.

`tripath baseline FOLDER [FILE]` writes that file from the sweep in FOLDER; without FILE, the one that the sweep was
compared with.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from npu.errors import Arguments, TripathError, did_you_mean, print_error
from npu.files import write_atomically
from tripath.sweeps.folders import job_reports
from tripath.tracking.record import FILE as RECORD

Value = int | float | str

KEY = "validation.baseline"
PACKAGED = Path(str(files("tripath.validation"))) / "data" / "baseline"
"""Baselines that come with the package; a name without a slash and suffix is one of these."""
FLOAT_TOLERANCE = 1e-6
"""Relative, of numbers with a fraction: libraries of other machines add in another order. Whole numbers and texts are equal."""
TOLERANCES = {"accuracy.logit_kl": 0.01}
"""Tolerances in a new baseline: the reference is FP32 in the host's BLAS, and the divergence is subject to cancellation."""
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The metrics of each job by the job's name. `tolerances` (relative) by a pattern of metric names, the first that fits."""

    jobs: Mapping[str, Mapping[str, Value]]
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)
    schema_version: int = SCHEMA_VERSION

    def tolerance(self, metric: str, expected: Value) -> float:
        """The allowed distance of a metric from `expected`, relative."""
        own = next((value for pattern, value in self.tolerances.items() if fnmatchcase(metric, pattern)), None)
        if own is not None:
            return own
        return FLOAT_TOLERANCE if isinstance(expected, float) and not expected.is_integer() else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """A metric of a job that is not what it was; None: it is not there. `metric` None: the whole job is not."""

    job: str
    metric: str | None = None
    old: Value | None = None
    new: Value | None = None
    tolerance: float = 0.0

    @property
    def change(self) -> float | None:
        """In percent; None where it is not between two numbers, or from nothing."""
        if isinstance(self.old, str | None) or isinstance(self.new, str | None) or not self.old:
            return None
        return 100 * (self.new - self.old) / abs(self.old)

    def __str__(self) -> str:
        """One line without the job."""
        if self.metric is None:
            return "in the baseline, but gave no results" if self.new is None else "not in the baseline"
        if self.old is None:
            return f"{self.metric}: not in the baseline, is {self.new}"
        if self.new is None:
            return f"{self.metric}: was {self.old}, is not there"
        if isinstance(self.old, str) or isinstance(self.new, str):
            return f"{self.metric}: was {self.old}, is {self.new}"
        change = "" if self.change is None else f"{self.change:+.3g} %, "
        return f"{self.metric}: was {self.old:.12g}, is {self.new:.12g} ({change}tolerance {self.tolerance:g})"


def facts_of(report: Mapping[str, Any]) -> dict[str, Value]:
    """Everything in a report.json that a run again would find again: metrics, digests, checks by kind, but no wall time."""
    program, generation = report["program"], report["generation"]
    facts: dict[str, Value] = {} if program is None else {f"program.{key}": value for key, value in program.items()}
    for simulator in report["simulators"].values():
        facts |= simulator["metrics"]
    for name, metrics in report["devices"].items():
        facts |= {f"devices.{name}.{key}": value for key, value in metrics.items()}
    for row in report["discrepancies"]:
        kind = f"checks.{row['kind']}"
        facts[kind] = int(facts.get(kind, 0)) + 1
    if generation is not None:
        tokens = json.dumps([row["token_ids"] for row in generation["sequences"]])
        facts["generation.token_digest"] = hashlib.sha256(tokens.encode()).hexdigest()
        facts["generation.trip_counts"] = " ".join(map(str, generation["trip_counts"]))
    return {name: _plain(value) for name, value in facts.items()}


def _plain(value: Value) -> Value:
    """A whole number as an integer, so that a file reads well."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def compare(baseline: Baseline, found: Mapping[str, Mapping[str, Value]]) -> list[Drift]:
    """Every drift, by job; of a job that is on one side alone, that."""
    drifts = [Drift(job=job) for job in baseline.jobs if job not in found]
    for job, facts in found.items():
        expected = baseline.jobs.get(job)
        if expected is None:
            drifts.append(Drift(job=job, new="new"))
            continue
        for metric in sorted({*expected, *facts}):
            old, new = expected.get(metric), facts.get(metric)
            tolerance = 0.0 if old is None else baseline.tolerance(metric, old)
            if not _within(old, new, tolerance):
                drifts.append(Drift(job=job, metric=metric, old=old, new=new, tolerance=tolerance))
    return drifts


def by_metric(drifts: Sequence[Drift], jobs: int) -> list[str]:
    """A line for each metric that drifted in some of so many jobs: first what is no change between numbers, then the largest."""
    groups: dict[tuple[str | None, bool], list[Drift]] = {}
    for drift in drifts:
        groups.setdefault((drift.metric, drift.new is None), []).append(drift)
    lines: list[tuple[float, str]] = []
    for (metric, gone), group in groups.items():
        changes = [change for drift in group if (change := drift.change) is not None]
        where = f"{len(group)} of {jobs} jobs"
        if metric is None:
            lines.append((math.inf, f"{len(group)} of the baseline gave no results" if gone else f"new: {where}"))
        elif len(changes) < len(group):
            lines.append((math.inf, f"{metric} {'is gone' if gone else 'is new or another'} in {where}"))
        else:
            least, most = min(changes), max(changes)
            span = f"{least:+.3g} %" if least == most else f"{least:+.3g} to {most:+.3g} %"
            lines.append((max(abs(least), abs(most)), f"{metric} {span} in {where}"))
    return [line for _, line in sorted(lines, key=lambda row: -row[0])]


def _within(old: Value | None, new: Value | None, tolerance: float) -> bool:
    if old is None or new is None or isinstance(old, str) or isinstance(new, str):
        return old == new
    return old == new or abs(new - old) <= tolerance * abs(old)


def place_of(name: str) -> Path:
    """The file that `validation.baseline` names."""
    return Path(name) if "/" in name or name.endswith(".json") else PACKAGED / f"{name}.json"


def read_baseline(name: str) -> Baseline:
    """The baseline that `validation.baseline` names.

    Raises:
        TripathError: it cannot be read, or is none.
    """
    path = place_of(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = did_you_mean(name, [file.stem for file in PACKAGED.glob("*.json")])
        raise TripathError(f"{KEY}: cannot read {path} ({error.strerror}){near}") from None
    except ValueError as error:
        raise TripathError(f"{KEY}: {path} is not JSON ({error})") from None
    if not isinstance(content, dict) or set(content) != {"schema_version", "tolerances", "jobs"}:
        raise TripathError(f"{KEY}: {path}: must have schema_version, tolerances and jobs alone")
    if content["schema_version"] != SCHEMA_VERSION:
        raise TripathError(f"{KEY}: {path}: schema_version must be {SCHEMA_VERSION}, got {content['schema_version']}")
    for what, table in (("tolerances", content["tolerances"]), ("jobs", content["jobs"])):
        if not isinstance(table, dict):
            raise TripathError(f"{KEY}: {path}: {what} must be a table, got {table!r}")
    for metric, value in content["tolerances"].items():
        if not _is_number(value) or not 0 <= value < 1:
            raise TripathError(f"{KEY}: {path}: the tolerance of {metric} must be from 0 to below 1, got {value!r}")
    for job, facts in content["jobs"].items():
        if not isinstance(facts, dict):
            raise TripathError(f"{KEY}: {path}: job {job!r} must be a table of metrics, got {facts!r}")
        wrong = next((metric for metric, value in facts.items() if not _is_value(value)), None)
        if wrong is not None:
            raise TripathError(
                f"{KEY}: {path}: {wrong} of job {job!r} must be a number or a text, got {facts[wrong]!r}"
            )
    return Baseline(**content)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_value(value: object) -> bool:
    return isinstance(value, str) or _is_number(value)


def read_sweep(folder: Path) -> dict[str, dict[str, Value]]:
    """The facts of the jobs below a sweep's folder, by job name.

    Raises:
        TripathError: there is no job, or a folder is not one of a job.
    """
    reports = job_reports(folder)
    if not reports:
        raise TripathError(f"{folder}: no job of a sweep below (NUMBER/report.json)")
    found: dict[str, dict[str, Value]] = {}
    for path in reports:
        try:
            name = json.loads(path.with_name(RECORD).read_text(encoding="utf-8"))["name"]
            found[name] = facts_of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TripathError(f"{path.parent}: not the folder of a job") from None
    return found


def update(folder: Path, name: str | None = None) -> str:
    """Make the baseline of a sweep's folder, with the tolerances of the one that it takes the place of; returns what it did.

    Raises:
        TripathError: the folder is not one of a sweep, or the old file is no baseline.
        OSError: a file cannot be read or written.
    """
    found = read_sweep(folder)
    if name is None:
        config = yaml.safe_load(next(folder.glob("*/config.yaml")).read_text(encoding="utf-8"))
        name = config["validation"].get("baseline")
    if name is None:
        raise TripathError(f"{folder}: was compared with no baseline; give FILE")
    path = place_of(name)
    old = read_baseline(name) if path.exists() else Baseline(jobs={})
    new = Baseline(jobs=found, tolerances=old.tolerances)
    changed = compare(Baseline(jobs=old.jobs, tolerances={"*": 0.0}), found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(asdict(new), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    details = [f"{drift.job}: {drift}" for drift in changed] if old.jobs else []  # of a first baseline all is new
    lines = [*by_metric(changed, len(found)), *details, f"{path}: {len(found)} jobs, {len(changed)} changes"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath baseline FOLDER [FILE]`; the exit status."""
    parser = Arguments(
        prog="tripath baseline",
        description="Write what the jobs of a sweep gave as the file that later sweeps are held to.",
    )
    parser.add_argument("folder", type=Path, help="of a sweep")
    parser.add_argument(
        "file", nargs="*", default=[], help="what to write; without it, the one that the sweep was held to"
    )
    try:
        given = parser.parse_args(arguments)
        if len(given.file) > 1:
            parser.error(f"one file at most, got {', '.join(given.file)}")
        sys.stdout.write(update(given.folder, *given.file))
    except (TripathError, OSError) as error:
        print_error(str(error))
        return 2
    return 0
