"""Runs the paths of a job, or the jobs of a sweep, as Ray tasks."""

import os
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar, cast

from npu.choices import check_choices, one_of, within
from npu.compiled import is_kept
from npu.errors import TripathError
from npu.program import Program
from npu.program.trace import Trace
from npu.sources import PACKAGES
from tripath.cluster.handlers import hold, kept_handler, release
from tripath.cluster.ray_calls import (
    QUIET,
    first_line,
    join_ray,
    lost_in_one_line,
    remote,
    start_ray,
    value_of,
)
from tripath.cluster.standing import STANDING
from tripath.experiment import Experiment
from tripath.paths import Fact
from tripath.paths import Path as PathRow
from tripath.run.job import files_of, outcome_of, prepare
from tripath.run.pipeline import INPUT_ERRORS, PathRun, rows_of, run_path, run_paths
from tripath.run.results import Cache, default_folder
from tripath.tracking.record import git_commit

CACHE_MODES = ("on", "off")
MOST_CPUS = 1 << 16
POLL_SECONDS, JOIN_SECONDS = 0.2, 60.0
"""So often running tasks are looked at, and so long a cluster may take to be joined."""
WORKER, MOST_WORKERS = "worker-{}", 3
"""Of a standing cluster: what other drivers find its warm workers by, and how many there are at most: one for each path."""
Kind = TypeVar("Kind")
Progress = Callable[[dict[str, str]], None]
"""Receives what each path is doing, several times a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Where tasks run, what a sweep's jobs take, and where results are kept.

    Attributes:
        address: An existing Ray cluster, `auto` or `HOST:PORT`; null: one of its own on this machine.
        num_cpus: Processors of its own cluster; null: all.
        job_cpus: Processors that a job takes.
        job_memory_bytes: Memory that a job is promised, so that Ray runs no more at once than fit; null: nothing is.
        in_flight: Tasks handed to Ray at a time; null: twice what can run at once. A task is a job; of analytical jobs that
            leave a row alone (`row_only`) up to eight.
        cache: off: every result is computed, and none kept.
        cache_folder: Folder of results; null: `$TRIPATH_CACHE`, else `tripath/run/results` below the user's cache folder.
        cache_limit_bytes: Once a command has computed results, those that were not used for longest are removed until no more
            bytes are kept; null: none is.
        sort_by: Metric of a sweep's table and picture, `-METRIC` for the largest first; null: the cost of the most exact
            path that ran.
        columns: Metrics that a sweep's table shows beside that one; none: the headlines of the paths.
        by_phase: A sweep also says what its jobs take in the transformer, the LM head, sampling and the host (by_phase.png).
    """

    address: str | None = None
    num_cpus: int | None = field(default=None, metadata=within(1, MOST_CPUS))
    job_cpus: int = field(default=1, metadata=within(1, MOST_CPUS))
    job_memory_bytes: int | None = field(default=None, metadata=within(1, 1 << 50))
    in_flight: int | None = field(default=None, metadata=within(1, 1 << 16))
    cache: str = field(default="on", metadata=one_of(CACHE_MODES))
    cache_folder: str | None = None
    cache_limit_bytes: int | None = field(default=None, metadata=within(1, 1 << 60))
    sort_by: str | None = None
    columns: Sequence[str] = ()
    by_phase: bool = False

    def __post_init__(self) -> None:
        check_choices("launch", self)
        if self.address is not None and self.num_cpus is not None:
            raise TripathError("launch.num_cpus: is a fact of the cluster where launch.address is given; leave it null")

    @property
    def results(self) -> Cache:
        """The cache of results that these settings name."""
        if self.cache == "off":
            return Cache(None)
        return Cache(default_folder() if self.cache_folder is None else Path(self.cache_folder).absolute())


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """`function(shared, *arguments)` in a worker; `shared` is what `prepare` returned, which runs once for each `key`; without
    `prepare`, `function(*arguments)`. It does `jobs` jobs of a sweep."""

    function: Callable[..., Any]
    arguments: Sequence[object]
    key: str = ""
    prepare: tuple[Callable[..., Any], Sequence[object]] | None = None
    jobs: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """The standing cluster that this process belongs to (tripath.command.cluster)."""

    address: str
    cpus: int
    token: str


joined: Joined | None = None
"""None: this process runs a command by itself."""


class NotJoinedError(BaseException):
    """A command of a standing cluster asks for another one, and must run by itself. No part of a command handles it."""


def _run_with_trace(*arguments: Any) -> tuple[PathRun, Trace | None]:  # noqa: ANN401  those of run_path
    """The run of a path, and its trace as a value of its own."""
    run = run_path(*arguments)
    return run, run.trace


def _compile_early(*arguments: Any) -> None:  # noqa: ANN401  those of run_path
    """Run a path for the code that it compiles."""
    with suppress(Exception):  # it will be run again, and say so then
        run_path(*arguments)


def _call_there(folder: str, path: Sequence[str], function: Callable[..., Any], *arguments: object) -> object:
    """`function(*arguments)` in the folder, and with the import path, of the driver."""
    os.chdir(folder)
    sys.path[:] = path
    git_commit.cache_clear()
    return function(*arguments)


class _Worker:
    """A warm worker of a standing cluster: it has run a job before, so libraries and compiled code are loaded."""

    def __init__(self, experiment: Experiment, default_prompt: str | None) -> None:
        prepared = prepare(experiment, default_prompt)
        runs = run_paths(prepared.program, experiment, prepared.token_ids, Cache(None))
        files_of(experiment, outcome_of(experiment, prepared, runs), "", "")

    def call(self, folder: str, path: Sequence[str], function: Callable[..., Any], *arguments: object) -> object:
        """`function(*arguments)` in the folder, and with the import path, of the driver."""
        return _call_there(folder, path, function, *arguments)


def hold_cluster(
    num_cpus: int | None, token: str, job: tuple[Experiment, str | None], ready: Callable[[str, int], None], until: int
) -> None:
    """Start Ray with warm workers, which have run `job`, an experiment and its prompt; end when the pipe `until` is closed.

    `ready` is told its address and its processors.
    """
    os.environ.update({**{key: os.environ.get(key, value) for key, value in QUIET.items()}, "RAY_AUTH_TOKEN": token})
    start_ray(num_cpus)
    import ray

    cpus = int(ray.cluster_resources()["CPU"])
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 2}
    made = [
        remote(_Worker, name=WORKER.format(number), **options).remote(*job) for number in range(min(cpus, MOST_WORKERS))
    ]
    ray.get([worker.call.remote(*_here(), len, "") for worker in made])  # each has run the job
    ready(ray.get_runtime_context().gcs_address, cpus)
    os.read(until, 1)
    ray.shutdown()


class Cluster:
    """A Ray cluster: started or joined in the background when made; one serves all jobs of a multirun.

    Raises:
        NotJoinedError: this process belongs to a standing cluster, and `launch` asks for another.
    """

    def __init__(self, launch: Launch) -> None:
        if joined is not None and (launch.address is not None or launch.num_cpus not in {None, joined.cpus}):
            raise NotJoinedError
        self._launch = launch
        self._error: Exception | None = None
        self._ready, self._closing = threading.Event(), threading.Event()
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
        self._thread = threading.Thread(target=self._live, daemon=True)
        hold()
        self._thread.start()

    def _live(self) -> None:
        """Start Ray, and stay: the kernel kills Ray's processes when the thread that started them ends."""
        try:
            with kept_handler():
                self._start()
        except Exception as error:  # noqa: BLE001  raised again where the cluster is needed
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        self._closing.wait()
        import ray

        with kept_handler(), suppress(Exception):  # it may have ended before
            ray.shutdown()

    def _start(self) -> None:
        address = self._launch.address
        if joined is not None:
            os.environ |= {**STANDING, "RAY_AUTH_TOKEN": joined.token}
            address = joined.address
        elif address is None:  # Ray would write a token to the user's home, which a container may lack
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        if address is None:
            start_ray(self._launch.num_cpus)
            return
        join_ray(address)

    def run(
        self, program: Program | None, experiment: Experiment, prompts: Sequence[Sequence[int]], progress: Progress
    ) -> dict[str, PathRun]:
        """Run the paths of `experiment` side by side; the program goes to the object store once.

        Who needs a trace starts at once, on the workload's schedule, or where another path gives a trace, when it has.

        Raises:
            TripathError: the cluster cannot be reached, or a simulator refuses its input.
        """
        rows, giver = rows_of(experiment), experiment.trace_giver
        progress(dict.fromkeys((row.name for row in rows), "waits for Ray"))
        self._wait()
        import ray

        shared, cache = [ray.put(program), ray.put(experiment), prompts], self._launch.results
        task = remote(_run_with_trace, num_cpus=1, num_returns=2)
        trace = scheduled = ray.put(experiment.schedule(prompts, program))
        pending: dict[str, ray.ObjectRef] = {}
        used: dict[str, Any] = {}
        for row in rows:
            arguments = (row.name, *shared, trace if Fact.TRACE in row.needs else None, cache)
            if joined is not None and row.module.partition(".")[0] in PACKAGES:  # a user's own module may have changed
                used[row.name] = _warm_worker(len(used))
                references = used[row.name].call.options(num_returns=2).remote(*_here(), _run_with_trace, *arguments)
            else:
                references = task.remote(*arguments)
            if giver and row.name != giver and Fact.TRACE in row.needs and self._compiles_early(row):
                remote(_compile_early, num_cpus=1).remote(row.name, *shared, scheduled, Cache(None))
            pending[row.name], own = cast("Sequence[ray.ObjectRef]", references)
            trace = own if row.name == giver else trace
        waits = dict.fromkeys((row.name for row in rows if giver and Fact.TRACE in row.needs), giver)
        try:
            with lost_in_one_line():
                return _collect(pending, waits, progress)
        except BaseException:
            done, _ = ray.wait(list(pending.values()), num_returns=len(pending), timeout=0)
            for name, worker in used.items():  # what a worker runs cannot be cancelled; it starts anew
                if pending[name] not in done and (waits.get(name) is None or pending[cast("str", giver)] in done):
                    ray.kill(worker, no_restart=False)
            raise

    def _compiles_early(self, row: PathRow) -> bool:
        """True if a path that waits for a trace may compile its code meanwhile: it is one of the project's, its code
        is not kept yet, and the cluster is this command's own and has more than one processor."""
        import ray

        package = row.module.partition(".")[0]
        own = joined is None and self._launch.address is None and package in PACKAGES
        return own and ray.cluster_resources()["CPU"] > 1 and not is_kept(package)

    def do(self, function: Callable[..., Kind], *arguments: object) -> Kind:
        """`function(*arguments)`: in a worker of the standing cluster, which has its libraries loaded, else here.

        Raises:
            TripathError: the cluster is lost.
        """
        if joined is None:
            return function(*arguments)
        self._wait()
        with lost_in_one_line():
            found = value_of(_warm_worker(0).call.remote(*_here(), function, *arguments))
        if isinstance(found, Exception):
            raise found
        return cast("Kind", found)

    def each(self, tasks: Iterable[Task], show: Callable[[int], None]) -> Iterator[tuple[Task, object]]:
        """Run tasks as the cluster has room; yields each when it ends, with what it returned, or its error.

        `show` is called several times a second with the number of jobs that were handed to Ray. Tasks are drawn from
        `tasks` while Ray starts, then only as there is room.

        Raises:
            TripathError: the cluster cannot be reached, or is lost.
        """
        more, ahead = iter(tasks), deque[Task]()
        for task in more:
            ahead.append(task)
            if self._ready.is_set():
                break
        if not ahead:
            return
        self._wait()
        with lost_in_one_line():
            yield from self._each(chain(ahead, more), show)

    def _each(self, tasks: Iterator[Task], show: Callable[[int], None]) -> Iterator[tuple[Task, object]]:
        import ray

        launch = self._launch
        _check_room(launch, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        room = launch.in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)) // launch.job_cpus)
        resources: dict[str, Any] = {"num_cpus": launch.job_cpus, "memory": launch.job_memory_bytes}
        shared: dict[str, ray.ObjectRef] = {}
        running: dict[ray.ObjectRef, Task] = {}
        once = lru_cache(remote)  # Ray sends each anew to its workers

        def start(function: Callable[..., Any], arguments: Sequence[object], **asked: Any) -> Any:  # noqa: ANN401  a reference
            """Hand a function to Ray; the standing cluster's tasks begin in the folder of the keeper, not of this command."""
            if joined is None:
                return once(function, **asked).remote(*arguments)
            return once(_call_there, **asked).remote(*_here(), function, *arguments)

        try:
            while True:
                for task in islice(tasks, room - len(running)):
                    first: list[object] = []
                    if task.prepare is not None:
                        prepare, arguments = task.prepare
                        if task.key not in shared:
                            shared[task.key] = start(prepare, arguments, num_cpus=1)
                        first = [shared[task.key]]
                    running[start(task.function, [*first, *task.arguments], **resources)] = task
                    show(sum(task.jobs for task in running.values()))
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                show(sum(task.jobs for task in running.values()))
                for reference in done:
                    yield running.pop(reference), value_of(reference)
        finally:
            if launch.address is not None:  # a cluster of its own ends with its tasks
                for reference in running:  # not by force: of a task that is just ending, that would abort this process
                    ray.cancel(reference)

    def _wait(self) -> None:
        address = self._launch.address
        if not self._ready.wait(None if address is None else JOIN_SECONDS):
            raise TripathError(f"launch.address: no Ray cluster at {address} (no answer in {JOIN_SECONDS:.0f} s)")
        release()
        if self._error is not None:
            what = "launch: Ray does not start" if address is None else f"launch.address: no Ray cluster at {address}"
            raise TripathError(f"{what} ({first_line(self._error)})")

    def leave(self) -> None:
        """Begin to close: nothing more is run."""
        hold()
        self._closing.set()

    def close(self) -> None:
        """Shut a cluster of our own down; leave another's."""
        self.leave()
        if self._launch.address is None or self._ready.is_set():  # else it waits for another's that may never answer
            self._thread.join()
        release()


def _warm_worker(number: int) -> Any:  # noqa: ANN401  Ray makes its class as it runs
    """A worker of the standing cluster."""
    import ray

    assert joined is not None
    return ray.get_actor(WORKER.format(number % min(joined.cpus, MOST_WORKERS)))


def _here() -> tuple[str, list[str]]:
    """Folder and import path of this driver."""
    return os.getcwd(), sys.path  # noqa: PTH109


def _check_room(launch: Launch, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse jobs that no node has room for: Ray would wait for one that does.

    Raises:
        TripathError: naming what is asked for, and what the largest node has.
    """
    asked = {"job_cpus": ("CPU", launch.job_cpus), "job_memory_bytes": ("memory", launch.job_memory_bytes or 0)}
    for key, (resource, wanted) in asked.items():
        largest = max((node.get(resource, 0) for node in nodes), default=0)
        if wanted > largest:
            raise TripathError(f"launch.{key}: no node of the cluster has so much, {wanted} of at most {largest:.0f}")


def _collect(pending: Mapping[str, Any], waits: Mapping[str, str | None], progress: Progress) -> dict[str, PathRun]:
    """Wait for all tasks; the first error ends the others. `waits` names the path whose trace one waits for."""
    import ray

    values: dict[str, PathRun] = {}
    left = dict(pending)
    while left:
        progress({name: _state(name, waits.get(name), values) for name in pending})
        done, _ = ray.wait(list(left.values()), num_returns=1, timeout=POLL_SECONDS)
        for name in [name for name, reference in left.items() if reference in done]:
            value = value_of(left.pop(name))
            if isinstance(value, Exception):
                for reference in left.values():
                    ray.cancel(reference)
                if isinstance(value, INPUT_ERRORS):
                    raise TripathError(str(value)) from None
                raise value
            values[name] = cast("PathRun", value)
    progress({name: _state(name, waits.get(name), values) for name in pending})
    return {name: values[name] for name in pending}


def _state(name: str, giver: str | None, values: Mapping[str, PathRun]) -> str:
    if name in values:
        return "done, from the cache" if values[name].cached else f"done in {values[name].wall_seconds:.1f} s"
    if giver is not None and giver not in values:
        return f"waits for {giver}'s trace"
    return "runs"
