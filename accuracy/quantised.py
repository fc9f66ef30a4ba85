"""Weights in their formats, kept on disk: a large checkpoint is quantised once, for all workloads and hardware.

A file holds one tensor of the HBM map (of one layer), under the SHA-256 of what it was made of: the stored bytes of its parts,
its format and block, and the sources that round. Its first 64 characters are the SHA-256 of the rest: what does not read back
so is made anew.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from npu.files import write_atomically
from npu.program import Tensor
from npu.sources import digest_of_sources, user_cache

ROUNDING = "npu.formats.rounding"
"""The sources that decide what bytes a tensor becomes."""


@runtime_checkable
class Identified(Protocol):
    """Tensors that say what they hold without being widened to float32."""

    def identity(self, name: str) -> str:
        """A digest that differs where the content of tensor `name` does."""
        ...


def default_folder() -> Path:
    """The folder for quantised weights below the user's cache folder."""
    return user_cache() / "quantised"


def place_of(tensor: Tensor, parts: Sequence[str], tensors: Mapping[str, np.ndarray], folder: Path) -> Path | None:
    """The file in a folder for `tensor`, made of `parts`; None where these do not say what they hold."""
    if not isinstance(tensors, Identified):
        return None
    made_of = [
        digest_of_sources(ROUNDING),
        tensor.format,
        str(tensor.block),
        str(tensor.shape),
        *map(tensors.identity, parts),
    ]
    return folder / f"{hashlib.sha256('|'.join(made_of).encode()).hexdigest()}.weights"


def read(file: Path, place: np.ndarray) -> bool:
    """Fill `place` (uint8) from a file; whether it is there and whole. If not, what `place` holds means nothing."""
    try:
        with file.open("rb") as source:
            checksum = source.read(64)
            if source.readinto(place.data) != place.size or source.read(1):
                return False
    except OSError:
        return False
    return hashlib.sha256(place.data).hexdigest().encode() == checksum


def keep(file: Path, place: np.ndarray) -> None:
    """Keep the bytes of `place` in a file. A folder that cannot be written costs nothing but the time saved."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, hashlib.sha256(place.data).hexdigest().encode(), place.data)
