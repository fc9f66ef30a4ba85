"""A cluster that stands between commands: where it is found, whether it is like this command, and how a command is handed to it.

Its keeper is a process that has loaded every library and forks for each command (tripath.command.cluster). A command's own
process hands over its arguments, folder, environment and open files, passes on signals, and ends with the status of the fork.
"""

import array
import fcntl
import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npu.sources import ROOT, digest_of_sources, temporary_folder

PLACE = "TRIPATH_CLUSTER"
"""The environment variable that names another folder for the state; tests use it."""
LOCK, STATE, SOCKET, LOG = "lock", "state.json", "socket", "log"
SOURCES = ("tripath.command.cli", "tripath.command.cluster")
LOADED_WITH = (
    "PYTHON",
    "NUMBA_",
    "RAY_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "MPL",
    "LD_",
    "HOME",
    "XDG_CACHE_HOME",
    "TMPDIR",
)
"""Beginnings of the environment variables that libraries read when they are loaded, or workers when they keep something."""
OWN_CODE = "NUMBA_CACHE_DIR"
"""Follows from the sources where the user does not set it (npu/__init__.py)."""
OF_ONE_PROCESS = ("/dev/fd/", "/proc/self/")
ON_THIS_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's way to say that a cluster has one node, which then listens on the loopback address alone; read when Ray is loaded."""
STANDING = {**ON_THIS_MACHINE, "RAY_AUTH_MODE": "token"}
"""Settings of Ray for the keeper and its forks, read when Ray is loaded: who joins must know the cluster's token."""
STREAMS = (0, 1, 2)
MOST_BYTES = 1 << 22
LINE = b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A standing cluster: its keeper's process, the address of Ray, what it was started from, and when it ends.

    `kind` says what a command must share with it, by what a reader calls it.
    """

    pid: int
    address: str
    cpus: int
    began: float
    idle_seconds: float
    kind: Mapping[str, str]

    def unlike(self) -> str:
        """The names in `kind` for which this command differs from the cluster; empty if the command can be handed over."""
        own = kind()
        return ", ".join(what for what in own if own[what] != self.kind.get(what))


def folder() -> Path:
    """The folder that says whether a cluster stands, this user's alone."""
    given = os.environ.get(PLACE)
    return Path(given) if given else temporary_folder()


def kind() -> dict[str, str]:
    """Properties that a command and the cluster that runs it must share: sources, Python and environment."""
    files = hashlib.sha256(digest_of_sources(*SOURCES).encode())
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        files.update(file.read_bytes())
    read = sorted(
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(LOADED_WITH) and name != OWN_CODE
    )
    return {
        "sources": f"{ROOT} {files.hexdigest()}",
        "Python": f"{sys.executable} {sys.version}",
        "environment": hashlib.sha256("\0".join(read).encode()).hexdigest(),
    }


def standing() -> Standing | None:
    """The cluster that stands; None where there is none."""
    try:
        with (folder() / LOCK).open("r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not isinstance(error, BlockingIOError | PermissionError):
            return None
    else:
        return None  # nobody holds the lock
    try:
        return Standing(**json.loads((folder() / STATE).read_bytes()))
    except (OSError, ValueError, TypeError):  # it is just starting
        return None


def write_state(state: Standing) -> None:
    """Tell commands of the cluster."""
    (folder() / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")


def delegate(arguments: Sequence[str]) -> int | None:
    """Have the standing cluster run a command; its exit status, or None where this process must run it itself."""
    found = standing()
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if found is None or None in streams or any(part in text for text in arguments for part in OF_ONE_PROCESS):
        return None
    if other := found.unlike():
        sys.stderr.write(
            f"note: the standing cluster has other {other} and is not used; `tripath cluster stop` ends it\n"
        )
        return None
    request = {
        "arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path,  # noqa: PTH109
        "encodings": [stream.encoding for stream in streams], "umask": _umask(),
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(folder() / SOCKET))
            for stream in streams[1:]:
                stream.flush()
            descriptors = array.array("i", STREAMS).tobytes()
            text = json.dumps(request).encode() + LINE
            sent = link.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            link.sendall(text[sent:])
        except (OSError, ValueError):  # it has just ended, or text that JSON lacks
            return None
        handlers = {
            number: signal.signal(number, lambda number, _: _pass_on(link, number))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            return _status(link)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def received(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request as `delegate` sends it, and its open files.

    Raises:
        ValueError: it is none.
        OSError: who sent it has ended.
    """
    text, descriptors = b"", array.array("i")
    while not text.endswith(LINE):
        part, rights, *_ = link.recvmsg(1 << 16, socket.CMSG_SPACE(len(STREAMS) * descriptors.itemsize))
        for level, what, data in rights:
            if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data)
        text += part
        if not part or len(text) > MOST_BYTES:
            raise ValueError("no request")
    if len(descriptors) != len(STREAMS):
        raise ValueError("no request: files are missing")
    return json.loads(text), list(descriptors)


def answer(link: socket.socket, status: int | None) -> None:
    """Say with which status a command ended; None: whoever asked must run it."""
    with suppress(OSError):
        link.sendall(json.dumps(status).encode() + LINE)


def _status(link: socket.socket) -> int | None:
    text = b""
    while part := link.recv(64):
        text += part
    if not text:
        sys.stderr.write("error: the standing cluster ended before the command did; run it again\n")
        return 2
    return json.loads(text)


def _pass_on(link: socket.socket, number: int) -> None:
    with suppress(OSError):
        link.sendall(bytes([number]))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def ended(seconds: float) -> bool:
    """Wait up to `seconds` for the cluster to end; True if none stands."""
    until = time.monotonic() + seconds
    while standing() is not None:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
