"""A sweep as its driver sees it: jobs go to the cluster, files to disk, records to the store, a table to the screen."""

import json
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from npu.errors import TripathError, did_you_mean, print_error
from npu.files import write_atomically
from npu.metrics import Table
from tripath.cluster.launch import Cluster, Launch, Task
from tripath.cluster.ray_calls import WorkerLostError
from tripath.report.console import Tracked, error_out, out, print_places, sweep_progress, table_of
from tripath.run.job import (
    INPUT_ERRORS,
    REPORT,
    Job,
    JobOutcome,
    compile_key,
    keep_files,
    prepare,
    run_job,
    run_light_jobs,
)
from tripath.sweeps.baseline import Baseline, Drift, by_metric, compare, facts_of
from tripath.sweeps.by_phase import write_by_phase
from tripath.sweeps.study import write_quality
from tripath.sweeps.summary import (
    DESCENDING,
    MOST_ROWS,
    Row,
    draw_summary,
    order,
    short,
    sort_metric,
    summary,
    write_csv,
)
from tripath.sweeps.sweep_report import PAGE, page_of_sweep
from tripath.sweeps.verdicts import JUNIT, MARKDOWN, junit, markdown
from tripath.tracking.record import FILE, Record, git_commit, to_json

VERDICTS = ("passed", "failed", "bad input", "internal error")
"""Of a job; the exit status is the place in this list."""
INFEASIBLE = "infeasible"
"""The verdict on a design of a search that cannot be: it costs no exit status."""
KILLED = "KILLED"
VERDICT_OF = {"FINISHED": "passed"}
"""The verdict on a sweep none of whose jobs failed, by its status in MLflow; on another it is `interrupted`."""
PICTURE, TABLE = "sweep.png", "sweep.csv"
MOST_TOGETHER, MOST_AHEAD = 8, 48
"""Light jobs in a task, and how many are looked at to find those of one program."""
MOST_DRIFTS = 20
"""That are printed."""


class Store(Protocol):
    """Where records are logged (tripath.tracking.store.Store)."""

    def begin(self, record: Record, folder: Path) -> Tracked:
        """Write a run that goes on."""
        ...

    def end(self, run_id: str, record: Record, folder: Path) -> None:
        """End it."""
        ...

    def log_folder(self, folder: Path, parent: str | None = None) -> Tracked:
        """Log the record of a run folder."""
        ...


class Extra(Protocol):
    """Output of a kind of sweep that replaces the table and picture of its jobs (tripath.sweeps.search.Search)."""

    def outcome(self, rows: Sequence[Row]) -> tuple[str, Table]:
        """A sentence, and the table that is printed."""
        ...

    def write(self, folder: Path, rows: Sequence[Row]) -> list[str]:
        """Write them, and hand back their names."""
        ...


@dataclass(kw_only=True)
class Sweep:
    """The jobs of one sweep, and what became of them so far; a sweeper may hand them out in several batches.

    `swept` holds by job what is its own, `commands` what runs it alone; `drifts` are those from the baseline, None until the
    sweep is over or where there is none. `launch` and `store` are known when the first job is.
    """

    folder: Path
    command: str
    launch: Launch | None = None
    store: Store | None = None
    swept: dict[int, dict[str, str]] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    baseline: Baseline | None = None
    extra: Extra | None = None
    drifts: list[Drift] | None = None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._writer: _Writer | None = None
        self._progress = ExitStack()
        self._show: Callable[[Sequence[str], int, int], None] | None = None

    @property
    def sort_by(self) -> str | None:
        """The metric that the user asks to order by."""
        return self.launch.sort_by if self.launch else None

    @property
    def shown(self) -> Sequence[str]:
        """The metrics that the user asks to see."""
        return self.launch.columns if self.launch else ()

    @property
    def status(self) -> int:
        """The worst exit status of a job; a drift is a check that failed, and a search that finds no design has bad input."""
        worst = max((VERDICTS.index(row.verdict) for row in self.rows if row.verdict != INFEASIBLE), default=0)
        return max(worst, 1 if self.drifts else 0, VERDICTS.index("bad input") if self._none_can_be else 0)

    @property
    def _none_can_be(self) -> bool:
        return bool(self.rows) and all(row.verdict == INFEASIBLE for row in self.rows)

    def refuse(self, number: int, error: str, verdict: str = "bad input") -> None:
        """Note a job that gave nothing."""
        print_error(f"job {number}: {error}")
        self.rows.append(Row(number=number, swept=self.swept[number], verdict=verdict, error=error))

    def run(self, jobs: Iterable[Job], cluster: Cluster) -> None:
        """Run a batch of `jobs`; what ends is written, logged and shown, whatever becomes of the others.

        Raises:
            TripathError: the cluster cannot be reached, or is lost.
            KeyboardInterrupt: the user ended it.
        """
        assert self.launch is not None
        cache, waiting = self.launch.results, {}
        if self._show is None:
            self._show = self._progress.enter_context(sweep_progress())
            self._writer = _Writer(self, self.store) if self.store else None
        show = self._show

        def tasks() -> Iterator[Task]:
            for together in _together(jobs):
                job, inputs = together[0], (together[0].experiment, together[0].default_prompt)
                if job.light:
                    task = Task(function=run_light_jobs, arguments=(together, cache), jobs=len(together))
                else:
                    key = compile_key(*inputs)
                    task = Task(key=key, prepare=(prepare, (*inputs, cache)), function=run_job, arguments=(job, cache))
                waiting[id(task)] = task, together
                yield task

        for task, value in cluster.each(
            tasks(), lambda out: show([row.verdict for row in self.rows], len(self.swept), out)
        ):
            _, together = waiting.pop(id(task))
            values = value if isinstance(value, list) else [value] * len(together)
            for job, found in zip(together, values, strict=True):
                if self._take(job, found) and self._writer:
                    self._writer.put(job.folder)
        show([row.verdict for row in self.rows], len(self.swept), 0)

    def end(self, *, whole: bool) -> None:
        """Write, log and print what came out; `whole`: every job has ended. If the user interrupts it, it is called again for a
        sweep that is not `whole`."""
        self._progress.close()
        if self.launch is None:  # no job could start
            return
        if whole:
            self._compare()
        else:
            self._unpublish()
        if self._none_can_be:
            first = min(self.rows, key=lambda row: row.number)
            print_error(
                f"hydra.sweeper.params: none of {len(self.rows)} designs can be; job {first.number}: {first.error}"
            )
        ended = KILLED if not whole else "FAILED" if self.status else "FINISHED"
        files, found = [], None
        try:
            files += self._write()
            files += [] if ended == KILLED else self._publish()
            found = self.extra.outcome(self.rows) if self.extra else None
            files += self._report(files, found)
        except Exception:
            if whole:  # else an import was interrupted, which cannot be repeated
                raise
        record = self.save(ended, files) if files or self._writer else None
        tracked = self._writer.end(record) if self._writer and record else None
        self._print(tracked, found)

    def _take(self, job: Job, value: object) -> bool:
        """Note what became of a job, and write its files; whether they are there."""
        if not isinstance(value, JobOutcome):
            assert isinstance(value, Exception)
            if isinstance(value, TripathError) and self.extra is not None and job.row_only:  # an answer, too
                own = self.swept[job.number]
                self.rows.append(Row(number=job.number, swept=own, verdict=INFEASIBLE, error=str(value)))
                return False
            if isinstance(value, INPUT_ERRORS):
                self.refuse(job.number, str(value))
                return False
            if not isinstance(value, WorkerLostError):
                traceback.print_exception(value)
            self.refuse(job.number, str(value).strip().splitlines()[-1], "internal error")
            return False
        if value.unknown_words:
            words = ", ".join(value.unknown_words[:8])
            error_out.print(f"note: job {job.number}: the model's vocabulary lacks: {words}", style="yellow")
        if not job.row_only:
            try:
                keep_files(job.folder, value.files)
            except OSError as error:  # the results are in the cache
                self.refuse(job.number, f"hydra.sweep.dir: cannot write {job.folder} ({error.strerror})")
                return False
        self.rows.append(Row(
            number=job.number, swept=self.swept[job.number], verdict=value.status, error=", ".join(value.failures),
            metrics=dict(value.metrics), wall_seconds=dict(value.wall_seconds), cached=value.cached,
            report=None if job.row_only else json.loads(value.files[REPORT]), fail_on=job.experiment.settings.fail_on,
            folder="" if job.row_only else os.path.relpath(job.folder, self.folder),
        ))  # fmt: skip
        return not job.row_only

    def _compare(self) -> None:
        """Hold what came out to the baseline: a job that drifted has failed."""
        if self.baseline is None:
            return
        found = {row.name: facts_of(row.report) for row in self.rows if row.report is not None}
        self.drifts = compare(self.baseline, found)
        for line in by_metric(self.drifts, len(found))[:MOST_DRIFTS]:
            print_error(f"baseline: {line}")
        for drift in self.drifts[:MOST_DRIFTS]:
            print_error(f"{drift.job}: {drift}")
        if len(self.drifts) > MOST_DRIFTS:
            print_error(f"{len(self.drifts) - MOST_DRIFTS} more drifts from the baseline, in {self.folder / JUNIT}")
        for index, row in enumerate(self.rows):
            own = [drift.metric or str(drift) for drift in self.drifts if drift.job == row.name]
            if own and row.report is not None:
                errors = [row.error] * bool(row.error) + [f"{metric} (baseline)" for metric in own]
                self.rows[index] = replace(row, verdict="failed", error=", ".join(errors))

    def _publish(self) -> list[str]:
        """Write what continuous integration shows of the sweep, and hand back the names."""
        rows = [row for row in self.rows if row.report is not None or row.verdict in VERDICTS[1:]]
        text = markdown(rows, self.drifts, self._metric, self.shown)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / JUNIT).write_bytes(junit(rows, self.drifts))
            (self.folder / MARKDOWN).write_text(text, encoding="utf-8")
        except OSError as error:
            _note(f"hydra.sweep.dir: cannot write to {self.folder} ({error.strerror})")
            return []
        return [JUNIT, MARKDOWN]

    def _unpublish(self) -> None:
        """Remove what continuous integration would take for that of a whole sweep, also of an earlier one in the folder."""
        for name in (JUNIT, MARKDOWN):
            with suppress(OSError):
                (self.folder / name).unlink()

    def _report(self, files: Sequence[str], found: tuple[str, Table] | None) -> list[str]:
        """Write the page of the sweep, with the pictures among `files`, and hand back its name."""
        if not self.rows:
            return []
        page = page_of_sweep(
            self.rows, counts=self._counts, good=self.status == 0, metric=self._metric, command=self.command,
            commands=self.commands, drifts=self.drifts, pictures=[self.folder / file for file in files if file.endswith(".png")],
            found=found, shown=self.shown,
        )  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / PAGE).write_text(page, encoding="utf-8")
        except OSError as error:
            _note(f"hydra.sweep.dir: cannot write to {self.folder} ({error.strerror})")
            return []
        return [PAGE]

    @property
    def _counts(self) -> dict[str, int]:
        """Number of jobs by verdict, and of those not run."""
        counts = {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in (*VERDICTS, INFEASIBLE)}
        return {**counts, "not run": len(self.swept) - len(self.rows)}

    @property
    def _metric(self) -> str | None:
        return sort_metric(self.rows, self.sort_by)

    def _write(self) -> list[str]:
        """Write tables and pictures of what ended so far, and hand back their names."""
        if not any(row.metrics for row in self.rows):
            return []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_csv(self.folder / TABLE, self.rows)
            if self.extra is not None:
                return [TABLE, *self.extra.write(self.folder, self.rows)]
            drawn = draw_summary(self.folder / PICTURE, self.rows, self._metric)
            study = write_quality(self.folder, self.rows)
            if self.launch is not None and self.launch.by_phase:
                study += write_by_phase(self.folder, self.rows)
        except OSError as error:
            _note(f"hydra.sweep.dir: cannot write to {self.folder} ({error.strerror})")
            return []
        return [TABLE, *(file.name for file in drawn), *study]

    def _print(self, tracked: Tracked | None, found: tuple[str, Table] | None) -> None:
        if not self.rows:
            return
        table, by = summary(self.rows, self._metric, self.shown), ""
        if found is not None:
            by, table = found
        elif self._metric:
            by = f"jobs, by {self._metric.removeprefix(DESCENDING)}"
        title = "" if len(table.rows) <= MOST_ROWS else f" (the first {MOST_ROWS}; {TABLE} has all)"
        out.print()
        columns = [column.replace(".", ".\n", 1) for column in table.columns]
        out.print(table_of(f"{by or 'jobs'}{title}", Table(columns=columns, rows=table.rows[:MOST_ROWS])))
        known = sorted({name for row in self.rows for name in row.metrics})
        if self.sort_by and known and self._metric is None:
            near = did_you_mean(self.sort_by.removeprefix(DESCENDING), known)
            _note(f"launch.sort_by: no job has {self.sort_by}; they have {', '.join(known[:8])}, ...{near}")
        hits, paths = (sum(len(paths) for paths in of) for of in
                       ([row.cached for row in self.rows], [row.wall_seconds for row in self.rows]))  # fmt: skip
        cached = f"; {hits} of {paths} results from the cache" if hits else ""
        out.print(", ".join(f"{number} {what}" for what, number in self._counts.items() if number) + cached)
        if known:
            print_places(str(self.folder), tracked)

    def record(self, status: str, files: Sequence[str] = ()) -> Record:
        """The record of the sweep itself for a tracking server: a table of the jobs, their number by verdict, the best metric.
        A sweep that has not ended has not passed."""
        values: dict[str, list[str]] = {}
        for row in self.swept.values():
            for axis, value in row.items():
                values.setdefault(axis, []).append(value)
        swept = {axis: ",".join(dict.fromkeys(of_axis)) for axis, of_axis in values.items()}
        axes = ", ".join(short(axis, list(swept)) for axis in swept)
        commit = git_commit()
        tags = {
            "kind": "sweep", "verdict": "failed" if self.status else VERDICT_OF.get(status, "interrupted"),
            "mlflow.source.name": "tripath",
            "command": self.command, **({"git_commit": commit} if commit else {}),
        }  # fmt: skip
        metrics: dict[str, float] = {"jobs": len(self.swept)}
        for verdict in (*VERDICTS, INFEASIBLE):
            metrics[f"jobs.{verdict.replace(' ', '_')}"] = sum(row.verdict == verdict for row in self.rows)
        best, table = order(self.rows, self._metric), summary(self.rows, self._metric, self.shown)
        if self._metric:
            name = self._metric.removeprefix(DESCENDING)
            metrics[name] = best[0].metrics[name]
        columns = {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns)}
        return Record(
            name=f"sweep of {axes or 'one job'}", status=status, tags=tags, parameters=swept, metrics=metrics,
            files=files, tables={"jobs": columns} if self.rows else {},
        )  # fmt: skip

    def save(self, status: str, files: Sequence[str] = ()) -> Record:
        """Keep the record of the sweep beside its jobs."""
        record = self.record(status, files)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / FILE, to_json(record))
        except OSError as error:
            _note(f"hydra.sweep.dir: cannot write to {self.folder} ({error.strerror})")
        return record


def _together(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Jobs as they go to a worker: light ones several at a time, those of one program one after the other; others alone."""
    ahead: dict[str, list[Job]] = {}

    def light() -> Iterator[list[Job]]:
        waiting = list(chain(*ahead.values()))
        ahead.clear()
        for first in range(0, len(waiting), MOST_TOGETHER):
            yield waiting[first : first + MOST_TOGETHER]

    for job in jobs:
        if not job.light:
            yield [job]
            continue
        ahead.setdefault(compile_key(job.experiment, job.default_prompt), []).append(job)
        if sum(map(len, ahead.values())) == MOST_AHEAD:
            yield from light()
    yield from light()


class _Writer:
    """Logs a sweep in a thread of its own, since a store is slower than a cluster; if it fails, that costs no result."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self._sweep, self._store = sweep, store
        self._folders: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._tracked: Tracked | None = None
        self._error: Exception | None = None
        self._stop = threading.Event()
        sweep.save("RUNNING")
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, folder: Path) -> None:
        """Log the job in `folder` when the store has time."""
        self._folders.put(folder)

    def end(self, record: Record) -> Tracked | None:
        """End the sweep's run when its jobs are logged, or at once if it was killed; where it is, None: not all is."""
        if record.status == KILLED:
            self._stop.set()
        self._folders.put(None)
        with out.status("mlflow writes the rest"):
            self._thread.join()
        if self._tracked and not self._error:
            try:
                self._store.end(self._tracked.run_id, record, self._sweep.folder)
            except Exception as error:  # noqa: BLE001  results are on disk
                self._error = error
        if self._error or self._stop.is_set():
            reason = f"{self._error}; the results" if self._error else "results that are not logged"
            _note(f"{reason} are kept, `tripath sync {self._sweep.folder}` logs them later")
        return None if self._error else self._tracked

    def _work(self) -> None:
        try:
            self._tracked = self._store.begin(self._sweep.record("RUNNING"), self._sweep.folder)
            while not self._stop.is_set() and (folder := self._folders.get()) is not None:
                self._store.log_folder(folder, self._tracked.run_id)
        except Exception as error:  # noqa: BLE001  results are on disk
            self._error = error


def _note(text: str) -> None:
    error_out.print(f"note: {' '.join(text.split())}", style="yellow")
