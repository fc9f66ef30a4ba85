"""Weights in their formats, kept on disk: a large checkpoint is quantised once, for all workloads and hardware.

A file holds one tensor of the HBM map (of one layer), under the SHA-256 of what it was made of: the stored bytes of its parts,
its format and block, and the sources that round. Its first 64 characters are the SHA-256 of the rest: what does not read back
so is made anew.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from tripath import user_cache
from tripath.program import Tensor


@runtime_checkable
class Identified(Protocol):
    """Tensors that say what they hold without being widened to float32."""

    def identity(self, name: str) -> str:
        """A digest that differs where the content of tensor `name` does."""
        ...


def default_folder() -> Path:
    """The folder for quantised weights below the user's cache folder."""
    return user_cache() / "quantised"


def fill(
    place: np.ndarray, tensor: Tensor, parts: Sequence[str], tensors: Mapping[str, np.ndarray], folder: Path,
    quantise: Callable[[], None],
) -> None:  # fmt: skip
    """Fill `place`, the bytes of `tensor` in an image, from the folder; else let `quantise` do it, and keep the bytes.

    A folder that cannot be written costs nothing but the time saved.
    """
    if not isinstance(tensors, Identified):
        quantise()
        return
    made_of = [_rounding(), tensor.format, str(tensor.block), str(tensor.shape), *map(tensors.identity, parts)]
    file = folder / f"{hashlib.sha256('|'.join(made_of).encode()).hexdigest()}.weights"
    if _read(file, place):
        return
    quantise()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        try:
            with partial.open("wb") as out:
                out.write(hashlib.sha256(place.data).hexdigest().encode())
                place.tofile(out)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _read(file: Path, place: np.ndarray) -> bool:
    """Whether the file was whole; then its bytes are in `place`."""
    try:
        with file.open("rb") as source:
            checksum = source.read(64)
            if source.readinto(place.data) != place.size or source.read(1):
                return False
    except OSError:
        return False
    return hashlib.sha256(place.data).hexdigest().encode() == checksum


@cache
def _rounding() -> str:
    """Digest of the sources that decide what bytes a tensor becomes."""
    state = hashlib.sha256()
    for file in sorted(Path(str(files("tripath.formats"))).glob("*.py")):
        state.update(file.read_bytes())
    return state.hexdigest()
