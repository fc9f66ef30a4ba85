"""tripath: three independent simulators of one NPU program for diffusion language models.

Importing it decides where Numba keeps compiled code: in a folder named by the sources, since Numba itself looks only at the
file of a function, not at those of the functions that it calls, and would run stale code after a change.
"""

import hashlib
import os
from pathlib import Path

_PACKAGES = ("tripath", "analytical", "cycle", "accuracy")


def user_cache() -> Path:
    """The project's folder below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tripath"


def _cache_folder() -> Path:
    """Folder for the compiled code of exactly these sources, below the user's cache folder."""
    root = Path(__file__).parents[1]
    state = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            state.update(file.read_bytes())
    return user_cache() / f"numba-{state.hexdigest()[:16]}"


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(_cache_folder())
