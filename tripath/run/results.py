"""Results by content: what a simulator found is kept under a digest of everything that it was given, and of its sources.

An entry is a file `<digest>.result`: the SHA-256 of what follows as 64 hexadecimal digits, a line feed, and deflated JSON that
names the digest again. What does not read back exactly so is no entry: it is computed anew, and replaced.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from npu.files import write_atomically
from npu.sources import user_cache

SCHEMA = 1
SUFFIX = ".result"
LEVEL = 1
"""Of zlib: the first takes a tenth of the time of the default and leaves a tenth more."""


def default_folder() -> Path:
    """The folder for results below the user's cache folder."""
    return user_cache() / "results"


class Cache:
    """Entries in a folder (None: there is no cache). A folder that cannot be written costs nothing but the hits."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, digest: str) -> dict[str, Any] | None:
        """The content kept under `digest`; None where there is none that is whole."""
        if self._folder is None:
            return None
        place = self._place(digest)
        try:
            content = decode(place.read_bytes(), digest)
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(place)  # `prune` goes by when an entry was used
        return content

    def put(self, digest: str, content: Mapping[str, object]) -> None:
        """Keep `content`, which JSON can hold, atomically."""
        if self._folder is None:
            return
        place = self._place(digest)
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, encode(content, digest))

    def prune(self, limit_bytes: int | None) -> None:
        """Remove what was not used for longest, until at most `limit_bytes` are kept; None: nothing is removed.

        Whoever reads, writes or removes an entry at the same time finds it whole, or finds none.
        """
        if self._folder is None or limit_bytes is None:
            return
        found: list[tuple[int, int, Path]] = []
        for place in self._folder.glob(f"??/*{SUFFIX}*"):  # with what a writer that was killed has left
            with contextlib.suppress(OSError):
                state = place.stat()
                found.append((state.st_mtime_ns, state.st_size, place))
        kept = sum(size for _, size, _ in found)
        for _, size, place in sorted(found):
            if kept <= limit_bytes:
                return
            with contextlib.suppress(OSError):
                place.unlink()
            kept -= size

    def _place(self, digest: str) -> Path:
        assert self._folder is not None
        return self._folder / digest[:2] / f"{digest}{SUFFIX}"


NO_CACHE = Cache(None)
"""Keeps nothing."""


def encode(content: Mapping[str, object], digest: str) -> bytes:
    """The bytes of an entry."""
    text = json.dumps({"schema": SCHEMA, "digest": digest, "content": content}, default=_fields)
    packed = zlib.compress(text.encode(), LEVEL)
    return hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed


def decode(data: bytes, digest: str) -> dict[str, Any]:
    """The content of an entry.

    Raises:
        ValueError: truncated, corrupted, or the entry of something else.
    """
    checksum, _, packed = data.partition(b"\n")
    if hashlib.sha256(packed).hexdigest().encode() != checksum:
        raise ValueError("cache entry: checksum differs")
    try:
        entry = json.loads(zlib.decompress(packed))
        found, content = (entry["schema"], entry["digest"]), dict(entry["content"])
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cache entry: {error}") from None
    if found != (SCHEMA, digest):
        raise ValueError("cache entry: not the one that was asked for")
    return content


def digest_of(*values: object) -> str:
    """SHA-256 over values of plain types and dataclasses of them, as 64 hexadecimal digits.

    Raises:
        TypeError: a value whose content is not known.
    """
    text = json.dumps(values, default=_fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache
def library_versions(*names: str) -> dict[str, str]:
    """Versions of installed libraries, and of Python: what they compute may change with them."""
    found = dict.fromkeys(names, "")
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "python": platform.python_version()}


def folder_digest(folder: str) -> str:
    """Digest of the files of a folder (a checkpoint), or of one file, read again only where a size or time of change differs."""
    root = Path(folder)
    states = [(file, file.stat()) for file in (root, *sorted(root.rglob("*"))) if file.is_file()]
    return _folder_digest(root, tuple((file, state.st_size, state.st_mtime_ns) for file, state in states))


@lru_cache(maxsize=16)
def _folder_digest(root: Path, states: tuple[tuple[Path, int, int], ...]) -> str:
    state = hashlib.sha256()
    for path, size, _ in states:
        state.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()


def _fields(value: Any) -> object:  # noqa: ANN401  whatever JSON has no form for
    """The form in JSON of a dataclass, mapping, sequence or NumPy scalar; of an array, its dtype, shape and digest."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return list(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    raise TypeError(f"digest: no content of a {type(value).__name__} is known")
