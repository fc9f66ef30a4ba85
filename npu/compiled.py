"""Where compiled code is kept: by what it depends on, so that a change compiles again what it changes alone."""

import os
from pathlib import Path
from types import FunctionType
from typing import Any

from numba.core.caching import _CacheLocator  # what NUMBA_CACHE_LOCATOR_CLASSES names

from npu.sources import PACKAGES, ROOT, digest_of_sources


def is_kept(package: str) -> bool:
    """True if the cache holds code of a project package that was compiled from the current sources."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / package).rglob("*.py")]
    return any(_folder(module).exists() for module in modules)


def _folder(module: str) -> Path:
    return Path(os.environ["NUMBA_CACHE_DIR"]) / f"{module}-{digest_of_sources(module)[:16]}"


class BySources(_CacheLocator):
    """A folder for each module, named by the sources of all that it imports: Numba itself looks only at the file of a function,
    not at those of the functions that it calls, and would run stale code after a change."""

    def __init__(self, function: FunctionType) -> None:
        self._module, self._line = function.__module__, function.__code__.co_firstlineno

    def get_cache_path(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  Numba states no type
        """The folder."""
        return str(_folder(self._module))

    def get_source_stamp(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  Numba states no type
        """Digest of the sources that the compiled code depends on."""
        return digest_of_sources(self._module)

    def get_disambiguator(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  Numba states no type
        """Tells functions of one name apart."""
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "BySources | None":  # noqa: ANN401, ARG003  Numba's names
        """For functions of the project; None for those of a user's own module, which Numba keeps as it does."""
        return cls(py_func) if py_func.__module__.partition(".")[0] in PACKAGES else None
