"""Configuration files of a user, looked at before Hydra takes them: what cannot be read is one line that names file and line, and
what would have Hydra run code is refused.
"""

import pickle
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from npu.errors import TripathError

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
"""Of a file once every alias is written out: a few lines of nested aliases make billions."""
CLASSES = frozenset({
    "hydra_plugins.tripath_cluster.ClusterLauncher", "hydra_plugins.tripath_cluster.TripathSweeper",
    "tripath.command.cli.TakeFolder", "logging.StreamHandler", "logging.FileHandler",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
})  # fmt: skip
"""Classes of Hydra, of logging and of tripath that a configuration may name for Hydra."""
CODE = ("_target_", "class", "()")
"""Keys by which Hydra, or Python's logging that it sets up, name code."""
MODULES = ("module", "scoring")
"""Options of a path that name a module."""
IMPORTED, STREAMS = ("ext://", "cfg://"), ("ext://sys.stdout", "ext://sys.stderr")
"""Values by which logging imports something, and those that are no more than a stream."""


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
    """Have Hydra read a user's files by way of the checks, and those of this package once."""
    Plugins.instance()  # registers Hydra's own
    SourcesRegistry.instance().types |= {"file": _UserFiles, "pkg": _PackageFiles}
    ConfigLoaderImpl.load_configuration = _checked_configuration


_load_configuration = ConfigLoaderImpl.load_configuration


def _checked_configuration(self: ConfigLoaderImpl, *arguments: Any, **options: Any) -> DictConfig:  # noqa: ANN401  Hydra's own
    """Compose as Hydra does, and check it before there are callbacks, logging, a launcher. Only an override names a module."""
    config = _load_configuration(self, *arguments, **options)
    if "hydra" in config:
        check_hydra(config.hydra)
    overrides = options["overrides"] if "overrides" in options else arguments[1]
    named = {override.partition("=")[0].lstrip("+") for override in overrides}
    for name, given in (config.get("simulator") or {}).items():
        for option in MODULES:
            key = f"simulator.{name}.{option}"
            if isinstance(given, DictConfig) and given.get(option) and key not in named:
                raise TripathError(f"{key}: is imported only where the command line names it, {key}={given[option]}")
    return config


def check_hydra(node: Any, key: str = "hydra") -> None:  # noqa: ANN401  any part of a configuration
    """Refuse settings of Hydra that run code: other classes than its own and ours, and another environment for what is started.

    Raises:
        TripathError: naming the key.
    """
    if isinstance(node, (DictConfig, ListConfig)):
        children: Any = node  # a key and a place both lead to what is below
        for name in node if isinstance(node, DictConfig) else range(len(node)):
            try:  # with interpolations resolved, which may lead to whole nodes elsewhere
                value = children[name]
            except (InterpolationResolutionError, MissingMandatoryValue):  # Hydra gives it a value later
                continue
            if name in CODE and value not in CLASSES:
                raise TripathError(f"{key}.{name}: names code, which no configuration may, got {value!r}")
            check_hydra(value, f"{key}.{name}")
    elif isinstance(node, str) and node.startswith(IMPORTED) and node not in STREAMS:
        raise TripathError(f"{key}: names code, which no configuration may, got {node!r}")
    if key == "hydra.job.env_set" and node:
        raise TripathError(
            f"{key}: is not taken, set the environment of the command itself, got {', '.join(map(str, node))}"
        )


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
