"""Logs a run to MLflow: a parent with the verdicts and artifacts, a child per simulator with its metrics."""

import logging
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tripath.errors import TripathError
from tripath.experiment import Experiment, Outcome

DATABASE = "mlflow.db"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracked:
    """Where a run is found."""

    uri: str
    experiment_id: str
    run_id: str

    @property
    def command(self) -> str:
        """Shell command that opens the store in a browser."""
        return f"mlflow ui --backend-store-uri '{self.uri}' --host 127.0.0.1"

    @property
    def page(self) -> str:
        """Address of the run in a server started by `command`."""
        return f"http://127.0.0.1:5000/#/experiments/{self.experiment_id}/runs/{self.run_id}"


class Store:
    """An MLflow tracking store, opened in the background when made. Only the driver writes to it."""

    def __init__(self, *, uri: str | None, folder: Path, experiment: str) -> None:
        self._folder, self._name = folder.absolute(), experiment
        self.uri = uri or f"sqlite:///{self._folder / DATABASE}"
        self._local = uri is None
        self._experiment_id = ""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            logging.getLogger("alembic").setLevel(logging.ERROR)
            os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from mlflow import MlflowClient

                if self._local:
                    self._create_database()
                client = MlflowClient(tracking_uri=self.uri)
                known = client.get_experiment_by_name(self._name)
                place = (self._folder / "artifacts").as_uri() if self._local else None
                self._experiment_id = known.experiment_id if known else client.create_experiment(self._name, place)
                self._client = client
        except Exception as error:
            self._error = error

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

    def record(
        self, experiment: Experiment, outcome: Outcome, parameters: Mapping[str, str], files: list[Path]
    ) -> Tracked:
        """Write one run.

        Raises:
            TripathError: the store cannot be written.
        """
        self.wait()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_id = self._record(experiment, outcome, parameters, files)
        except Exception as error:
            raise TripathError(f"tracking.uri: cannot write to {self.uri} ({_first_line(error)})") from error
        return Tracked(uri=self.uri, experiment_id=self._experiment_id, run_id=run_id)

    def _record(
        self, experiment: Experiment, outcome: Outcome, parameters: Mapping[str, str], files: list[Path]
    ) -> str:
        from mlflow.entities import Metric, Param, RunTag

        client = self._client
        tags = {
            "program_digest": outcome.program.digest, "git_commit": git_commit(), "model": experiment.model.name,
            "hardware": experiment.hardware.name, "cache": experiment.workload.cache, "verdict": outcome.status,
            "trace_digest": next(iter(outcome.results.values())).trace_digest,
        }  # fmt: skip
        name = f"{experiment.model.name} {experiment.hardware.name} {experiment.workload.cache}"
        parent = client.create_run(self._experiment_id, run_name=name, tags=tags)
        now = int(time.time() * 1000)

        def log(run_id: str, metrics: Mapping[str, float], extra: Mapping[str, str]) -> None:
            rows = [Metric(_key(key), float(value), now, 0) for key, value in metrics.items()]
            client.log_batch(run_id, metrics=rows, params=[Param(k, v[:6000]) for k, v in extra.items()],
                             tags=[RunTag("mlflow.source.name", "tripath")])  # fmt: skip

        failed = len(outcome.failures)
        headline = {"validation.discrepancies": len(outcome.discrepancies), "validation.failed": failed}
        for row in outcome.discrepancies:
            if row.kind != "count":
                headline[f"validation.{row.kind}.{row.metric}.relative_error"] = row.relative_error
        for simulator, result in outcome.results.items():
            headline |= {f"{simulator}.{key}": value for key, value in result.metrics.items() if key in HEADLINE}
        log(parent.info.run_id, headline, parameters)
        for file in files:
            client.log_artifact(parent.info.run_id, str(file))
        for simulator, result in outcome.results.items():
            child = client.create_run(
                self._experiment_id, run_name=simulator, tags={**tags, "mlflow.parentRunId": parent.info.run_id}
            )
            metrics = {f"{simulator}.{key}": value for key, value in result.metrics.items()}
            log(child.info.run_id, {**metrics, "wall_seconds": outcome.wall_seconds[simulator]}, {"simulator": simulator})
            for title, table in result.tables.items():
                data = {column: [row[i] for row in table.rows] for i, column in enumerate(table.columns)}
                client.log_table(child.info.run_id, data, f"{title}.json")
            if simulator == "cycle":
                for file in files:
                    if file.suffix == ".png":
                        client.log_artifact(child.info.run_id, str(file))
            client.set_terminated(child.info.run_id)
        client.set_terminated(parent.info.run_id, "FINISHED" if outcome.status == "passed" else "FAILED")
        return parent.info.run_id


HEADLINE = {
    "makespan_cycles", "seconds", "tokens_per_second", "lower_bound_cycles", "estimated_cycles", "token_agreement",
    "logit_kl", "sampling_share", "matrix_utilisation", "generated_tokens",
}  # fmt: skip
"""Metrics that the parent run repeats, so that a sweep can be sorted by them."""


def _key(name: str) -> str:
    """`name` with only the characters that MLflow allows in a metric."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def git_commit() -> str:
    """Commit of the source tree that runs, or `unknown` outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
