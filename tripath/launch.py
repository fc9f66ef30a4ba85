"""Runs the simulators as Ray tasks on one program."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence

from tripath.compiler import schedule
from tripath.errors import TripathError
from tripath.experiment import Experiment
from tripath.metrics import Result
from tripath.program import Program
from tripath.trace import Trace

OBJECT_STORE_BYTES = 256 * 1024 * 1024
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}  # fmt: skip
POLL_SECONDS = 0.1


def _analytical(program: Program, experiment: Experiment, trace: Trace) -> tuple[Result, float]:
    import analytical

    began = time.perf_counter()
    result = analytical.simulate(program, hardware=experiment.hardware, trace=trace)
    return result, time.perf_counter() - began


def _cycle(program: Program, experiment: Experiment, trace: Trace) -> tuple[Result, float]:
    import cycle

    began = time.perf_counter()
    options = experiment.options.get("cycle", {})
    result = cycle.simulate(program, hardware=experiment.hardware, trace=trace, **options)
    return result, time.perf_counter() - began


def _accuracy(program: Program, experiment: Experiment, prompts: Sequence[Sequence[int]]):  # noqa: ANN202
    import accuracy

    began = time.perf_counter()
    outcome = accuracy.simulate(program, model=experiment.model, workload=experiment.workload, prompts=prompts)
    return (outcome, time.perf_counter() - began), outcome.trace


class Cluster:
    """A Ray cluster: started in the background when made, joined when it is first needed, left on `close`."""

    def __init__(self, *, address: str | None, num_cpus: int | None) -> None:
        self._error: Exception | None = None
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
        self._ready, self._over = threading.Event(), threading.Event()
        # Ray's processes die with the thread that started them (PR_SET_PDEATHSIG), so it lives until `close`.
        self._thread = threading.Thread(target=self._start, args=(address, num_cpus), daemon=True)
        self._thread.start()

    def _start(self, address: str | None, num_cpus: int | None) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import ray

                options: dict = {} if address else {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES}
                ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False,
                         logging_level=logging.ERROR, configure_logging=True, **options)  # fmt: skip
        except Exception as error:
            self._error = error
        self._ready.set()
        self._over.wait()

    def run(
        self, program: Program, experiment: Experiment, prompts: Sequence[Sequence[int]],
        progress: Callable[[dict[str, str]], None],
    ) -> tuple[dict[str, Result], dict[str, float], object | None]:  # fmt: skip
        """Results and wall seconds by simulator, and the outcome of accuracy if it ran.

        The timing paths start when the trace is there: at once without accuracy (the workload's schedule), else when
        accuracy has recorded it. `progress` receives the state of each path, several times a second.

        Raises:
            TripathError: the cluster cannot be reached, or a simulator refused its input.
        """
        progress(dict.fromkeys(experiment.paths, "waits for Ray"))
        self._ready.wait()
        if self._error is not None:
            raise TripathError(f"launch.address: no Ray cluster ({str(self._error).splitlines()[0]})")
        import ray

        shared, inputs = ray.put(program), ray.put(experiment)
        pending: dict[str, ray.ObjectRef] = {}
        trace = None
        if "accuracy" in experiment.paths:
            task = ray.remote(num_cpus=1, num_returns=2)(_accuracy)
            pending["accuracy"], trace = task.remote(shared, inputs, prompts)
        else:
            trace = ray.put(schedule(experiment.workload))
        for name, function in (("analytical", _analytical), ("cycle", _cycle)):
            if name in experiment.paths:
                pending[name] = ray.remote(num_cpus=1)(function).remote(shared, inputs, trace)
        return self._collect(pending, progress)

    def _collect(
        self, pending: dict, progress: Callable[[dict[str, str]], None]
    ) -> tuple[dict[str, Result], dict[str, float], object | None]:
        import ray

        results: dict[str, Result] = {}
        seconds: dict[str, float] = {}
        outcome = None
        state = dict.fromkeys(pending, "runs")
        left = dict(pending)
        while left:
            done, _ = ray.wait(list(left.values()), num_returns=1, timeout=POLL_SECONDS)
            for name in [name for name, reference in left.items() if reference in done]:
                try:
                    value, seconds[name] = ray.get(left.pop(name))
                except ray.exceptions.RayTaskError as error:
                    cause = error.as_instanceof_cause()
                    if isinstance(cause, TripathError):
                        raise TripathError(str(error.cause)) from None
                    raise
                if name == "accuracy":
                    outcome, results[name] = value, value.result
                else:
                    results[name] = value
                state[name] = f"done in {seconds[name]:.1f} s"
            progress(state)
        return results, seconds, outcome

    def close(self) -> None:
        """Shut a cluster of our own down; leave another's."""
        self._ready.wait()
        import ray

        ray.shutdown()
        self._over.set()
