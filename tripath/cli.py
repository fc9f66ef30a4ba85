"""The command line: Hydra composes a configuration, this builds the experiment, runs it and prints what came out."""

import importlib
import os
import pickle
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tripath.errors import NotInstalledError, TripathError, did_you_mean, print_error

if TYPE_CHECKING:
    from tripath.experiment import Experiment
    from tripath.job import Job
    from tripath.launch import Cluster, Launch
    from tripath.model import ModelSpec
    from tripath.multirun import Sweep
    from tripath.search import Search
    from tripath.tracking import Store, Tracking
    from tripath.validation import Settings

PASSED, FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 3, 130
PACKAGE = "pkg://"
PROMPT = "workload.prompt="
ROW_ONLY = "row_only=true"
INPUT_ERRORS = (TripathError, HydraException, OmegaConfBaseException, OSError)
WIDTH_WITHOUT_TERMINAL = "120"


def run() -> int:
    """Run the command line; returns the exit status, the worst one of a multirun."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback of its own
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", WIDTH_WITHOUT_TERMINAL)  # tables in a log need not fit a small screen
    _command.forget()
    try:
        _check_arguments()
        _main()
        _command.end_sweep(whole=True)
    except KeyboardInterrupt:
        _command.end_sweep(whole=False)
        _command.close()
        print_error("interrupted")
        return INTERRUPTED
    except (*INPUT_ERRORS, ValueError) as error:  # Hydra refuses combinations of its own flags with ValueError
        print_error(one_line(error))
        return BAD_INPUT
    except Exception:  # noqa: BLE001  a defect of ours has a status of its own
        traceback.print_exc()
        return INTERNAL_ERROR
    finally:
        _command.end_sweep(whole=False)
        _command.close()
        _command.tidy_folder()
    return max(_command.statuses, default=PASSED)


class _Command:
    """What the jobs of one command share: exit statuses, folders that Hydra makes, a Ray cluster, a tracking store; of a
    sweep also its settings, what composes its jobs, and the axes that are its own whatever the jobs are given."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._folder: Path | None = None
        self._made: list[Path] = []
        self._before: set[Path] = set()
        self._cluster: tuple[Launch, Cluster] | None = None
        self._store: tuple[Tracking, Store] | None = None
        self._sweep: Sweep | None = None
        self._composer: Composer | None = None
        self.shared: tuple[Launch, Tracking, str | None] | None = None
        self.axes: Mapping[str, Sequence[str]] = {}

    def forget(self) -> None:
        """Begin anew: a process may run several commands, each in a folder of its own."""
        self.statuses.clear()
        self._store = self._sweep = self._composer = self.shared = None
        self.axes = {}

    def sweep(self, config: DictConfig) -> "Sweep":
        """The sweep of this command."""
        from tripath.multirun import Sweep

        if self._sweep is None:
            command = shlex.join(["tripath", "--multirun", *config.hydra.overrides.task])
            self._sweep = Sweep(folder=Path(config.hydra.sweep.dir).absolute(), command=command)
        return self._sweep

    def end_sweep(self, *, whole: bool) -> None:
        """End the sweep, where there is one that has not ended."""
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            sweep.end(whole=whole)
            self.statuses.append(sweep.status)

    def composer(self, loader: ConfigLoader, config: DictConfig) -> "Composer":
        """What composes the jobs of the sweep."""
        self._composer = self._composer or Composer(loader, config)
        return self._composer

    def cluster(self, launch: "Launch") -> "Cluster":
        """The cluster, starting in the background where it is new."""
        from tripath.launch import Cluster

        if self._cluster is None or self._cluster[0] != launch:
            self.close()
            self._cluster = launch, Cluster(launch)
        return self._cluster[1]

    def store(self, tracking: "Tracking") -> "Store | None":
        """The store, opening in the background where it is new; None where nothing is tracked."""
        from tripath.tracking import Store

        if not tracking.enabled:
            return None
        if self._store is None or self._store[0] != tracking:
            self._store = tracking, Store(tracking)
        return self._store[1]

    def close(self) -> None:
        """Leave the cluster."""
        if self._cluster is not None:
            self._cluster[1].close()
        self._cluster = None

    def note_folder(self, folder: Path) -> None:
        """Note what is there before Hydra makes `folder`: its missing parents, the deepest first, and its contents."""
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._folder, self._before = folder, set(folder.iterdir()) if folder.is_dir() else set()

    def tidy_folder(self) -> None:
        """Remove what Hydra made and nothing was written to."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in set(self._folder.iterdir()) - self._before:
            _remove_if_empty(path)
        record = self._folder / "multirun.yaml"
        if record not in self._before and list(self._folder.iterdir()) == [record]:
            record.unlink()
        for path in self._made:
            _remove_if_empty(path)


_command = _Command()


class NoteFolder(Callback):
    """The Hydra callback of conf/config.yaml: it runs before Hydra makes a folder."""

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Note the folder of a run."""
        _command.note_folder(Path(config.hydra.run.dir).absolute())

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Note the folder of a sweep."""
        _command.note_folder(Path(config.hydra.sweep.dir).absolute())


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _main(config: DictConfig) -> None:
    """One job. It returns whatever happens: an exception or an exit would end a sweep."""
    try:
        status = _job(config, Path(HydraConfig.get().runtime.output_dir))
    except INPUT_ERRORS as error:
        print_error(f"job {HydraConfig.get().job.num}: {one_line(error)}" if _in_sweep() else one_line(error))
        status = BAD_INPUT
    except Exception:  # noqa: BLE001  a defect of ours has a status of its own
        traceback.print_exc()
        status = INTERNAL_ERROR
    _command.statuses.append(status)


def _job(config: DictConfig, folder: Path) -> int:
    """Everything between a configuration and its exit status."""
    experiment, default_prompt = build_experiment(config)
    if experiment.settings.baseline:
        raise TripathError("validation.baseline: is that of a sweep, add --multirun (with hydra/launcher=cluster)")
    launch, tracking = build("launch", config.launch), build("tracking", config.tracking)
    from tripath.console import error_out, out, print_outcome, progress
    from tripath.job import known_runs, outcome_of, prepare, read_measured
    from tripath.report import write_files

    read_measured(experiment)  # what cannot be read is refused before anything starts
    prepared = prepare(experiment, default_prompt)
    if prepared.prompts and prepared.prompts.unknown_words:
        words = ", ".join(prepared.prompts.unknown_words[:8])
        error_out.print(f"note: the model's vocabulary lacks: {words}", style="yellow", markup=False)
    store = _command.store(tracking)
    program, tokens = prepared.program, prepared.token_ids
    runs = known_runs(program, experiment, tokens, launch.results)
    # The input is good. Compiling takes milliseconds, so the slow start begins only now: bad input stays quick.
    cluster = _command.cluster(launch) if runs is None else None
    if _in_sweep():
        out.rule(f"job {HydraConfig.get().job.num}: {' '.join(_overrides())}")
    with progress() as show:
        if cluster is not None:
            runs = cluster.run(program, experiment, tokens, show)
        if experiment.settings.streams:
            show({"streams": "run through the DRAM model"})
        outcome = outcome_of(experiment, prepared, runs or {}, show)
        if store:
            show({"mlflow": "opens the store"})
            store.wait()
        show({"report": "is written"})
        configuration, command = OmegaConf.to_yaml(config, resolve=True), shlex.join(["tripath", *_overrides()])
        write_files(folder, experiment, outcome, configuration=configuration, command=command)
        tracked = None
        if store:
            show({"mlflow": "writes the run"})
            try:
                tracked = store.log_folder(folder)
            except TripathError as error:  # the results are on disk already
                later = f"the results are kept, `tripath-sync {folder}` logs them later"
                error_out.print(f"note: {error}; {later}", style="yellow", markup=False)
    print_outcome(experiment, outcome, tracked, str(folder))
    return PASSED if outcome.status == "passed" else FAILED


def run_jobs(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Run a batch of jobs, which `job_overrides` make of the master `config`; all batches of a command are one sweep."""
    from tripath.baseline import read_baseline

    sweep = _command.sweep(config)
    values = [_values(overrides) for overrides in job_overrides]
    keys = dict.fromkeys(key for row in values for key in row)
    differ = [key for key in keys if key in _command.axes or len({row.get(key) for row in values}) > 1]
    numbers = range(first, first + len(values))
    sweep.swept |= {
        number: {k: row[k] for k in differ if k in row} for number, row in zip(numbers, values, strict=True)
    }
    compose = _command.composer(loader, config)

    def jobs() -> "Iterator[Job]":
        for number, overrides in zip(numbers, job_overrides, strict=True):
            try:
                job, settings = _job_of(*compose(number, overrides), number, overrides, sweep.swept[number])
                if settings != (_command.shared or settings):
                    raise TripathError("launch, tracking, validation.baseline: are the same for all jobs of a sweep")
            except NotInstalledError:  # no job of this sweep will find it
                raise
            except INPUT_ERRORS as error:
                sweep.refuse(number, one_line(error))
            else:
                _command.shared = settings
                yield job

    composed = jobs()
    head = next(composed, None)
    if head is not None and _command.shared is not None:
        launch, tracking, baseline = _command.shared
        if sweep.launch is None:
            sweep.baseline = None if baseline is None else read_baseline(baseline)
            sweep.launch, sweep.store = launch, _command.store(tracking)
            _command.cluster(launch)
            if sweep.store:
                sweep.store.wait()
        sweep.run(chain([head], composed), _command.cluster(launch))
    return [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in numbers]


def run_search(
    launcher: Launcher, config: DictConfig, arguments: Sequence[str], settings: Mapping[str, object]
) -> None:
    """Search a space of designs: what `arguments` sweep are its axes, the rest is the same for all.

    Raises:
        TripathError: a setting breaks a rule, or no axis is swept.
    """
    parsed = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(list(arguments))}
    axes = {
        key: [*map(str, override.sweep_string_iterator())]
        for key, override in parsed.items()
        if override.is_sweep_override()
    }
    fixed = [str(override.input_line) for key, override in parsed.items() if key not in axes]
    chosen = _values(fixed).get("numerics", str(config.hydra.runtime.choices.get("numerics", "")))
    own = {"quality": _resolve(settings.get("quality")), "numerics": chosen}
    given = {**settings, **own, "_target_": "tripath.search.Search"}
    search: Search = build("hydra.sweeper.search", OmegaConf.create(given))
    sweep, done = _command.sweep(config), 0
    sweep.extra, _command.axes = search, axes
    for batch in search.batches(axes, sweep.rows):
        last = search.confirm if batch.confirms else [ROW_ONLY]
        jobs = [[*(f"{key}={value}" for key, value in choice.items()), *fixed, *last] for choice in batch.designs]
        launcher.launch(jobs, initial_job_idx=done)
        done += len(jobs)


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """What a job is given, by key."""
    values: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        values[key.lstrip("+")] = value
    return values


def _job_of(
    config: DictConfig, folder: Path, number: int, overrides: Sequence[str], swept: Mapping[str, str]
) -> "tuple[Job, tuple[Launch, Tracking, str | None]]":
    """A job of a sweep, and the settings that all its jobs share."""
    from tripath.job import Job, read_measured
    from tripath.summary import name_of

    experiment, default_prompt = build_experiment(config)
    read_measured(experiment)
    job = Job(
        number=number, name=name_of(swept) or f"job {number}", folder=folder,
        experiment=experiment, default_prompt=default_prompt,
        configuration="" if config.row_only else OmegaConf.to_yaml(config, resolve=True),
        command=shlex.join(["tripath", *(each for each in overrides if each != ROW_ONLY)]), row_only=bool(config.row_only),
    )  # fmt: skip
    settings = build("launch", config.launch), build("tracking", config.tracking), experiment.settings.baseline
    return job, settings


class Composer:
    """Composes the jobs of a sweep: once for each choice of files, and sets a job's values on a copy of that.

    Hydra itself would read and merge every file for every job, which takes longer than an analytical run.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:  # noqa: ANN401  its interface lacks the repository
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._known: dict[tuple[str, ...], tuple[DictConfig, bytes]] = {}

    def __call__(self, number: int, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
        """The configuration of a job, without Hydra's own node, and its folder.

        Raises:
            HydraException, OmegaConfBaseException: it cannot be composed.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        files = [override for override in parsed if self._chooses_file(override)]
        whole, packed = self._of_files(tuple(str(override.input_line) for override in files))
        config: DictConfig = pickle.loads(packed)  # noqa: S301  made below, in this process
        ConfigLoaderImpl._apply_overrides_to_config([each for each in parsed if each not in files], config)  # noqa: SLF001
        with open_dict(whole.hydra):
            job = whole.hydra.job
            job.num, job.id = number, str(number)
            job.override_dirname = get_overrides_dirname(parsed, **job.config.override_dirname)
        return config, Path(whole.hydra.sweep.dir).absolute() / str(whole.hydra.sweep.subdir)

    def _chooses_file(self, override: Override) -> bool:
        return self._loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)

    def _of_files(self, files: tuple[str, ...]) -> tuple[DictConfig, bytes]:
        if files not in self._known:
            whole = self._loader.load_sweep_config(self._master, list(files))
            HydraConfig.instance().cfg = cast("Any", whole)  # `${hydra:...}` in a configuration looks here
            task = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
            self._known[files] = whole, pickle.dumps(task)
        return self._known[files]


def build_experiment(config: DictConfig) -> "tuple[Experiment, str | None]":
    """The experiment of a composed configuration, and the prompt to use where the user gives none.

    Raises:
        TripathError: a value breaks a rule.
    """
    from tripath.experiment import QUALITY, Experiment, read_prompts_file
    from tripath.workload import reference_only

    groups = {
        "model",
        "hardware",
        "workload",
        "numerics",
        "simulator",
        "validation",
        "launch",
        "tracking",
        "technology",
    }
    known = (*sorted(groups), "devices", "paths", "row_only")  # of devices there are several, one below the other
    for key in config:
        if key not in known:
            raise TripathError(f"{key}: no such key, one of {', '.join(known)}")
    for key in (*sorted(groups), "devices"):
        if not OmegaConf.is_dict(config.get(key)):
            raise TripathError(f"{key}: needs a mapping, got {config.get(key)!r}")
    workload: Any = OmegaConf.to_container(config.workload, resolve=True)
    default_prompt = workload.pop("default_prompt", None)
    if default_prompt is not None and not isinstance(default_prompt, str):
        raise TripathError(f"workload.default_prompt: must be text, got {default_prompt!r}")
    if sum(workload.get(key) is not None for key in ("prompt", "prompts_file", "prompt_length")) > 1:
        raise TripathError("workload: give one of prompt, prompts_file and prompt_length, and null for the others")
    if workload.get("batch") is None:
        name = workload.get("prompts_file")
        workload["batch"] = 1 if name is None else len(read_prompts_file(str(name)))
    prompt = workload.get("prompt")
    if isinstance(prompt, str):  # kept from instantiate, which would interpolate a `${` in it
        workload["prompt"] = None
    model: Any = OmegaConf.to_container(config.model, resolve=True)
    model["checkpoint"] = _resolve(model.get("checkpoint"))
    if isinstance(sliced := model.get("only_layers"), list):
        if not sliced or not all(isinstance(layer, int) and 0 <= layer < model["layers"] for layer in sliced):
            raise TripathError(f"model.only_layers: must list layers of 0 to {model['layers'] - 1}, got {sliced}")
        model["layers"] = len(sliced)
    paths, own = config.paths, build("model", model)
    settings = build("validation", config.validation)
    references = [row for row in settings.references if _applies(row.when, config)]
    options: Any = OmegaConf.to_container(config.simulator, resolve=True)
    experiment = Experiment(
        model=own, workload=build("workload", workload), hardware=build("hardware", config.hardware),
        numerics=build("numerics", config.numerics), settings=replace(settings, references=references),
        technology=build("technology", config.technology), **_other_hardware(config, settings, own),
        paths=[str(path) for path in paths] if OmegaConf.is_list(paths) else [str(paths)], options=options,
    )  # fmt: skip
    if QUALITY in experiment.paths:
        if find_spec("torch") is None:
            raise NotInstalledError("paths: quality needs torch, which is not installed; pip install 'tripath[study]'")
        if reference_only(
            experiment.workload, experiment.numerics
        ):  # no program: the paths that would run it are left out
            experiment = replace(experiment, paths=[QUALITY])
    if isinstance(prompt, str):
        experiment = replace(experiment, workload=replace(experiment.workload, prompt=prompt))
    return experiment, default_prompt


def _other_hardware(config: DictConfig, settings: "Settings", own: "ModelSpec") -> dict[str, Any]:
    """Device models, measurements, and the models that these and published figures name; `own` is that of the run."""
    from tripath.validation import check_names, published_models, read_measurements

    measurements = [] if settings.measurements is None else read_measurements(settings.measurements)
    devices = {str(name): build(f"devices.{name}", node) for name, node in config.devices.items()}
    check_names(measurements, devices, config.hardware.name if config.paths else None)
    names = {row.model for row in measurements} | (published_models() if settings.published else set())
    models = {own.name: own}
    for name in sorted(names - {own.name}):
        try:
            loaded = GlobalHydra.instance().config_loader().load_configuration("config", [f"model={name}"], RunMode.RUN)
        except HydraException as error:
            raise TripathError(f"validation.measurements: {one_line(error)}") from None
        models[name] = build("model", {**dict(loaded.model), "checkpoint": None})
    return {"devices": devices, "measurements": measurements, "models": models}


def _applies(when: Mapping[str, object], config: DictConfig) -> bool:
    """Whether a reference was measured for this configuration.

    Raises:
        TripathError: it names a key that does not exist.
    """
    for key, value in when.items():
        try:
            given = OmegaConf.select(config, key, throw_on_missing=True)
        except OmegaConfBaseException:
            given = None
        if given is None:
            raise TripathError(f"validation.references: when names {key}, no such key")
        if given != value:
            return False
    return True


def build(key: str, node: object) -> Any:  # noqa: ANN401  whatever `_target_` names
    """The object that the configuration node `key` describes, its values checked against the types of its class.

    Raises:
        TripathError: an unknown or missing key, a value of the wrong type, or a rule of the class is broken.
    """
    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return _built(key, pickle.dumps(values))


@lru_cache(maxsize=256)
def _built(key: str, packed: bytes) -> Any:  # noqa: ANN401  as build
    """As `build`, once for the same values: most groups are the same in all jobs of a sweep, and nobody changes what is built."""
    from tripath.experiment import check_values

    values = pickle.loads(packed)  # noqa: S301  made above, in this process
    check_values(key, values)
    try:
        return _made(values)
    except TripathError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise TripathError(f"{key}: {one_line(error)}") from None


def _made(values: Any) -> Any:  # noqa: ANN401  a value of a configuration, and whatever its `_target_` names
    """What a node describes, as hydra.utils.instantiate makes it of plain values, in a fiftieth of the time."""
    if isinstance(values, list):
        return [_made(value) for value in values]
    if not isinstance(values, dict):
        return values
    made = {key: _made(value) for key, value in values.items() if key != "_target_"}
    if "_target_" not in values:
        return made
    module, _, name = str(values["_target_"]).rpartition(".")
    return getattr(importlib.import_module(module), name)(**made)


def one_line(error: BaseException) -> str:
    """The telling part of an error in one line; Hydra's own errors in the words of this command."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: no option {option!r}, one of {', '.join(error.options)}"
    text = str(error).partition("\nConfig search path")[0]
    if found := re.match(r"Could not override '([^']*)'", text):
        return f"{found[1]}: no such key, `tripath --cfg job` prints all{did_you_mean(found[1], _known_keys())}"
    if text.startswith("Ambiguous value"):
        return f"{text.splitlines()[0]}; write [a,b] for a list, quote a text with commas, or sweep with --multirun"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "https://hydra.cc" not in line]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _known_keys() -> list[str]:
    """Every key of the default configuration, as overrides name it, and the groups."""
    if GlobalHydra.instance().is_initialized():
        loader: Any = GlobalHydra.instance().config_loader()
        config: DictConfig = loader.load_configuration("config", [], RunMode.RUN)
    else:
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("config")
    found: list[str] = []

    def walk(prefix: str, node: object) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                found.append(f"{prefix}{key}")
                walk(f"{prefix}{key}.", value)

    walk("", OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])))
    return found


def _check_arguments() -> None:
    """Refuse unknown flags in one line, and let a prompt hold any character."""
    if "--multirun" not in sys.argv and "-m" not in sys.argv:
        sys.argv[1:] = [quote_prompt(argument) for argument in sys.argv[1:]]
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise TripathError(f"arguments: {message}; see tripath --help")

    parser.error = refuse
    parser.parse_args()


def quote_prompt(argument: str) -> str:
    """`workload.prompt=TEXT` with TEXT quoted: in Hydra's grammar commas, brackets and signs have a meaning."""
    text = argument.removeprefix(PROMPT)
    if text in (argument, "null") or text[:1] in ("'", '"'):
        return argument
    # A backslash has a meaning only before what it escapes: an interpolation, a quote, and the closing quote.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)("|\Z)', lambda run: run[1] * 2 + ('\\"' if run[2] else ""), escaped)
    return f'{PROMPT}"{escaped}"'


def _resolve(checkpoint: object) -> object:
    """A checkpoint inside an installed package (`pkg://package/folder`) as a path."""
    if not isinstance(checkpoint, str) or not checkpoint.startswith(PACKAGE):
        return checkpoint
    package, _, rest = checkpoint.removeprefix(PACKAGE).partition("/")
    try:
        return str(files(package).joinpath(rest))
    except (ModuleNotFoundError, ValueError):
        raise TripathError(f"model.checkpoint: no package {package!r} ({checkpoint})") from None


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task)
