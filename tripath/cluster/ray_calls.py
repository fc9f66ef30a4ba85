"""Ray as this project uses it: how it is started, joined, asked, and what becomes of its errors."""

import logging
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from npu.errors import TripathError
from tripath.cluster.standing import ON_THIS_MACHINE
from tripath.run.pipeline import INPUT_ERRORS

OBJECT_STORE_BYTES = 256 * 1024 * 1024
NAMESPACE = "tripath"
REACH_SECONDS = 5.0
"""So long an address may take to answer at all."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes from a client of HTTP/2, and so of gRPC, which Ray speaks. Its server answers with a SETTINGS frame."""
SETTINGS = 4
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 starves them on a machine that does anything else
    "RAY_task_oom_retries": "2",  # else a task that needs too much memory is tried for ever
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # a failed task has several results, of which one is asked for its error
}  # fmt: skip
"""Settings of Ray: no notices on the user's screen, and workers that get on; what the user has set stands."""

SILENT: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
AUTHENTICATION = "it wants Ray's token, or another than this user's: set RAY_AUTH_MODE=token"
"""Ray sends its token to an address that a user names only where told to."""


class WorkerLostError(RuntimeError):
    """A task's worker died, again and again."""


def start_ray(num_cpus: int | None) -> None:
    """Start a cluster on this machine, which ends with this thread; "local" does so even where RAY_ADDRESS names another."""
    os.environ.update({key: os.environ.get(key, value) for key, value in ON_THIS_MACHINE.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        ray.init(address="local", include_dashboard=False, num_cpus=num_cpus, object_store_memory=OBJECT_STORE_BYTES,
                 namespace=NAMESPACE, **SILENT)  # fmt: skip


def join_ray(address: str) -> None:
    """Join a cluster that another process started.

    Raises:
        TripathError: no Ray answers there, or it wants a token.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        reach(address)
        with _captured_stderr() as complaints:
            try:
                ray.init(address=address, namespace=NAMESPACE, **SILENT)
            except Exception as error:
                if "AuthToken" in f"{error}{complaints()}":
                    raise TripathError(AUTHENTICATION) from None
                raise


def remote(function: Callable[..., Any], **resources: Any) -> Any:  # noqa: ANN401  Ray makes its class as it runs
    """The function as a Ray task."""
    import ray

    return ray.remote(**resources)(function)


def value_of(reference: Any) -> object:  # noqa: ANN401  a reference of Ray
    """The value that a task returned, or the error that ended it."""
    import ray
    from ray import exceptions

    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, INPUT_ERRORS) else error
    except exceptions.OutOfMemoryError:
        return WorkerLostError("its worker ran out of memory; give launch.job_memory_bytes, or fewer launch.num_cpus")
    except (
        exceptions.WorkerCrashedError, exceptions.ObjectLostError, exceptions.NodeDiedError, exceptions.RayActorError,
    ) as error:  # fmt: skip
        return WorkerLostError(f"its worker died, also when tried again ({type(error).__name__}); out of memory?")


def reach(address: str) -> None:
    """Refuse an address at which no server speaks gRPC: Ray itself would try for minutes, or end the process."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise TripathError("must be auto or HOST:PORT")
    if not 0 < int(port) < 1 << 16:
        raise TripathError(f"a port must be from 1 to 65535, got {port}")
    with socket.create_connection((host, int(port)), timeout=REACH_SECONDS) as link:
        link.sendall(PREFACE)
        answer = link.recv(9)
    if answer[3:4] != bytes((SETTINGS,)):
        raise TripathError("what listens there is no Ray cluster; its port is 6379, 8265 is that of its dashboard")


@contextmanager
def lost_in_one_line() -> Iterator[None]:
    """Name a cluster that is lost.

    Raises:
        TripathError: it is.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:  # a defect of ours in a worker
        raise
    except (RayError, ConnectionError) as error:
        raise TripathError(f"launch.address: the Ray cluster is lost ({first_line(error)})") from None


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class name if the message is empty."""
    return (str(error) or type(error).__name__).splitlines()[0]
