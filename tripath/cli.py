"""The command line: Hydra composes a configuration, this builds the experiment, runs it and prints what came out."""

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tripath.errors import TripathError

if TYPE_CHECKING:
    from tripath.experiment import Experiment, Generated

PASSED, FAILED, BAD_INPUT = 0, 1, 2
PACKAGE = "pkg://"
_statuses: list[int] = []


def run() -> int:
    """Run the command line; returns the exit status, the worst one of a multirun."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback of its own
    _statuses.clear()
    try:
        _main()
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except (HydraException, OmegaConfBaseException, TripathError) as error:
        _print_error(_one_line(error))
        return BAD_INPUT
    return max(_statuses, default=PASSED)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        _statuses.append(_job(config, folder))
    except (TripathError, HydraException, OmegaConfBaseException) as error:
        _statuses.append(BAD_INPUT)
        _print_error(_one_line(error))
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _job(config: DictConfig, folder: Path) -> int:
    """Everything between a configuration and its exit status."""
    experiment, default_prompt = build_experiment(config)
    # Heavy imports and the two slow starts overlap with compiling.
    from tripath.launch import Cluster

    cluster = Cluster(address=config.launch.address, num_cpus=config.launch.num_cpus)
    try:
        return _run_experiment(config, folder, experiment, default_prompt, cluster)
    finally:
        cluster.close()


def _run_experiment(config: DictConfig, folder: Path, experiment: "Experiment", default_prompt, cluster) -> int:  # noqa: ANN001
    from tripath.compiler import compile_program
    from tripath.console import print_outcome, progress
    from tripath.experiment import Outcome
    from tripath.report import write_files
    from tripath.tracking import Store
    from tripath.validation import validate

    prompts, texts, tokenizer = read_prompts(experiment, default_prompt)
    program = compile_program(
        experiment.model, experiment.workload, experiment.hardware, experiment.numerics, [len(p) for p in prompts]
    )
    store = None
    if config.tracking.enabled:
        store = Store(uri=config.tracking.uri, folder=Path(config.tracking.folder), experiment=config.tracking.experiment)
    with progress() as show:
        results, seconds, accuracy = cluster.run(program, experiment, prompts, show)
        order = [name for name in experiment.paths if name in results]
        discrepancies = validate(results, experiment.settings)
        outcome = Outcome(
            program=program, results={name: results[name] for name in order}, wall_seconds=seconds,
            discrepancies=discrepancies, fail_on=experiment.settings.fail_on,
            generated=_generated(accuracy, texts, tokenizer),
        )  # fmt: skip
        if store:
            show({"mlflow": "opens the store"})
            store.wait()
        written = write_files(folder, experiment, outcome, OmegaConf.to_yaml(config, resolve=True))
        tracked = None
        if store:
            show({"mlflow": "writes the run"})
            try:
                tracked = store.record(experiment, outcome, _parameters(config), written)
            except TripathError as error:  # the results are on disk already
                _print_error(f"{error}; the results are kept in {folder}")
    print_outcome(experiment, outcome, tracked, str(folder))
    return PASSED if outcome.status == "passed" else FAILED


def build_experiment(config: DictConfig) -> "tuple[Experiment, str | None]":
    """The experiment of a composed configuration, and the prompt to use where the user gives none.

    Raises:
        TripathError: a value breaks a rule.
    """
    from tripath.experiment import Experiment

    workload = OmegaConf.to_container(config.workload, resolve=True)
    default_prompt = workload.pop("default_prompt")
    model = OmegaConf.to_container(config.model, resolve=True)
    model["checkpoint"] = _resolve(model["checkpoint"])
    experiment = Experiment(
        model=_instantiate(model), workload=_instantiate(workload), hardware=_instantiate(config.hardware),
        numerics=_instantiate(config.numerics), paths=list(config.paths), settings=_instantiate(config.validation),
        options=OmegaConf.to_container(config.simulator, resolve=True),
    )  # fmt: skip
    given = experiment.workload
    if sum(value is not None for value in (given.prompt, given.prompts_file, given.prompt_length)) > 1:
        raise TripathError("workload: give one of workload.prompt, workload.prompts_file and workload.prompt_length")
    return experiment, default_prompt


def read_prompts(experiment: "Experiment", default_prompt: str | None) -> tuple[list[list[int]], list[str], object | None]:
    """Token ids and texts of the prompts, one per sequence, and the tokenizer (None for a model without one).

    Where only a length is given, the prompt is that many tokens, counted up from 0.

    Raises:
        TripathError: no prompt, an unreadable file, an empty prompt, or a number of prompts other than the batch.
    """
    workload, model = experiment.workload, experiment.model
    tokenizer = None
    if model.checkpoint is not None:
        from accuracy.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(model.checkpoint)
    if workload.prompt_length is not None:
        tokens = [i % model.vocab for i in range(3, 3 + workload.prompt_length)]
        return [tokens] * workload.batch, [f"{workload.prompt_length} tokens"] * workload.batch, tokenizer
    if tokenizer is None:
        raise TripathError(f"workload.prompt_length: model {model.name} has no tokenizer, give the prompt's length in tokens")
    texts = _prompt_texts(workload, default_prompt)
    prompts = [tokenizer.encode(text) for text in texts]
    if not all(prompts):
        raise TripathError("workload.prompt: the prompt is empty")
    unknown = sorted({word for text in texts for word in tokenizer.unknown_words(text)})
    if unknown:
        from tripath.console import error_out

        error_out.print(f"note: the model's vocabulary lacks: {', '.join(unknown[:8])}", style="yellow", markup=False)
    return prompts, texts, tokenizer


def _prompt_texts(workload, default_prompt: str | None) -> list[str]:  # noqa: ANN001
    if workload.prompts_file is not None:
        try:
            lines = Path(workload.prompts_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TripathError(f"workload.prompts_file: cannot read {workload.prompts_file} ({error})") from None
        texts = [line.strip() for line in lines if line.strip()]
        if len(texts) != workload.batch:
            raise TripathError(f"workload.batch: {workload.batch} sequences, but {workload.prompts_file} has {len(texts)} prompts")
        return texts
    text = workload.prompt if workload.prompt is not None else default_prompt
    if text is None:
        raise TripathError("workload.prompt: no prompt is given")
    return [text] * workload.batch


def _generated(accuracy, texts: Sequence[str], tokenizer) -> "Generated | None":  # noqa: ANN001
    from tripath.experiment import Generated

    if accuracy is None:
        return None
    return Generated(
        prompts=texts, texts=[tokenizer.decode(ids) for ids in accuracy.token_ids], token_ids=accuracy.token_ids,
        trip_counts=accuracy.trip_counts,
    )  # fmt: skip


def _parameters(config: DictConfig) -> dict[str, str]:
    """The configuration flattened to dotted keys, without what only says where things go."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key != "_target_":
                    walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif not prefix.startswith(("tracking", "launch", "hardware.timing", "validation")):
            flat[prefix] = str(value)

    walk("", OmegaConf.to_container(config, resolve=True))
    return flat


def _instantiate(node: object):  # noqa: ANN202
    """The object of a node with `_target_`; a rule that its class checks surfaces as that class's error."""
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, TripathError):
            raise error.__cause__ from None
        raise TripathError(_one_line(error)) from None


def _resolve(checkpoint: str | None) -> str | None:
    """A checkpoint inside an installed package (`pkg://package/folder`) as a path."""
    if checkpoint is None or not checkpoint.startswith(PACKAGE):
        return checkpoint
    package, _, rest = checkpoint.removeprefix(PACKAGE).partition("/")
    return str(files(package).joinpath(rest))


def _one_line(error: BaseException) -> str:
    """The first telling line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _print_error(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
