"""Files that are never seen half written."""

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
