"""One job: an experiment's program is compiled, its paths run on it, and what they found is compared."""

import math
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from npu.files import write_atomically
from npu.program import Program
from npu_compiler import check_capacity, compile_program, target
from tripath.experiment import Experiment, Generated, Outcome, Prompts
from tripath.experiment.prompts import read_prompts
from tripath.paths import Fact, giver_of
from tripath.report.run_report import write_files
from tripath.run.comparison import Show, with_comparisons
from tripath.run.pipeline import INPUT_ERRORS, PathRun, run_paths
from tripath.run.results import NO_CACHE, Cache, digest_of
from tripath.run.schedules import Choice, search
from tripath.run.scores import scored, with_costs
from tripath.validation import validate

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A compiled program and the prompts; None where no path needs them. `choice`: what a search of schedules found."""

    program: Program | None
    prompts: Prompts | None
    choice: Choice | None = None

    @property
    def token_ids(self) -> list[list[int]]:
        """Token ids, one list per sequence."""
        return self.prompts.token_ids if self.prompts else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job of a sweep. `name` says what is its own; `configuration` and `command` are kept with what it leaves, which is
    a row of the sweep's table alone where `row_only`."""

    number: int
    name: str
    folder: Path
    experiment: Experiment
    default_prompt: str | None
    configuration: str
    command: str
    row_only: bool = False

    @property
    def light(self) -> bool:
        """True if the job takes milliseconds and leaves no files, so that a task of its own would cost more than the job."""
        return self.row_only and all(row.light for row in self.experiment.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """The outcome of a job that a worker hands back: status, failures, metrics by full name, wall seconds, cached paths, files,
    and words that the model's vocabulary lacks."""

    status: str
    failures: Sequence[str]
    metrics: Mapping[str, float]
    wall_seconds: Mapping[str, float]
    cached: Sequence[str]
    files: Mapping[str, bytes]
    unknown_words: Sequence[str]


def prepare(
    experiment: Experiment, default_prompt: str | None, cache: Cache = NO_CACHE, show: Show = lambda _: None
) -> Prepared:
    """Read the prompts and compile the program, after a search for its schedule where `compiler.schedule` asks for one; `show` is
    told how far it is.

    Raises:
        TripathError: the prompts or the combination are not possible.
    """
    if not experiment.reads_prompts:
        return Prepared(program=None, prompts=None)
    prompts = read_prompts(experiment, default_prompt)
    if not experiment.runs_program:
        return Prepared(program=None, prompts=prompts)
    lengths = [len(tokens) for tokens in prompts.token_ids]
    e = experiment
    choice = search(e, prompts.token_ids, cache, show) if e.compiler.searches else None
    options = e.compiler if choice is None else choice.options
    program = compile_program(e.model, e.workload, e.hardware, e.numerics, lengths, options)
    return Prepared(program=program, prompts=prompts, choice=choice)


def compile_key(experiment: Experiment, default_prompt: str | None) -> str:
    """Digest of what `prepare` depends on: jobs with the same share one program."""
    e = experiment
    needs = e.runs_program, e.reads_prompts
    machine = e.hardware if e.compiler.searches else target(e.hardware)
    return digest_of(e.model, e.workload, machine, e.numerics, e.compiler, default_prompt, needs)


def outcome_of(
    experiment: Experiment, prepared: Prepared, runs: Mapping[str, PathRun], show: Show = lambda _: None
) -> Outcome:
    """The outcome of an experiment: its results, compared with each other, with theory, and with measurements from elsewhere."""
    settings, giver = experiment.settings, giver_of(Fact.TOKENS, experiment.rows)
    results = {name: result for name in experiment.paths if (result := runs[name].result) is not None}
    generated = _generated(experiment, prepared.prompts, runs[giver.name]) if giver else None
    if giver and generated and prepared.prompts:
        workload, expected = experiment.workload, prepared.prompts.results
        results = scored(results, giver.name, generated, expected, workload.answer, workload.block_length)
    results = with_costs(results, experiment)
    outcome = Outcome(
        program=prepared.program, results=results, discrepancies=validate(results, settings), fail_on=settings.fail_on,
        wall_seconds={name: runs[name].wall_seconds for name in experiment.paths},
        generated=generated,
        cached=[name for name in experiment.paths if runs[name].cached], reference_only=experiment.reference_only,
        prompt_lengths=[len(tokens) for tokens in prepared.token_ids],
        compiler=None if prepared.choice is None else prepared.choice.options,
        choice="" if prepared.choice is None else prepared.choice.told,
    )  # fmt: skip
    return with_comparisons(experiment, outcome, show, [run.findings for run in runs.values()])


def run_job(prepared: Prepared, job: Job, cache: Cache) -> JobOutcome:
    """Run one job of a sweep in a worker. Its files are handed back: the worker's disk may not be the driver's.

    Raises:
        TripathError: a simulator refuses its input, or HBM does not hold the program's tensors.
    """
    if prepared.program is not None:
        check_capacity(prepared.program.hbm, job.experiment.hardware)
    runs = run_paths(prepared.program, job.experiment, prepared.token_ids, cache)
    outcome = outcome_of(job.experiment, prepared, runs)
    files = {} if job.row_only else files_of(job.experiment, outcome, job.configuration, job.command, job.name)
    found = {name: result.metrics for name, result in outcome.results.items()}
    metrics = {
        f"{name}.{key}": value
        for name, row in {**found, **outcome.devices}.items()
        for key, value in row.items()
        if math.isfinite(value)
    }
    failures = [f"{row.metric} ({row.kind})" for row in outcome.failures]
    return JobOutcome(
        status=outcome.status, failures=failures, metrics=metrics, wall_seconds=outcome.wall_seconds,
        cached=outcome.cached, files=files, unknown_words=prepared.prompts.unknown_words if prepared.prompts else [],
    )  # fmt: skip


def files_of(
    experiment: Experiment, outcome: Outcome, configuration: str, command: str, name: str | None = None
) -> dict[str, bytes]:
    """The files of a run by name, as `write_files` writes them: for who has another disk than the driver."""
    with tempfile.TemporaryDirectory() as place:
        written = write_files(Path(place), experiment, outcome, configuration=configuration, command=command, name=name)
        return {file.name: file.read_bytes() for file in written}


def keep_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a run, report.json last: where it is, all is. Of a run that cannot be written whole nothing is left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)
    try:
        for name, content in files.items():
            if name != REPORT:
                (folder / name).write_bytes(content)
        write_atomically(folder / REPORT, files[REPORT])
    except BaseException:  # also where the user ends it
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def run_light_jobs(jobs: Sequence[Job], cache: Cache) -> list[JobOutcome | Exception]:
    """Outcome or error of each job, one run after the other; those of one program that stand together share it."""
    found: list[JobOutcome | Exception] = []
    key, prepared = None, None
    for job in jobs:
        inputs = job.experiment, job.default_prompt
        try:
            if prepared is None or compile_key(*inputs) != key:
                key, prepared = compile_key(*inputs), prepare(*inputs, cache)
            found.append(run_job(prepared, job, cache))
        except INPUT_ERRORS as error:
            found.append(error)
        except Exception:  # noqa: BLE001  the others go on
            found.append(RuntimeError(traceback.format_exc()))
    return found


def _generated(experiment: Experiment, prompts: Prompts | None, run: PathRun) -> Generated | None:
    if prompts is None or prompts.tokenizer is None:
        return None
    assert run.token_ids is not None
    assert run.trip_counts is not None
    assert run.commit_steps is not None
    decode, model = prompts.tokenizer.decode, experiment.model
    special = {model.mask_id: "[mask]"} | dict.fromkeys(model.end_ids, "[end]")
    return Generated(
        prompts=prompts.texts, texts=[decode(list(ids)) for ids in run.token_ids], token_ids=run.token_ids,
        tokens=[[special.get(token) or decode([token]) or f"[{token}]" for token in ids] for ids in run.token_ids],
        commit_steps=run.commit_steps, trip_counts=run.trip_counts,
    )  # fmt: skip
