"""The files that a module depends on, digests of them, and the folder for what is cached by such digests.

A module depends on itself and on what it imports, at its head or within a function; a package that has SystemVerilog or C++
depends on that too. No list is kept: what the imports say is what the caches hash, and the layers in `pyproject.toml` say what
the imports may be.
"""

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("npu", "dllm", "npu_compiler", "analytical", "cycle", "accuracy", "rtl", "dllm_training", "tripath")
"""The project's packages, from the ground floor up."""
OTHER_SOURCES = (".sv", ".cpp")
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+([\w., ]+))", re.MULTILINE)


def user_cache() -> Path:
    """The project's folder below the user's cache folder; where none can be written, a private one for temporary files."""
    try:
        return _writable(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tripath")
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return temporary_folder()


def temporary_folder() -> Path:
    """A folder for temporary files that is this user's alone."""
    return _private(Path(tempfile.gettempdir()) / f"tripath-{os.getuid()}")


@lru_cache
def _writable(folder: Path) -> Path:
    """The folder, made where it is not there.

    Raises:
        OSError: nothing can be written to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return folder


@lru_cache
def _private(folder: Path) -> Path:
    """The folder where it is this user's alone, else a new one: what a cache holds is trusted."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
    return folder if own else Path(tempfile.mkdtemp(prefix=folder.name))


@lru_cache
def sources_of(*modules: str) -> tuple[tuple[str, Path], ...]:
    """Name and file of everything that `modules` depend on, in the order of names. Installed libraries do not count."""
    known = {*PACKAGES, *(module.partition(".")[0] for module in modules)}
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in found or name.partition(".")[0] not in known or (file := _file_of(name)) is None:
            continue
        found[name] = file
        todo += [name.rpartition(".")[0], *_imported_by(file)]
    folders = {file.parent for file in found.values()}
    beside = [each for folder in folders for each in folder.iterdir() if each.suffix in OTHER_SOURCES]
    return tuple(sorted([*found.items(), *((f"{each.parent.name}/{each.name}", each) for each in beside)]))


@lru_cache
def digest_of_sources(*modules: str) -> str:
    """SHA-256 over everything that `modules` depend on, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for name, file in sources_of(*modules):
        state.update(f"{name}\0".encode() + file.read_bytes())
    return state.hexdigest()


@lru_cache
def _file_of(module: str) -> Path | None:
    """The file of a module; None where there is none, as for a name inside a module."""
    package = module.partition(".")[0]
    root = ROOT
    if package not in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin)
        root = origin.parents[1] if spec.submodule_search_locations else origin.parent
    place = root.joinpath(*module.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


@lru_cache
def _imported_by(file: Path) -> tuple[str, ...]:
    """Names that may be modules in the imports of a source."""
    return tuple(_names(file.read_text(encoding="utf-8")))


def _names(text: str) -> Iterator[str]:
    for module, names, modules in _IMPORT.findall(text):
        if modules:
            yield from (each.split()[0] for each in modules.split(",") if each.strip())
        else:
            yield module
            yield from (f"{module}.{each.split()[0]}" for each in names.strip("()").split(",") if each.strip())
