"""Hydra's configurations as objects: composes the configuration of a job, and builds the experiment that it describes."""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from npu.errors import NotInstalledError, TripathError, did_you_mean
from tripath.command.building import build

if TYPE_CHECKING:
    from dllm.model import ModelSpec
    from npu.hardware import Hbm
    from tripath.experiment import Experiment

PACKAGE, EXTRA = "pkg://", "gguf://"
INTERPOLATION, ENVIRONMENT = "${", "${oc.env:"
"""The start of an interpolation, and of one that refers to no other value."""
INPUT_ERRORS = (TripathError, HydraException, OmegaConfBaseException, OSError)


Values = dict[str, Any]
"""A composed configuration as plain values, every interpolation resolved."""


class Composer:
    """Composes the jobs of a sweep: once for each choice of files, and sets a job's values on a copy of that.

    Hydra itself would read and merge every file for every job, which takes longer than an analytical run; and to set a value
    in OmegaConf's copy and to resolve that takes longer than to set it among plain values, where a job does no more than that.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:  # noqa: ANN401  its interface lacks the repository
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, tuple[Override, bool]] = {}
        self._known: dict[tuple[str, ...], _OfFiles] = {}

    def __call__(self, number: int, overrides: Sequence[str]) -> tuple[Values, Path]:
        """The configuration of a job, without Hydra's own node, and its folder.

        Raises:
            HydraException, OmegaConfBaseException: it cannot be composed.
        """
        parsed = [self._parse(text) for text in overrides]
        files = self._of_files(tuple(str(override.input_line) for override, of_file in parsed if of_file))
        changes = [override for override, of_file in parsed if not of_file]
        values = files.plain_with(changes)
        if values is None:
            config: DictConfig = pickle.loads(files.packed)  # noqa: S301  made below, in this process
            ConfigLoaderImpl._apply_overrides_to_config(changes, config)  # noqa: SLF001
            values = cast("Values", OmegaConf.to_container(config, resolve=True))
        with open_dict(files.whole.hydra):
            job = files.whole.hydra.job
            job.num, job.id = number, str(number)
            job.override_dirname = get_overrides_dirname([each for each, _ in parsed], **job.config.override_dirname)
        sweep = files.whole.hydra.sweep
        return values, Path(sweep.dir).absolute() / str(sweep.subdir)

    def _parse(self, text: str) -> tuple[Override, bool]:
        """An override, and whether it chooses a file."""
        if text not in self._parsed:
            override = self._parser.parse_overrides([text])[0]
            group = self._loader.repository.group_exists(override.key_or_group)
            self._parsed[text] = override, group and not isinstance(override.value(), dict)
        return self._parsed[text]

    def _of_files(self, files: tuple[str, ...]) -> "_OfFiles":
        if files not in self._known:
            whole = self._loader.load_sweep_config(self._master, list(files))
            HydraConfig.instance().cfg = cast("Any", whole)  # `${hydra:...}` in a configuration looks here
            task = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
            independent = INTERPOLATION not in OmegaConf.to_yaml(task).replace(ENVIRONMENT, "")
            plain = pickle.dumps(OmegaConf.to_container(task, resolve=True)) if independent else None
            self._known[files] = _OfFiles(whole=whole, packed=pickle.dumps(task), plain=plain)
        return self._known[files]


@dataclass(frozen=True, kw_only=True, slots=True)
class _OfFiles:
    """The configuration that a choice of files makes: whole; without Hydra's own node (pickled); and the latter as plain values
    (pickled), or None if one of them depends on another."""

    whole: DictConfig
    packed: bytes
    plain: bytes | None

    def plain_with(self, changes: Sequence[Override]) -> Values | None:
        """The plain values with `changes`; None where one of these is more than another value of a key that has one."""
        if self.plain is None:
            return None
        values: Values = pickle.loads(self.plain)  # noqa: S301  made above, in this process
        for override in changes:
            *path, last = override.key_or_group.split(".")
            node: Any = values
            for key in path:
                node = node.get(key) if isinstance(node, dict) else None
            new = override.value()
            simple = isinstance(new, int | float | str | None) and not (isinstance(new, str) and _has_meaning(new))
            known = isinstance(node, dict) and last in node and not isinstance(node[last], dict | list)
            if not (simple and known and override.type is OverrideType.CHANGE and override.package is None):
                return None
            node[last] = new
        return values


def _has_meaning(text: str) -> bool:
    """True if OmegaConf gives a text a special meaning: an interpolation, or a missing value."""
    return INTERPOLATION in text or text == MISSING


def to_yaml(values: Values) -> str:
    """A configuration as OmegaConf.to_yaml writes it."""
    return "".join(_group_to_yaml(pickle.dumps({key: value})) for key, value in values.items())


@lru_cache(maxsize=256)
def _group_to_yaml(group: bytes) -> str:
    """One key of a configuration; most jobs of a sweep differ in one of them."""
    values = pickle.loads(group)  # noqa: S301  made above, in this process
    return yaml.dump(
        values, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper()
    )


def compose_experiment(*overrides: str) -> "Experiment":
    """The experiment that the command line would run with these overrides (`hardware.vlen=128`): for notebooks and scripts.

    Raises:
        TripathError: a value breaks a rule.
        HydraException, OmegaConfBaseException: it cannot be composed.
    """
    return build_experiment(compose_values(*overrides))[0]


def compose_values(*overrides: str) -> Values:
    """The configuration that the command line would compose of these overrides, as plain values.

    Raises:
        HydraException, OmegaConfBaseException: it cannot be composed.
    """
    with initialize_config_module("conf", version_base="1.3"):
        return cast("Values", OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True))


def build_experiment(config: DictConfig | Values) -> "tuple[Experiment, str | None]":
    """The experiment of a composed configuration, and the prompt to use where the user gives none.

    Raises:
        TripathError: a value breaks a rule.
    """
    from dllm.checkpoint import SYNTHETIC
    from dllm.model import ModelSpec
    from dllm.numerics import Numerics
    from dllm.workload import Workload, reference_only, with_defaults
    from npu.energy import Technology
    from npu.hardware import HardwareConfig
    from npu_compiler import CompilerOptions
    from tripath.command.comparisons import read_validation
    from tripath.experiment import Experiment
    from tripath.experiment.prompts import kept_prompts, read_prompts_file
    from tripath.paths import Fact

    values = cast("Values", OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config)
    groups = {
        "model",
        "hardware",
        "workload",
        "numerics",
        "compiler",
        "simulator",
        "validation",
        "launch",
        "tracking",
        "technology",
    }
    known = (*sorted(groups), "devices", "paths", "row_only")  # of devices there are several, one below the other
    for key in values:
        if key not in known:
            raise TripathError(f"{key}: no such key, one of {', '.join(known)}")
    for key in (*sorted(groups), "devices"):
        if not isinstance(values.get(key), dict):
            raise TripathError(f"{key}: needs a mapping, got {values.get(key)!r}")
    values = {**values, "model": _of_folder(values["model"])}
    model = {**values["model"], **{key: resolve(values["model"].get(key)) for key in ("checkpoint", "adapter")}}
    if isinstance(sliced := model.get("only_layers"), list):
        if not sliced or not all(isinstance(layer, int) and 0 <= layer < model["layers"] for layer in sliced):
            raise TripathError(f"model.only_layers: must list layers of 0 to {model['layers'] - 1}, got {sliced}")
        model["layers"] = len(sliced)
    own = build(ModelSpec, "model", model)
    workload = with_defaults(values["workload"], own.decoding)
    default_prompt = workload.pop("default_prompt", None)
    if default_prompt is not None and not isinstance(default_prompt, str):
        raise TripathError(f"workload.default_prompt: must be text, got {default_prompt!r}")
    if sum(workload.get(key) is not None for key in ("prompt", "prompts_file", "prompt_length")) > 1:
        raise TripathError("workload: give one of prompt, prompts_file and prompt_length, and null for the others")
    name = workload.get("prompts_file")
    if name is not None:
        name = workload["prompts_file"] = kept_prompts(str(resolve(name)))
    if workload.get("batch") is None:
        workload["batch"] = 1 if name is None else len(read_prompts_file(name))
    prompt = workload.get("prompt")
    if isinstance(prompt, str):  # kept from instantiate, which would interpolate a `${` in it
        workload["prompt"] = None
    paths = values.get("paths")
    comparisons, settings = read_validation(values["validation"])
    references = [row for row in settings.references if _applies(row.when, values)]
    if own.checkpoint == SYNTHETIC:
        settings = settings.without_free_running()
    hardware = build(HardwareConfig, "hardware", _with_timing(values["hardware"]))
    asked = build(Workload, "workload", workload)
    experiment = Experiment(
        model=own, workload=asked, hardware=hardware,
        numerics=build(Numerics, "numerics", values["numerics"]).suited(asked.written_rows),
        compiler=build(CompilerOptions, "compiler", values["compiler"]), settings=replace(settings, references=references),
        technology=build(Technology, "technology", values["technology"]),
        **comparisons.objects(values, hardware, own, OtherFiles()),
        paths=[str(path) for path in paths] if isinstance(paths, list) else [str(paths)], options=values["simulator"],
    )  # fmt: skip
    for row in experiment.rows:
        if row.library and find_spec(row.library) is None:
            needs = f"needs {row.library}, which is not installed; pip install 'tripath[study]'"
            raise NotInstalledError(f"paths: {row.name} {needs}")
    without_program = [row.name for row in experiment.rows if Fact.PROGRAM not in row.needs]
    if without_program and reference_only(experiment.workload, experiment.numerics):
        experiment = replace(experiment, paths=without_program)  # no program carries the choice out
    if isinstance(prompt, str):
        experiment = replace(experiment, workload=replace(experiment.workload, prompt=prompt))
    return experiment, default_prompt


def _of_folder(model: Values) -> Values:
    """The group `model`, where it names a folder, as that folder describes it.

    Raises:
        TripathError: the folder is not understood.
    """
    from dllm.folder import read_folder

    if "folder" not in model:
        return model
    given = dict(model)
    folder = given.pop("folder")
    if not isinstance(folder, str) or folder == MISSING:
        raise TripathError("model.folder: give the folder of a checkpoint, with its config.json")
    return read_folder(folder, given)


def _with_timing(hardware: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group `hardware` with a timing row for each instruction, where some stand under their operation class."""
    from npu.isa.presets import by_instruction

    timing = hardware.get("timing")
    if not isinstance(timing, dict) or not all(isinstance(row, dict) for row in timing.values()):
        return hardware  # refused where it is built
    return {**hardware, "timing": by_instruction(timing)}


class OtherFiles:
    """Files of configuration groups besides those that were chosen (`tripath.command.comparisons.Files`)."""

    def values(self, group: str, name: str) -> Values | None:
        """The values of a file; None: there is none."""
        try:
            loaded = _composed(f"+{group}@other={name}")
        except HydraException:
            return None
        return cast("Values", OmegaConf.to_container(loaded.other, resolve=True))

    def model(self, name: str) -> "ModelSpec":
        """The model of a file, without a checkpoint.

        Raises:
            TripathError: there is no such file.
        """
        from dllm.model import ModelSpec

        try:
            loaded = _composed(f"model={name}")
        except HydraException as error:
            raise TripathError(f"validation.measurements: {one_line(error)}") from None
        return build(ModelSpec, "model", {**dict(loaded.model), "checkpoint": None, "adapter": None})

    def memory(self, name: str) -> "Hbm":
        """The memory of a file."""
        from npu.hardware import Hbm

        return build(
            Hbm, "hardware.hbm", OmegaConf.to_container(_composed(f"hardware/hbm={name}").hardware.hbm, resolve=True)
        )


def _applies(when: Mapping[str, object], values: Values) -> bool:
    """True if a reference was measured for this configuration.

    Raises:
        TripathError: `when` names a key that does not exist.
    """
    for key, value in when.items():
        given: Any = values
        for name in key.split("."):
            given = given.get(name) if isinstance(given, dict) else None
        if given in (None, MISSING):
            raise TripathError(f"validation.references: when names {key}, no such key")
        if given != value:
            return False
    return True


def one_line(error: BaseException) -> str:
    """The telling part of an error in one line; Hydra's own errors in the words of this command."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = [each for each in error.options if not each.startswith("_")]  # what others have in common is no option
        return f"{group}: no option {option!r}, one of {', '.join(known)}"
    if isinstance(error, OverrideParseException):
        rule = "write KEY=VALUE, and quote blanks, commas and brackets"
        return f"arguments: cannot read {error.override!r}, {rule}; see tripath --help"
    text = str(error).partition("\nConfig search path")[0]
    if found := re.match(r"Could not override '([^']*)'", text):
        known = _known_keys()
        inside = [key for key in known if key.endswith(f".{found[1]}")]
        near = f"; did you mean {inside[0]!r}?" if inside else did_you_mean(found[1], known)
        return f"{found[1]}: no such key, `tripath --cfg job` prints all{near}"
    if text.startswith("Ambiguous value"):
        return f"{text.splitlines()[0]}; write [a,b] for a list, quote a text with commas, or sweep with --multirun"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "https://hydra.cc" not in line]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _composed(*overrides: str) -> DictConfig:
    """The configuration of these overrides, with Hydra as the command line started it, or on its own."""
    if GlobalHydra.instance().is_initialized():
        loader: Any = GlobalHydra.instance().config_loader()
        return loader.load_configuration("config", list(overrides), RunMode.RUN)
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _known_keys() -> list[str]:
    """Every key of the default configuration, as overrides name it, and the groups."""
    config = _composed()
    found: list[str] = []

    def walk(prefix: str, node: object) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                found.append(f"{prefix}{key}")
                walk(f"{prefix}{key}.", value)

    walk("", OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])))
    return [
        *found,
        "hydra.run.dir",
        "hydra.sweep.dir",
        "hydra.sweeper.params",
        "hydra.sweeper.also",
        "hydra.sweeper.search",
    ]


def resolve(checkpoint: object) -> object:
    """A checkpoint, or a file, inside an installed package (`pkg://package/folder`) as a path; of an extra (`gguf://package`)
    the folder that holds its file of llama.cpp, or None where it is not installed."""
    if isinstance(checkpoint, str) and checkpoint.startswith(EXTRA):
        found = find_spec(checkpoint.removeprefix(EXTRA)) if find_spec("gguf") else None  # a spec imports nothing
        return found.submodule_search_locations[0] if found and found.submodule_search_locations else None
    if not isinstance(checkpoint, str) or not checkpoint.startswith(PACKAGE):
        return checkpoint
    package, _, rest = checkpoint.removeprefix(PACKAGE).partition("/")
    try:
        return str(files(package).joinpath(rest))
    except (ModuleNotFoundError, ValueError):
        raise TripathError(f"model.checkpoint: no package {package!r} ({checkpoint})") from None
