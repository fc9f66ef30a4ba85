"""Logs records to MLflow: a run is a parent and a child per simulator; a sweep a parent and a child per job."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shlex
import signal
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from npu.errors import TripathError
from npu.files import write_atomically
from tripath.tracking.record import FILE, TRACKED, Record, flat, from_json

DATABASE, SQLITE = "mlflow.db", "sqlite:///"
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
PATIENCE_SECONDS, RETRY_SECONDS = 60.0, 1.0
"""So long a database that others hold is asked again."""
BUSY = ("database is locked", "database is busy")
VERDICT = "verdict"
"""The tag that says whether all checks held: a run has it once it is written whole."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The page then shows runs and charts, not conversations with a model."""
WORKFLOW = "workflowType=machine_learning"
"""The part of an address that selects that page instead of the one for conversations."""
COMMAND = "command"
"""The tag that says what was asked for."""
DISPLAYED = "mlflow.loggedArtifacts"
DESCRIPTION = "mlflow.note.content"
"""The tag whose Markdown the page of a run shows."""
"""The tag by which MLflow's page knows which files are tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Where runs are logged.

    Attributes:
        enabled: Log runs to MLflow.
        uri: A tracking URI; null: `$MLFLOW_TRACKING_URI`, else SQLite and artifacts in `folder`.
        folder: Relative to where the command is run.
        experiment: The experiment in MLflow.
    """

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
        """Shell command that opens the store in a browser; empty where a server does."""
        if self.uri.startswith("http"):
            return ""
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)} --host 127.0.0.1"

    @property
    def page(self) -> str:
        """Address of the run: on its server, or on one started by `command`."""
        server = "http://127.0.0.1:5000" if self.command else self.uri.rstrip("/")
        return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{WORKFLOW}"


def sqlite_uri(database: Path) -> str:
    """The address of a database file: in an address, `%` and `?` have a meaning."""
    return f"{SQLITE}{re.sub('[%?]', lambda sign: quote(sign[0]), str(database))}"


class Store:
    """An MLflow tracking store, opened in the background when made. Only the driver writes to it."""

    def __init__(self, tracking: Tracking) -> None:
        self._folder, self._name = Path(tracking.folder).absolute(), tracking.experiment
        self.uri = tracking.uri or sqlite_uri(self._folder / DATABASE)
        self._local = tracking.uri is None
        self._experiment_id = ""
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._partial = self._folder / f"{DATABASE}.{uuid.uuid4().hex}"
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the main thread takes it
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
                    known.experiment_id if known else client.create_experiment(self._name, self._artifact_place(), KIND)
                )
                self._client = client
                if self._local and (named := Path(self.uri.removeprefix(SQLITE)).parent) != self._folder:
                    with contextlib.suppress(OSError):  # MLflow makes the folder that the address names undecoded
                        os.removedirs(named)
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
        MlflowClient(tracking_uri=sqlite_uri(self._partial)).search_experiments()
        if database.exists():  # another run was faster
            self._partial.unlink()
        else:
            self._partial.replace(database)

    def abandon(self) -> None:
        """Remove a database that is only half made; the process ends."""
        for partial in self._folder.glob(f"{self._partial.name}*"):
            partial.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until the store is open.

        Raises:
            TripathError: it cannot be opened.
        """
        self._thread.join()
        if self._error is not None:
            raise TripathError(f"tracking.uri: cannot open {self.uri} ({_first_line(self._error)})")

    def log(self, record: Record, folder: Path, parent: str | None = None) -> Tracked:
        """Write one run, its files from `folder`, and its children, below the run `parent` if given.

        Raises:
            TripathError: the store cannot be written.
        """
        return self._written(lambda: self._log(record, folder, parent))

    def begin(self, record: Record, folder: Path) -> Tracked:
        """Write a run that goes on, a sweep, and leave a note of it in `folder`; go on with the one that `folder` has a note of,
        where that one was of the same command.

        Raises:
            TripathError: the store cannot be written.
        """
        tracked = self._written(lambda: self._resumed(record, folder) or self._started(record))
        note(folder, tracked)
        return tracked

    def _started(self, record: Record) -> str:
        """A new run with its parameters, by which it is known again."""
        run_id = self._create(record, None)
        for name, value in record.parameters.items():
            self._client.log_param(run_id, name, value[:PARAMETER_CHARACTERS])
        return run_id

    def _resumed(self, record: Record, folder: Path) -> str:
        """The run of an earlier sweep in `folder`, running again and without a verdict; empty: there is none to go on with."""
        known = noted(folder)
        if known is None or known.uri != self.uri:
            return ""
        with contextlib.suppress(Exception):  # whoever manages the store may have removed it
            found = self._client.get_run(known.run_id)
            asked = {name: value[:PARAMETER_CHARACTERS] for name, value in record.parameters.items()}
            same = found.data.params == asked and found.data.tags.get(COMMAND) == record.tags.get(COMMAND)
            if found.info.lifecycle_stage == "active" and same:
                self._client.update_run(known.run_id, status="RUNNING")
                if VERDICT in found.data.tags:
                    self._client.delete_tag(known.run_id, VERDICT)
                return known.run_id
        return ""

    def end(self, run_id: str, record: Record, folder: Path) -> None:
        """End a run that `begin` wrote.

        Raises:
            TripathError: the store cannot be written.
        """
        self._written(lambda: self._fill(run_id, record, folder))

    def log_folder(self, folder: Path, parent: str | None = None) -> Tracked:
        """Log the record of a run folder, below the run `parent` if given: as one run then. Leave a note of where it is; one that
        was below that parent before is replaced.

        Raises:
            TripathError: the store cannot be written, or the folder has no record.
        """
        try:
            record = from_json((folder / FILE).read_bytes())
        except OSError as error:
            raise TripathError(f"{folder}: no record of a run ({error.strerror})") from None
        old = [noted(folder, whole=False)]  # interrupted while it was written
        if parent and (there := noted(folder)) and self._is_below(there, parent):
            old.append(there)
        for known in old:
            if known and known.uri == self.uri:
                self.wait()
                with contextlib.suppress(Exception):  # whoever manages the store may have removed it
                    self._client.delete_run(known.run_id)
        tracked = self.log(flat(record) if parent else record, folder, parent)
        note(folder, tracked)
        return tracked

    def log_run(self, folder: Path) -> Tracked:
        """`log_folder` in a thread of its own, so that an interruption comes between two requests: the run then ends as KILLED.

        Raises:
            TripathError: the store cannot be written, or the folder has no record.
            KeyboardInterrupt: the user ended it.
        """
        with ThreadPoolExecutor(1) as thread:
            logged = thread.submit(self.log_folder, folder)
            try:
                return logged.result()
            except KeyboardInterrupt:
                self._stop.set()
                raise

    def _go_on(self) -> None:
        """Stop where the user ended the command.

        Raises:
            KeyboardInterrupt: the user did.
        """
        if self._stop.is_set():
            raise KeyboardInterrupt

    def _is_below(self, tracked: Tracked, parent: str) -> bool:
        """A run is in this store, below that parent."""
        self.wait()
        with contextlib.suppress(Exception):
            return self._client.get_run(tracked.run_id).data.tags.get("mlflow.parentRunId") == parent
        return False

    def _written(self, write: Callable[[], str]) -> Tracked:
        self.wait()
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._go_on()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return Tracked(uri=self.uri, experiment_id=self._experiment_id, run_id=write())
            except Exception as error:
                if time.monotonic() > until or not any(text in str(error) for text in BUSY):
                    raise TripathError(f"tracking.uri: cannot write to {self.uri} ({_first_line(error)})") from error
                time.sleep(RETRY_SECONDS)

    def _create(self, record: Record, parent: str | None) -> str:
        """A run that goes on; what became of it is told last."""
        tags = {
            **{key: value for key, value in record.tags.items() if key != VERDICT},
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
        return self._client.create_run(self._experiment_id, run_name=record.name, tags=tags).info.run_id

    def _log(self, record: Record, folder: Path, parent: str | None) -> str:
        run_id = self._create(record, parent)
        begun = [run_id]
        try:
            note(folder, Tracked(uri=self.uri, experiment_id=self._experiment_id, run_id=run_id), whole=False)
            for child in record.children:
                self._go_on()
                begun.append(self._create(child, run_id))
                self._fill(begun[-1], child, folder)
                begun.pop()
            self._fill(run_id, record, folder)
        except BaseException:  # also where the user ends it
            for each in reversed(begun):
                self._kill(each)
            raise
        return run_id

    def _kill(self, run_id: str) -> None:
        """End a run that is not whole, as far as the store allows."""
        with contextlib.suppress(Exception):
            self._client.set_terminated(run_id, "KILLED")
            if VERDICT in self._client.get_run(run_id).data.tags:
                self._client.delete_tag(run_id, VERDICT)

    def _fill(self, run_id: str, record: Record, folder: Path) -> str:
        """Metrics, parameters, files and tables in as few round trips as possible: one costs 10 to 30 ms."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), value, now, 0) for name, value in record.metrics.items()]
        items = [Param(name, value[:PARAMETER_CHARACTERS]) for name, value in record.parameters.items()]
        shown = [{"path": f"{title}.json", "type": "table"} for title in record.tables]
        tags = {**record.tags, **({DISPLAYED: json.dumps(shown)} if shown else {})}
        for page in (name for name in record.files if name.endswith(".html")):
            address = f"#/experiments/{self._experiment_id}/runs/{run_id}/artifacts/{page}?{WORKFLOW}"
            tags[DESCRIPTION] = f"[{page}]({address}) has the tables, the pictures, and how to run it again."
        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=items[:BATCH],
            tags=[RunTag(key, value) for key, value in tags.items() if key != VERDICT],
        )
        for start in range(BATCH, len(items), BATCH):
            self._client.log_batch(run_id, params=items[start : start + BATCH])
        if record.files or record.tables:
            with tempfile.TemporaryDirectory() as place:
                for name in record.files:
                    (Path(place) / name).symlink_to((folder / name).resolve(strict=True))
                for title, table in record.tables.items():
                    content = {"columns": list(table), "data": list(zip(*table.values(), strict=True))}
                    (Path(place) / f"{title}.json").write_text(json.dumps(content), encoding="utf-8")
                self._client.log_artifacts(run_id, place)
        self._go_on()
        self._client.set_terminated(run_id, record.status)
        if VERDICT in tags:  # last: a run that is interrupted has none
            self._client.set_tag(run_id, VERDICT, tags[VERDICT])
        return run_id


def note(folder: Path, tracked: Tracked, *, whole: bool = True) -> None:
    """Leave a note in `folder` of where its run is, `whole` or being written; nowhere in one that cannot be written."""
    with contextlib.suppress(OSError):
        content = {**dataclasses.asdict(tracked), "whole": whole}
        write_atomically(folder / TRACKED, json.dumps(content).encode() + b"\n")


def noted(folder: Path, *, whole: bool = True) -> Tracked | None:
    """The run that `note` left word of, if it is `whole`, or still only begun."""
    try:
        content = json.loads((folder / TRACKED).read_bytes())
        return Tracked(**content) if content.pop("whole", True) is whole else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _key(name: str) -> str:
    """`name` with only the characters that MLflow allows in a metric."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
