"""`tripath doctor`: what is installed, where things are kept, and what is wrong."""

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from npu.errors import Arguments, TripathError, print_error
from npu.sources import ROOT, user_cache
from tripath.cluster import standing

NEEDED = (
    "numpy",
    "numba",
    "hydra-core",
    "ray",
    "mlflow",
    "matplotlib",
    "optuna",
    "perfetto",
    "rich",
    "safetensors",
    "tokenizers",
)
OPTIONAL = {"torch": "the paths quality and perplexity", "gguf": "checkpoints of llama.cpp"}
TOOLS = {"verilator": "the path rtl"}
MODULES = {"hydra-core": "hydra"}
LEAST_DISK_BYTES, LEAST_SHARED_BYTES = 1 << 30, 300 << 20
"""A folder that is written to, and Ray's object store with what goes with it."""
SHARED = Path("/dev/shm")  # noqa: S108  where Ray has its object store
LEAST_PYTHON = (3, 11)
DATABASE = "mlflow.db"


@dataclass(frozen=True, slots=True)
class Finding:
    """One item that was examined, the state found, and what is wrong with it (empty: nothing)."""

    what: str
    found: str
    wrong: str = ""


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath doctor`; the exit status is 1 where something is wrong."""
    parser = Arguments(
        prog="tripath doctor",
        description="Say what is installed, where caches, database and cluster are, and what is wrong.",
        epilog="The exit status is 1 where something is wrong.",
    )
    parser.add_argument("--store", default="mlruns", help="as tracking.folder (default: %(default)s)")
    try:
        given = parser.parse_args(arguments)
    except TripathError as error:
        print_error(str(error))
        return 2
    findings = [*_installed(), *_environment(), *_folders(Path(given.store)), *_cluster()]
    width = max(len(each.what) for each in findings)
    for each in findings:
        print(f"{'WRONG' if each.wrong else 'ok':5}  {each.what:{width}}  {each.found}")
        if each.wrong:
            print(f"{'':{width + 9}}{each.wrong}")
    wrong = sum(bool(each.wrong) for each in findings)
    print(f"{wrong} of {len(findings)} are wrong" if wrong else "nothing is wrong")
    return 1 if wrong else 0


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed() -> Iterator[Finding]:
    old = f"at least {'.'.join(map(str, LEAST_PYTHON))} is needed" if sys.version_info < LEAST_PYTHON else ""
    yield Finding("python", f"{platform.python_version()}, {sys.executable}", old)
    yield Finding("tripath", f"{_version('tripath') or 'not installed'}, {ROOT}")
    for library in NEEDED:
        found = _version(library)
        there = find_spec(MODULES.get(library, library)) is not None
        missing = "" if found and there else f"is missing: pip install {library}"
        yield Finding(library, found or "not installed", missing)
    for library, use in OPTIONAL.items():
        found = _version(library)
        yield Finding(library, found or f"not installed; {use} needs it")
    for tool, use in TOOLS.items():
        yield Finding(tool, shutil.which(tool) or f"not installed; {use} needs it")


def _environment() -> Iterator[Finding]:
    jit = os.environ.get("NUMBA_DISABLE_JIT", "0")
    yield Finding(
        "compilation", "off" if jit != "0" else "on", "NUMBA_DISABLE_JIT is set: runs take hours" if jit != "0" else ""
    )
    command = shutil.which("tripath")
    other = command is not None and Path(command).resolve().parent != Path(sys.executable).resolve().parent
    other = other and Path(command or "").parent != Path(sys.executable).parent
    wrong = f"it is of another Python than {sys.executable}" if other else ""
    yield Finding("the command tripath", command or "not on the path; python -m tripath runs", wrong)
    yield Finding("processors", str(os.cpu_count()))
    free = shutil.disk_usage(SHARED).free if SHARED.exists() else LEAST_SHARED_BYTES
    small = f"Ray needs {LEAST_SHARED_BYTES >> 20} MiB there" if free < LEAST_SHARED_BYTES else ""
    yield Finding("shared memory", f"{free >> 20} MiB free in {SHARED}", small)


def _folders(store: Path) -> Iterator[Finding]:
    from tripath.run.results import default_folder

    results = Path(os.environ.get("TRIPATH_CACHE") or default_folder())
    for what, folder in (
        ("cache", user_cache()), ("results", results), ("compiled code", Path(os.environ["NUMBA_CACHE_DIR"])),
        ("run folders", Path.cwd()),
    ):  # fmt: skip
        yield _folder(what, folder)
    yield _database(store.absolute() / DATABASE)


def _folder(what: str, folder: Path) -> Finding:
    """A folder that is written to, or would be made."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding(what, str(folder), f"{there} cannot be written")
    small = f"{free >> 20} MiB are free, {LEAST_DISK_BYTES >> 20} are wanted" if free < LEAST_DISK_BYTES else ""
    files = [file.stat().st_size for file in folder.rglob("*") if file.is_file()] if folder != Path.cwd() else []
    size = (
        f", {len(files)} files of {sum(files) >> 20} MiB"
        if files
        else ""
        if folder.exists()
        else ", is made when needed"
    )
    return Finding(what, f"{folder}{size}", small)


def _database(file: Path) -> Finding:
    """The tracking database, if there is one."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return Finding("tracking", f"{given} ($MLFLOW_TRACKING_URI)")
    if not file.exists():
        return Finding("tracking", f"{file}, is made when needed")
    try:
        with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5) as database:
            (state,) = database.execute("pragma quick_check(1)").fetchone()
            (runs,) = database.execute("select count(*) from runs").fetchone()
        database.close()
    except sqlite3.Error as error:
        return Finding("tracking", str(file), f"cannot be read ({error})")
    return Finding("tracking", f"{file}, {runs} runs", "" if state == "ok" else f"is damaged ({state})")


def _cluster() -> Iterator[Finding]:
    found = standing.standing()
    if found is None:
        yield Finding("cluster", "none stands; tripath cluster start")
        return
    other = found.unlike()
    wrong = f"it has other {other}, and is not used; tripath cluster stop ends it" if other else ""
    yield Finding("cluster", f"process {found.pid}, Ray at {found.address}", wrong)
