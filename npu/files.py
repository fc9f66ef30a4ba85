"""Files that are never seen half written, and folders that nobody else has."""

import itertools
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file of `parts`, one after the other, so that it is never seen half written."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def make_exclusively(folder: Path) -> Path:
    """Make a folder that nobody else has: `folder`, else the first of `folder-2`, `folder-3`, ... that is free."""
    for number in itertools.count(1):
        own = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            own.mkdir()
        except FileExistsError:
            continue
        return own
    raise AssertionError
