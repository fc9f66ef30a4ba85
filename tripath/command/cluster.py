"""`tripath cluster start|stop|status`: a cluster that stands between commands.

The keeper is one process that loads every library and forks for each command, so a command pays for neither; its first fork
holds a Ray cluster with workers that are warm. Both are bound to this machine, and end after an idle time.
"""

import fcntl
import gc
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from npu.errors import Arguments, TripathError, print_error
from npu.sources import ROOT
from tripath.cluster import standing
from tripath.cluster.standing import LOCK, LOG, SOCKET, STATE, Standing

if TYPE_CHECKING:
    from tripath.experiment import Experiment

IDLE_MINUTES, MOST_IDLE_MINUTES = 30.0, 24 * 60.0
START_SECONDS, END_SECONDS = 300.0, 60.0
"""So long a start may take, the first one on a machine with the compilation of Numba, and an end."""
POLL_SECONDS = 0.5
ENDING = (signal.SIGINT, signal.SIGTERM)
LIBRARIES = (
    "hydra", "hydra._internal.hydra", "tripath.report.drawing", "matplotlib.backends.backend_agg", "mlflow", "numba", "ray",
    "perfetto", "rich.progress", "safetensors", "tokenizers", "mlflow.store.tracking.sqlalchemy_store", "tripath.cluster.launch",
    "tripath.command.cli", "tripath.command.comparisons", "tripath.report.run_report", "tripath.run.job",
    "tripath.tracking.store", "tripath.sweeps.summary", "tripath.sweeps.baseline",
)  # fmt: skip
"""Modules that the keeper loads. One that examines the screen when it is loaded is left out (tripath.report.console)."""


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath cluster ...`; the exit status."""
    parser = Arguments(
        prog="tripath cluster",
        description="Keep a Ray cluster and loaded libraries on this machine, so that a command starts at once. Commands of the "
        "same user find it by themselves while it runs their sources with their Python.",
    )
    parts = parser.add_subparsers(dest="part", required=True)
    start = parts.add_parser("start", help="start it, unless it stands", description="Start it, unless it stands.")
    start.add_argument(
        "--idle-minutes", type=float, default=IDLE_MINUTES,
        help="it ends itself when no command ran for so long (default: %(default)g)",
    )  # fmt: skip
    start.add_argument("--num-cpus", type=int, help="processors of the cluster (default: all)")
    parts.add_parser("stop", help="end it", description="End it, and commands that still run on it.")
    parts.add_parser("status", help="say whether it stands", description="Say whether it stands, and since when.")
    parts.add_parser("keep")  # what `start` starts
    try:
        given = parser.parse_args(list(arguments))
        if given.part == "start":
            return _start(given.idle_minutes, given.num_cpus)
        return {"stop": _stop, "status": _status, "keep": _keep}[given.part]()
    except TripathError as error:
        print_error(str(error))
    except OSError as error:
        print_error(f"cluster: {error.filename or standing.folder()} ({error.strerror or error})")
    return 2


def _start(idle_minutes: float, cpus: int | None) -> int:
    if not 0 < idle_minutes <= MOST_IDLE_MINUTES:
        raise TripathError(f"--idle-minutes: must be above 0 and at most {MOST_IDLE_MINUTES:.0f}, got {idle_minutes:g}")
    if cpus is not None and not 0 < cpus <= 1 << 16:
        raise TripathError(f"--num-cpus: must be from 1 to 65536, got {cpus}")
    if standing.standing() is not None:
        return _status()
    place = standing.folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / STATE).unlink(missing_ok=True)
    settings = json.dumps({"idle_seconds": idle_minutes * 60, "cpus": cpus})
    with (place / LOG).open("w") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tripath", "cluster", "keep"], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            start_new_session=True, cwd=ROOT,
        )  # fmt: skip
        assert keeper.stdin is not None
        keeper.stdin.write(settings)
        keeper.stdin.close()
    until = time.monotonic() + START_SECONDS
    while standing.standing() is None:
        if keeper.poll() is not None or time.monotonic() > until:
            _give_up(keeper)
            last = (place / LOG).read_text(errors="replace").strip().splitlines()[-1:]
            raise TripathError(f"cluster: does not start ({last[0] if last else 'no answer'}); see {place / LOG}")
        time.sleep(0.05)
    return _status()


def _give_up(keeper: subprocess.Popen[str]) -> None:
    """End a keeper that does not answer, and the Ray that it may have started: all of its session."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(keeper.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(END_SECONDS)


def _stop() -> int:
    found = standing.standing()
    if found is None:
        print("no cluster stands")
        return 0
    os.kill(found.pid, signal.SIGTERM)
    if not standing.ended(END_SECONDS):
        raise TripathError(f"cluster: process {found.pid} does not end in {END_SECONDS:.0f} s")
    print("the cluster has ended")
    return 0


def _status() -> int:
    found = standing.standing()
    if found is None:
        print("no cluster stands")
        return 0
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.began))
    print(
        f"a cluster of {found.cpus} processors stands since {since}: process {found.pid}, Ray at {found.address}; it ends "
        f"when idle for {found.idle_seconds / 60:g} minutes"
    )
    if other := found.unlike():
        print(f"this command has other {other}, and would not use it")
    return 0


@dataclass
class _Keeper:
    """The state of the keeper and its forks."""

    state: Standing
    listener: socket.socket
    head: int
    held: int
    """Where it is closed, the head ends."""
    token: str
    commands: set[int] = field(default_factory=set)
    ending: bool = False


def _keep() -> int:
    """Be the keeper, until the idle time is over or a signal comes."""
    settings = json.loads(sys.stdin.read())
    own = standing.kind()
    place = standing.folder()
    token = secrets.token_hex(32)
    os.environ |= {**standing.STANDING, "RAY_AUTH_TOKEN": token}
    for library in LIBRARIES:
        import_module(library)
    from tripath.command.composition import build_experiment, compose_values
    from tripath.command.sources import take_files
    from tripath.run.job import prepare
    from tripath.run.pipeline import known_runs
    from tripath.run.results import Cache

    take_files()
    job = build_experiment(compose_values())
    prepared = prepare(*job)
    known_runs(prepared.program, job[0], prepared.token_ids, Cache(None))  # digests of sources are known from now on
    head, held, (address, cpus) = _fork_head(settings["cpus"], token, job)
    (place / SOCKET).unlink(missing_ok=True)
    with (place / LOCK).open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        listener.bind(str(place / SOCKET))
        (place / SOCKET).chmod(0o600)
        listener.listen()
        state = Standing(
            pid=os.getpid(), address=address, cpus=cpus, began=time.time(), idle_seconds=settings["idle_seconds"], kind=own
        )  # fmt: skip
        keeper = _Keeper(state=state, listener=listener, head=head, held=held, token=token)

        def end(*_: object) -> None:
            keeper.ending = True

        for number in ENDING:
            signal.signal(number, end)
        gc.collect()
        gc.freeze()  # else the collector of each fork would touch, and so copy, all that the keeper has loaded
        standing.write_state(state)
        _serve(keeper)
        (place / STATE).unlink(missing_ok=True)
        listener.close()
        for pid in keeper.commands:
            os.kill(pid, signal.SIGTERM)
        os.close(held)
        for pid in (*keeper.commands, head):
            with suppress(ChildProcessError):  # the head, where Ray is gone
                os.waitpid(pid, 0)
    return 0


def _serve(keeper: _Keeper) -> None:
    """Fork for each command; returns when no command ran for the idle time, at a signal, or when the Ray cluster is gone."""
    used = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(keeper.listener, selectors.EVENT_READ)
        while not keeper.ending:
            for _ in selector.select(POLL_SECONDS):
                link, _ = keeper.listener.accept()
                with link:
                    pid = _fork(lambda link=link: _command(keeper, link))
                    keeper.commands.add(pid)
            ended = {pid for pid in (*keeper.commands, keeper.head) if os.waitpid(pid, os.WNOHANG) != (0, 0)}
            keeper.commands -= ended
            if keeper.head in ended:
                return
            used = time.monotonic() if keeper.commands else used
            if time.monotonic() - used > keeper.state.idle_seconds:
                return


def _fork(work: Callable[[], int]) -> int:
    """Do `work` in a fork, whose exit status it returns; the fork's process."""
    pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        for number in ENDING:
            signal.signal(number, signal.default_int_handler)
        status = work()
    except BaseException:  # noqa: BLE001  a fork must not go on as the keeper
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _fork_head(cpus: int | None, token: str, job: "tuple[Experiment, str | None]") -> tuple[int, int, tuple[str, int]]:
    """Start Ray in a fork that holds it; the fork's process, what it ends with, Ray's address and processors.

    Raises:
        TripathError: it does not start.
    """
    (ready, tell), (end, held) = os.pipe(), os.pipe()

    def hold() -> int:
        from tripath.cluster.launch import hold_cluster

        os.close(held)
        hold_cluster(cpus, token, job, lambda *found: _tell(tell, found), end)
        return 0

    pid = _fork(hold)
    os.close(tell)
    os.close(end)
    with os.fdopen(ready, "rb") as pipe:
        found = pipe.read()
    if not found:
        raise TripathError("cluster: Ray does not start")
    return pid, held, json.loads(found)


def _tell(pipe: int, found: object) -> None:
    os.write(pipe, json.dumps(found).encode())
    os.close(pipe)


def _command(keeper: _Keeper, link: socket.socket) -> int:
    """In a fork: run the command that comes over `link`, as the process that asks for it would."""
    keeper.listener.close()
    os.close(keeper.held)
    try:
        request, descriptors = standing.received(link)
    except (OSError, ValueError):
        return 2
    _become(request, descriptors)
    threading.Thread(target=_watch, args=(link,), daemon=True).start()
    from tripath.cluster import launch
    from tripath.command.cli import run

    launch.joined = launch.Joined(address=keeper.state.address, cpus=keeper.state.cpus, token=keeper.token)
    try:
        status: int | None = run()
    except launch.NotJoinedError:
        status = None
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:  # Hydra's, after its help
        status = int(end.code or 0)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    standing.answer(link, status)
    return status or 0


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Take over the streams, folder, environment and arguments of the process that asks."""
    os.setsid()
    for number, descriptor in zip(standing.STREAMS, descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    names = zip(("stdin", "stdout", "stderr"), "rww", request["encodings"], strict=True)
    for number, (name, mode, encoding) in enumerate(names):
        line = name == "stderr" or os.isatty(number)
        stream = os.fdopen(number, mode, buffering=1 if line else -1, encoding=encoding, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.umask(request["umask"])
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    sys.argv[1:] = request["arguments"]


def _watch(link: socket.socket) -> None:
    """Take signals from the process that asks; where it has ended, end too."""
    while True:
        try:
            numbers = link.recv(64) or bytes([signal.SIGTERM])
        except OSError:
            numbers = bytes([signal.SIGTERM])
        for number in numbers:
            os.kill(os.getpid(), signal.SIGTERM if number == signal.SIGHUP else number)
        if numbers[-1] != signal.SIGINT:
            return
