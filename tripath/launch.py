"""Runs the simulators as Ray tasks on one program."""

import importlib
import inspect
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from tripath.compiler import schedule
from tripath.errors import TripathError
from tripath.experiment import Experiment
from tripath.metrics import Result
from tripath.program import Program
from tripath.trace import Trace

TIMING_PATHS = ("analytical", "cycle")
OBJECT_STORE_BYTES = 256 * 1024 * 1024
POLL_SECONDS = 0.2
REACH_SECONDS = 5.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_enable_metrics_collection": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # a failed task has several results, of which one is asked for its error
}  # fmt: skip
"""Settings of Ray that keep its notices off the user's screen; what the user has set stands."""

AUTHENTICATION = "it wants Ray's token, or another than this user's: set RAY_AUTH_MODE=token"
"""Ray sends its token to an address that a user names only where told to."""

Progress = Callable[[dict[str, str]], None]
"""Receives what each path is doing, several times a second."""


class AccuracyOutcome(Protocol):
    """What the accuracy path hands back (accuracy.AccuracyOutcome), as far as it is used here."""

    result: Result
    trace: Trace
    token_ids: list[list[int]]
    trip_counts: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Where tasks run.

    `address` of an existing Ray cluster (`auto`, `HOST:PORT`), or None for one on this machine with `num_cpus`
    processors (None: all that Ray finds).
    """

    address: str | None = None
    num_cpus: int | None = None

    def __post_init__(self) -> None:
        cpus = self.num_cpus
        if cpus is not None and (isinstance(cpus, bool) or not isinstance(cpus, int) or cpus < 1):
            raise TripathError(f"launch.num_cpus: must be an integer of at least 1, got {cpus!r}")
        if self.address is not None and not isinstance(self.address, str):
            raise TripathError(f"launch.address: must be auto or HOST:PORT, got {self.address!r}")
        if self.address is not None and cpus is not None:
            raise TripathError("launch.num_cpus: is a fact of the cluster where launch.address is given; leave it null")


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """Results and wall seconds by path, and what accuracy generated if it ran."""

    results: Mapping[str, Result]
    wall_seconds: Mapping[str, float]
    accuracy: AccuracyOutcome | None


def simulate_timing(name: str, program: Program, experiment: Experiment, trace: Trace) -> tuple[Result, float]:
    """Result and wall seconds of a path that knows time and no values. Runs in a worker."""
    inputs = {"hardware": experiment.hardware, "trace": trace, "technology": experiment.technology}
    return _timed(name, program, experiment, **inputs)


def simulate_accuracy(
    program: Program, experiment: Experiment, prompts: Sequence[Sequence[int]]
) -> tuple[tuple[AccuracyOutcome, float], Trace]:
    """Outcome and wall seconds of the accuracy path, and its trace as a value of its own. Runs in a worker."""
    outcome, seconds = _timed(
        "accuracy", program, experiment, model=experiment.model, workload=experiment.workload, prompts=prompts
    )
    return (outcome, seconds), outcome.trace


def _timed(name: str, program: Program, experiment: Experiment, **inputs: object) -> tuple[Any, float]:
    began = time.perf_counter()
    simulate = importlib.import_module(name).simulate
    options = experiment.options.get(name) or {}
    for option in options:
        if option in inputs or option not in inspect.signature(simulate).parameters:
            raise TripathError(f"simulator.{name}: unknown option {option!r}")
    outcome = simulate(program, **inputs, **options)
    return outcome, time.perf_counter() - began


class Cluster:
    """A Ray cluster: started or joined in the background when made; one serves all jobs of a multirun."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._error: Exception | None = None
        self._ready, self._closing = threading.Event(), threading.Event()
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        """Start Ray, and stay: the kernel kills Ray's processes when the thread that started them ends."""
        try:
            self._start()
        except Exception as error:  # noqa: BLE001  raised again where the cluster is needed
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        self._closing.wait()
        import ray

        ray.shutdown()

    def _start(self) -> None:
        address = self._launch.address
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if address is None:  # "local" starts a cluster even where RAY_ADDRESS names another
                ray.init(address="local", include_dashboard=False, num_cpus=self._launch.num_cpus,
                         object_store_memory=OBJECT_STORE_BYTES, **quiet)  # fmt: skip
                return
            _reach(address)
            with _captured_stderr() as complaints:
                try:
                    ray.init(address=address, **quiet)
                except Exception as error:
                    if "AuthToken" in f"{error}{complaints()}":
                        raise TripathError(AUTHENTICATION) from None
                    raise

    def run(
        self, program: Program, experiment: Experiment, prompts: Sequence[Sequence[int]], progress: Progress
    ) -> Simulated:
        """Run the paths of `experiment`; the program goes to the object store once.

        The timing paths start at once where accuracy does not run, on the workload's schedule; else when accuracy has
        recorded the trace.

        Raises:
            TripathError: the cluster cannot be reached, or a simulator refuses its input.
        """
        progress(dict.fromkeys(experiment.paths, "waits for Ray"))
        self._ready.wait()
        if self._error is not None:
            raise TripathError(f"launch.address: no Ray cluster at {self._launch.address} ({_first_line(self._error)})")
        import ray

        shared, inputs = ray.put(program), ray.put(experiment)
        pending: dict[str, ray.ObjectRef] = {}
        if "accuracy" in experiment.paths:
            task = ray.remote(num_cpus=1, num_returns=2)(simulate_accuracy)
            pending["accuracy"], trace = cast("Sequence[ray.ObjectRef]", task.remote(shared, inputs, prompts))
        else:
            trace = ray.put(schedule(experiment.workload))
        for name in experiment.paths:
            if name in TIMING_PATHS:
                pending[name] = ray.remote(num_cpus=1)(simulate_timing).remote(name, shared, inputs, trace)
        return _collect({name: pending[name] for name in experiment.paths}, progress)

    def close(self) -> None:
        """Shut a cluster of our own down; leave another's."""
        self._closing.set()
        self._thread.join()


def _collect(pending: Mapping[str, Any], progress: Progress) -> Simulated:
    """Wait for all tasks; the first error ends the others."""
    import ray
    from ray.exceptions import RayTaskError

    values: dict[str, tuple[Any, float]] = {}
    left = dict(pending)
    while left:
        progress({name: _state(name, pending, values) for name in pending})
        done, _ = ray.wait(list(left.values()), num_returns=1, timeout=POLL_SECONDS)
        for name in [name for name, reference in left.items() if reference in done]:
            try:
                values[name] = ray.get(left.pop(name))
            except RayTaskError as error:
                for reference in left.values():
                    ray.cancel(reference)
                cause = error.cause
                if isinstance(cause, TripathError):
                    raise TripathError(str(cause)) from None
                raise
    progress({name: _state(name, pending, values) for name in pending})
    outcome = values["accuracy"][0] if "accuracy" in values else None
    results = {name: value.result if name == "accuracy" else value for name, (value, _) in values.items()}
    return Simulated(
        results={name: results[name] for name in pending}, accuracy=outcome,
        wall_seconds={name: values[name][1] for name in pending},
    )  # fmt: skip


def _state(name: str, pending: Mapping[str, Any], values: Mapping[str, tuple[Any, float]]) -> str:
    if name in values:
        return f"done in {values[name][1]:.1f} s"
    if name != "accuracy" and "accuracy" in pending and "accuracy" not in values:
        return "waits for accuracy's trace"
    return "runs"


def _reach(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself would end the process after a minute."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise TripathError("must be auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Keep what Ray's native code writes to standard error off the screen; yields a function that reads it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
