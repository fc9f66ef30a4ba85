"""Configuration files of a user, looked at before Hydra takes them: what cannot be read is one line that names file and line."""

import pickle
from pathlib import Path
from typing import ClassVar

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

from npu.errors import TripathError

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
"""Of a file once every alias is written out: a few lines of nested aliases make billions."""


class _UserFiles(FileConfigSource):
    """The files below `--config-dir`."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        check_yaml(path)
        try:
            return super().load_config(config_path)
        except yaml.YAMLError as error:
            raise TripathError(f"{path}: {_told(error)}") from None


class _PackageFiles(ImportlibResourcesConfigSource):
    """The files of this package, parsed once in a process: Hydra reads each twice for a command, and parsing is most of that."""

    _parsed: ClassVar[dict[tuple[str, str], bytes]] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        key = self.path, config_path
        if key not in self._parsed:
            self._parsed[key] = pickle.dumps(super().load_config(config_path))
        return pickle.loads(self._parsed[key])  # noqa: S301  made above, in this process


def take_files() -> None:
    """Have Hydra read a user's files by way of the check, and those of this package once."""
    Plugins.instance()  # registers Hydra's own
    SourcesRegistry.instance().types |= {"file": _UserFiles, "pkg": _PackageFiles}


def check_yaml(path: Path) -> None:
    """Refuse a file that is no YAML, or too large once its aliases are written out.

    Raises:
        TripathError: naming the file, and the line where the parser knows one.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise TripathError(f"{path}: must have at most {MOST_BYTES} bytes, got {path.stat().st_size}")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"))
        nodes = 0 if root is None else _written_out(root, {}, ())
    except UnicodeDecodeError as error:
        raise TripathError(f"{path}: must be UTF-8, byte {error.start} is not") from None
    except yaml.YAMLError as error:
        raise TripathError(f"{path}: {_told(error)}") from None
    except RecursionError:
        raise TripathError(f"{path}: is nested too deeply") from None
    if nodes > MOST_NODES:
        raise TripathError(f"{path}: must have at most {MOST_NODES} values with its aliases written out, got {nodes}")


def _written_out(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Values below a node with every alias written out.

    Raises:
        YAMLError: a value contains itself.
    """
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for each in inner for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_written_out(part, known, (*above, id(node))) for part in parts)
    return known[id(node)]


def _told(error: yaml.YAMLError) -> str:
    """The parser's message, with the line number where it is known."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    return f"line {error.problem_mark.line + 1}: {error.problem}"
