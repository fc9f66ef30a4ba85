"""The command line: Hydra composes a configuration, this builds the experiment, runs it and prints what came out."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from npu.errors import NotInstalledError, TripathError, print_error
from npu.files import make_exclusively
from tripath.command.arguments import quoted, read_flags, shell_line, values_of
from tripath.command.composition import (
    INPUT_ERRORS,
    Composer,
    build,
    build_experiment,
    one_line,
    resolve,
    to_yaml,
)
from tripath.command.interruption import hold_interruptions, interruptible, unwrapped
from tripath.command.sources import take_files

if TYPE_CHECKING:
    from tripath.cluster.launch import Cluster, Launch
    from tripath.command.composition import Values
    from tripath.run.job import Job
    from tripath.sweeps.multirun import Sweep
    from tripath.tracking.store import Store, Tracking

PASSED, FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 3, 130
ROW_ONLY = "row_only=true"
WIDTH_WITHOUT_TERMINAL = "120"


def run() -> int:
    """Run the command line; returns the exit status, the worst one of a multirun."""
    _open_streams()
    with interruptible():
        return _run()


def _open_streams() -> None:
    """Have a standard output and error where the caller closed them, and let each take any character."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run() -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback of its own
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", WIDTH_WITHOUT_TERMINAL)  # tables in a log need not fit a small screen
    _command.forget()
    try:
        with unwrapped():
            _command.flags = read_flags()
            take_files()
            _main()
            _command.end_sweep(whole=True)
            _command.close()
    except KeyboardInterrupt:
        hold_interruptions()
        with contextlib.suppress(Exception):  # the same signal may have ended the cluster or a server
            _command.end_sweep(whole=False)
        with contextlib.suppress(Exception):
            _command.close()
        _command.abandon_store()
        print_error("interrupted")
        return INTERRUPTED
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
    ) as error:  # Hydra refuses combinations of its own flags with ValueError
        print_error(one_line(error))
        return BAD_INPUT
    except OSError as error:  # of the jobs' own none comes here
        folder = "hydra.sweep.dir" if {"--multirun", "-m"} & set(sys.argv) else "hydra.run.dir"
        print_error(f"{folder}: cannot write {error.filename or 'there'} ({error.strerror or error})")
        return BAD_INPUT
    except Exception:  # noqa: BLE001  a defect of ours has a status of its own
        traceback.print_exc()
        return INTERNAL_ERROR
    finally:
        _command.end_sweep(whole=False)
        _command.close()
        _command.tidy_folder()
    return max(_command.statuses, default=PASSED)


class _Command:
    """State shared by the jobs of one command: exit statuses, folders made by Hydra, a Ray cluster, a tracking store. For a
    sweep, also its settings, the composer of its jobs, and the axes that count as swept even if all jobs have one value."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._folder: Path | None = None
        self._made: list[Path] = []
        self._before: set[Path] = set()
        self._cluster: tuple[Launch, Cluster] | None = None
        self._store: tuple[Tracking, Store] | None = None
        self._sweep: Sweep | None = None
        self._composer: Composer | None = None
        self.shared: tuple[Launch, Tracking, str | None] | None = None
        self.axes: Mapping[str, Sequence[str]] = {}
        self.flags: Sequence[str] = []

    def forget(self) -> None:
        """Begin anew: a process may run several commands, each in a folder of its own."""
        self.statuses.clear()
        self._store = self._sweep = self._composer = self.shared = None
        self.axes = {}

    def sweep(self, config: DictConfig) -> "Sweep":
        """The sweep of this command."""
        from tripath.sweeps.multirun import Sweep

        if self._sweep is None:
            own = [each for each in config.hydra.overrides.hydra if each.startswith("hydra.sweeper.")]
            command = shell_line("--multirun", *self.flags, *config.hydra.overrides.task, *own)
            self._sweep = Sweep(folder=Path(config.hydra.sweep.dir).absolute(), command=command)
        return self._sweep

    def end_sweep(self, *, whole: bool) -> None:
        """End the sweep, where there is one that has not ended; one that is interrupted while it ends can be ended again."""
        if self._sweep is not None:
            try:
                with unwrapped():
                    self._sweep.end(whole=whole)
            except Exception:
                self._sweep = None
                raise
            self.statuses.append(self._sweep.status)
            self._sweep = None

    def composer(self, loader: ConfigLoader, config: DictConfig) -> "Composer":
        """The composer of the sweep's jobs."""
        self._composer = self._composer or Composer(loader, config)
        return self._composer

    def cluster(self, launch: "Launch") -> "Cluster":
        """The cluster, starting in the background where it is new."""
        from tripath.cluster.launch import Cluster

        if self._cluster is None or self._cluster[0] != launch:
            self.close()
            self._cluster = launch, Cluster(launch)
        return self._cluster[1]

    def store(self, tracking: "Tracking") -> "Store | None":
        """The store, opening in the background where it is new; None where nothing is tracked."""
        from tripath.tracking.store import Store

        if not tracking.enabled:
            return None
        if self._store is None or self._store[0] != tracking:
            self._store = tracking, Store(tracking)
        return self._store[1]

    def abandon_store(self) -> None:
        """Remove what the store has only begun to make."""
        if self._store is not None:
            self._store[1].abandon()

    def close(self) -> None:
        """Leave the cluster, and keep the cache of what it computed within its limit."""
        if self._cluster is not None:
            launch, cluster = self._cluster
            cluster.close()
            self._cluster = None
            launch.results.prune(launch.cache_limit_bytes)

    def take_folder(self, config: DictConfig, kind: str) -> None:
        """Note what is there before Hydra makes the folder of a `run` or `sweep`. Unless the user names it, it is made here, so
        that no other command has the same."""
        key, folder = f"hydra.{kind}.dir", Path(config.hydra[kind].dir).absolute()
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._folder, self._before = folder, set(folder.iterdir()) if folder.is_dir() else set()
        if any(override.startswith(f"{key}=") for override in config.hydra.overrides.hydra):
            return
        own = make_exclusively(folder)
        if own != folder:
            self._folder, self._before, self._made = own, set(), [own, *self._made]
        with read_write(config), open_dict(config):
            config.hydra[kind].dir = str(own)
            config.hydra.overrides.hydra.append(
                quoted(key, str(own))
            )  # the jobs of a sweep are composed of these again

    def tidy_folder(self) -> None:
        """Remove what Hydra made and nothing was written to."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in set(self._folder.iterdir()) - self._before:
            _remove_if_empty(path)
        record = self._folder / "multirun.yaml"
        if record not in self._before and list(self._folder.iterdir()) == [record]:
            record.unlink()
        for path in self._made:
            _remove_if_empty(path)


_command = _Command()


class TakeFolder(Callback):
    """The Hydra callback of conf/config.yaml: it runs before Hydra makes a folder."""

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Take a folder for a run."""
        _command.take_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Take a folder for a sweep."""
        _command.take_folder(config, "sweep")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _main(config: DictConfig) -> None:
    """One job. It returns whatever happens: an exception or an exit would end a sweep."""
    try:
        with unwrapped():
            status = _job(config, Path(HydraConfig.get().runtime.output_dir))
    except INPUT_ERRORS as error:
        print_error(f"job {HydraConfig.get().job.num}: {one_line(error)}" if _in_sweep() else one_line(error))
        status = BAD_INPUT
    except Exception:  # noqa: BLE001  a defect of ours has a status of its own
        traceback.print_exc()
        status = INTERNAL_ERROR
    _command.statuses.append(status)


def _job(config: DictConfig, folder: Path) -> int:
    """Everything between a configuration and its exit status."""
    experiment, default_prompt = build_experiment(config)
    if config.validation.get("baseline"):
        raise TripathError("validation.baseline: is that of a sweep, add --multirun (with hydra/launcher=cluster)")
    from tripath.cluster.launch import Launch, joined
    from tripath.tracking.store import Tracking

    launch, tracking = build(Launch, "launch", config.launch), build(Tracking, "tracking", config.tracking)
    from tripath.report.console import error_out, out, print_outcome, progress
    from tripath.report.drawing import load
    from tripath.run.job import files_of, keep_files, outcome_of, prepare
    from tripath.run.pipeline import known_runs

    with progress() as show:
        prepared = prepare(experiment, default_prompt, launch.results, show)
    if prepared.prompts and prepared.prompts.unknown_words:
        words = ", ".join(prepared.prompts.unknown_words[:8])
        error_out.print(f"note: the model's vocabulary lacks: {words}", style="yellow")
    store = _command.store(tracking)
    program, tokens = prepared.program, prepared.token_ids
    runs = known_runs(program, experiment, tokens, launch.results)
    # The input is good. Compiling takes milliseconds, so the slow start begins only now: bad input stays quick.
    cluster = _command.cluster(launch) if runs is None or joined is not None else None
    if _in_sweep():
        out.rule(f"job {HydraConfig.get().job.num}: {' '.join(_overrides())}")
    with progress() as show:
        if cluster is not None and runs is None:
            load()  # while Ray starts
            runs = cluster.run(program, experiment, tokens, show)
        if cluster is not None and joined is None and not _in_sweep():
            cluster.leave()  # its end takes a second, beside what follows
        outcome = outcome_of(experiment, prepared, runs or {}, show)
        if store:
            show({"mlflow": "opens the store"})
            store.wait()
        show({"report": "is written"})
        configuration, command = (
            OmegaConf.to_yaml(config, resolve=True),
            shell_line(*_command.flags, *_overrides()),
        )
        given = experiment, outcome, configuration, command
        files = files_of(*given) if cluster is None else cluster.do(files_of, *given)
        try:
            keep_files(folder, files)
        except OSError as error:  # the results are in the cache
            raise TripathError(f"hydra.run.dir: cannot write {folder} ({error.strerror})") from None
        tracked = None
        if store:
            show({"mlflow": "writes the run"})
            try:
                with unwrapped():
                    tracked = store.log_run(folder)
            except TripathError as error:  # the results are on disk already
                later = f"the results are kept, `tripath sync {folder}` logs them later"
                error_out.print(f"note: {error}; {later}", style="yellow")
    print_outcome(experiment, outcome, tracked, str(folder))
    return PASSED if outcome.status == "passed" else FAILED


def run_jobs(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Run a batch of jobs, which `job_overrides` make of the master `config`; all batches of a command are one sweep."""
    from tripath.sweeps.baseline import read_baseline

    sweep = _command.sweep(config)
    values = [values_of(overrides) for overrides in job_overrides]
    keys = dict.fromkeys(key for row in values for key in row)
    differ = [key for key in keys if key in _command.axes or len({row.get(key) for row in values}) > 1]
    numbers = range(first, first + len(values))
    sweep.swept |= {
        number: {k: row[k] for k in differ if k in row} for number, row in zip(numbers, values, strict=True)
    }
    sweep.commands |= {number: _alone(overrides) for number, overrides in zip(numbers, job_overrides, strict=True)}
    compose = _command.composer(loader, config)

    def jobs() -> "Iterator[Job]":
        for number, overrides in zip(numbers, job_overrides, strict=True):
            try:
                with unwrapped():
                    job, settings = _job_of(*compose(number, overrides), number, overrides, sweep.swept[number])
                if settings != (_command.shared or settings):
                    raise TripathError("launch, tracking, validation.baseline: are the same for all jobs of a sweep")
            except NotInstalledError:  # no job of this sweep will find it
                raise
            except INPUT_ERRORS as error:
                sweep.refuse(number, one_line(error))
            else:
                _command.shared = settings
                yield job

    composed = jobs()
    head = next(composed, None)
    if head is not None and _command.shared is not None:
        launch, tracking, baseline = _command.shared
        if sweep.launch is None:
            sweep.baseline = None if baseline is None else read_baseline(baseline)
        cluster = _command.cluster(launch)
        if sweep.launch is None:
            sweep.launch, sweep.store = launch, _command.store(tracking)
            if sweep.store:
                sweep.store.wait()
        sweep.run(chain([head], composed), cluster)
    return [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in numbers]


def run_search(
    launcher: Launcher, config: DictConfig, arguments: Sequence[str], settings: Mapping[str, object]
) -> None:
    """Search a space of designs: what `arguments` sweep are its axes, the rest is the same for all.

    Raises:
        TripathError: a setting breaks a rule, or no axis is swept.
    """
    parsed = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(list(arguments))}
    axes = {
        key: [*map(str, override.sweep_string_iterator())]
        for key, override in parsed.items()
        if override.is_sweep_override()
    }
    fixed = [str(override.input_line) for key, override in parsed.items() if key not in axes]
    chosen = values_of(fixed).get("numerics", str(config.hydra.runtime.choices.get("numerics", "")))
    own = {"quality": resolve(settings.get("quality")), "numerics": chosen}
    from tripath.sweeps.search import Search

    search = build(Search, "hydra.sweeper.search", OmegaConf.create({**settings, **own}))
    sweep, done = _command.sweep(config), 0
    sweep.extra, _command.axes = search, axes
    for batch in search.batches(axes, sweep.rows):
        last = search.confirm if batch.confirms else [ROW_ONLY]
        jobs = [[*(f"{key}={value}" for key, value in choice.items()), *fixed, *last] for choice in batch.designs]
        launcher.launch(jobs, initial_job_idx=done)
        done += len(jobs)


def _alone(overrides: Sequence[str]) -> str:
    """The command that runs a job of a sweep alone."""
    return shell_line(*_command.flags, *(each for each in overrides if each != ROW_ONLY))


def _job_of(
    values: "Values", folder: Path, number: int, overrides: Sequence[str], swept: Mapping[str, str]
) -> "tuple[Job, tuple[Launch, Tracking, str | None]]":
    """A job of a sweep, and the settings that all its jobs share."""
    from tripath.cluster.launch import Launch
    from tripath.run.job import Job
    from tripath.sweeps.summary import name_of
    from tripath.tracking.store import Tracking

    experiment, default_prompt = build_experiment(values)
    row_only = bool(values.get("row_only"))
    job = Job(
        number=number, name=name_of(swept) or f"job {number}", folder=folder,
        experiment=experiment, default_prompt=default_prompt,
        configuration="" if row_only else to_yaml(values),
        command=_alone(overrides), row_only=row_only,
    )  # fmt: skip
    shared = (
        build(Launch, "launch", values["launch"]),
        build(Tracking, "tracking", values["tracking"]),
        values["validation"].get("baseline"),
    )
    return job, shared


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task)
