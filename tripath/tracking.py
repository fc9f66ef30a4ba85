"""Logs a run to MLflow: a parent with the verdicts and artifacts, a child per simulator with its metrics."""

import dataclasses
import logging
import math
import os
import shlex
import subprocess
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tripath.errors import TripathError
from tripath.experiment import WHOLE_RUN, Experiment, Outcome
from tripath.metrics import Result

DATABASE = "mlflow.db"
DATABASE_SCHEMES = ("sqlite", "mysql", "postgresql", "mssql")
BATCH = 100
"""MLflow takes at most so many parameters at once."""
PARAMETER_CHARACTERS = 6000
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}  # fmt: skip
"""Settings of MLflow: no notices on the user's screen, and a server that is not there is given up soon."""
HEADLINE = {
    "makespan_cycles", "seconds", "tokens_per_second", "lower_bound_cycles", "estimated_cycles", "token_agreement",
    "logit_kl", "sampling_share", "matrix_utilisation", "generated_tokens",
}  # fmt: skip
"""Metrics that the parent run repeats, so that a sweep can be sorted by them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Where runs are logged. `uri` None: SQLite and artifacts in `folder`, relative to where the command is run."""

    enabled: bool
    uri: str | None
    folder: str
    experiment: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracked:
    """Where a run is found."""

    uri: str
    experiment_id: str
    run_id: str

    @property
    def command(self) -> str:
        """Shell command that opens the store in a browser."""
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)} --host 127.0.0.1"

    @property
    def page(self) -> str:
        """Address of the run: on its server, or on one started by `command`."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}"


class Store:
    """An MLflow tracking store, opened in the background when made. Only the driver writes to it."""

    def __init__(self, tracking: Tracking) -> None:
        self._folder, self._name = Path(tracking.folder).absolute(), tracking.experiment
        self.uri = tracking.uri or f"sqlite:///{self._folder / DATABASE}"
        self._local = tracking.uri is None
        self._experiment_id = ""
        self._error: Exception | None = None
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            logging.getLogger("alembic").setLevel(logging.ERROR)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from mlflow import MlflowClient

                if self._local:
                    self._create_database()
                client = MlflowClient(tracking_uri=self.uri)
                known = client.get_experiment_by_name(self._name)
                self._experiment_id = (
                    known.experiment_id if known else client.create_experiment(self._name, self._artifact_place())
                )
                self._client = client
        except Exception as error:  # noqa: BLE001  raised again where the store is needed
            self._error = error

    def _artifact_place(self) -> str | None:
        """Where a new experiment keeps its files; a server decides for itself."""
        in_database = self.uri.partition(":")[0].partition("+")[0] in DATABASE_SCHEMES
        return (self._folder / "artifacts").as_uri() if in_database else None

    def _create_database(self) -> None:
        """Migrate a new database aside and move it into place, so that an interrupted start leaves none half made."""
        database = self._folder / DATABASE
        if database.exists():
            return
        from mlflow import MlflowClient

        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{DATABASE}.{os.getpid()}"
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
        if database.exists():  # another run was faster
            partial.unlink()
        else:
            partial.replace(database)

    def wait(self) -> None:
        """Wait until the store is open.

        Raises:
            TripathError: it cannot be opened.
        """
        self._thread.join()
        if self._error is not None:
            raise TripathError(f"tracking.uri: cannot open {self.uri} ({_first_line(self._error)})")

    def record(self, experiment: Experiment, outcome: Outcome, files: Sequence[Path]) -> Tracked:
        """Write one run: a parent with parameters, headline metrics, verdict and `files`, and a child for each path.

        Raises:
            TripathError: the store cannot be written.
        """
        self.wait()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_id = self._record(experiment, outcome, files)
        except Exception as error:
            raise TripathError(f"tracking.uri: cannot write to {self.uri} ({_first_line(error)})") from error
        return Tracked(uri=self.uri, experiment_id=self._experiment_id, run_id=run_id)

    def _record(self, experiment: Experiment, outcome: Outcome, files: Sequence[Path]) -> str:
        client, tags = self._client, tags_of(experiment, outcome)
        name = f"{experiment.model.name} {experiment.hardware.name} {experiment.workload.cache}"
        parent = client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id
        self._log(parent, headline_metrics(outcome), parameters(experiment))
        for file in files:
            client.log_artifact(parent, str(file))
        for simulator, result in outcome.results.items():
            below = {**tags, "mlflow.parentRunId": parent}
            child = client.create_run(self._experiment_id, run_name=simulator, tags=below)
            pictures = [file for file in files if file.suffix == ".png"] if simulator == "cycle" else []
            self._record_child(child.info.run_id, simulator, result, outcome.wall_seconds[simulator], pictures)
        client.set_terminated(parent, "FINISHED" if outcome.status == "passed" else "FAILED")
        return parent

    def _record_child(self, run_id: str, simulator: str, result: Result, seconds: float, pictures: list[Path]) -> None:
        metrics = {f"{simulator}.{key}": value for key, value in result.metrics.items()}
        self._log(run_id, {**metrics, "wall_seconds": seconds}, {"simulator": simulator})
        for title, table in result.tables.items():
            data = {column: [row[i] for row in table.rows] for i, column in enumerate(table.columns)}
            self._client.log_table(run_id, data, f"{title}.json")
        for picture in pictures:
            self._client.log_artifact(run_id, str(picture))
        self._client.set_terminated(run_id)

    def _log(self, run_id: str, metrics: Mapping[str, float], values: Mapping[str, str]) -> None:
        """Finite metrics and parameters in few round trips."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        rows = [Metric(_key(name), float(value), now, 0) for name, value in metrics.items() if math.isfinite(value)]
        items = [Param(name, value[:PARAMETER_CHARACTERS]) for name, value in values.items()]
        self._client.log_batch(run_id, metrics=rows, params=items[:BATCH])
        for start in range(BATCH, len(items), BATCH):
            self._client.log_batch(run_id, params=items[start : start + BATCH])


def tags_of(experiment: Experiment, outcome: Outcome) -> dict[str, str]:
    """What runs are filtered by."""
    of_program = {} if outcome.program is None else {
        "program_digest": outcome.program.digest, "trace_digest": next(iter(outcome.results.values())).trace_digest,
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
    return metrics


def parameters(experiment: Experiment) -> dict[str, str]:
    """What was run, flat: `workload.steps`, `hardware.hbm.channels`, ...; config.yaml also has the tables of timings."""
    names = ("model", "workload", "hardware", "numerics")
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


def _key(name: str) -> str:
    """`name` with only the characters that MLflow allows in a metric."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
