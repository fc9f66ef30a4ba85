"""The folder that a sweep leaves: its jobs, and values of their configurations."""

from collections.abc import Mapping
from pathlib import Path


def job_reports(folder: Path) -> list[Path]:
    """The report.json of every job below the folder of a sweep, by job number."""
    return sorted(folder.glob("*/report.json"), key=lambda path: path.parent.name.zfill(8))


def value_at(config: Mapping[str, object], key: str) -> str:
    """The value of a configuration at `key` (parts joined by dots) as text; `None` where it has none."""
    node: object = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return str(node)
