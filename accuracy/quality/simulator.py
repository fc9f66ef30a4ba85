"""The path `quality`: how many held-out problems are solved, and how far each step is from the unquantised model."""

import math
from dataclasses import dataclass, replace

from accuracy.quality.calibrate import calibrate, plant_outliers
from accuracy.quality.metrics import Comparison, kv_bytes_per_token
from accuracy.quality.model import UNQUANTISED, StudyModel
from accuracy.quality.problems import CALIBRATION_PROBLEMS, judge_of, load_problems, score
from dllm.answers import exact_match
from dllm.checkpoint import load_tensors
from dllm.model import ModelSpec
from dllm.numerics import CONFIDENCES, Numerics
from dllm.operators import Mask
from dllm.policies import DelayedCaching, FeatureCaching, Smoother
from dllm.workload import Workload
from npu.errors import TripathError
from npu.metrics import Result, Table
from npu.program.trace import Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityOutcome:
    """Result of the path, and a trace for the timing paths: the mean denoising steps of its problems."""

    result: Result
    trace: Trace


def simulate(
    *, model: ModelSpec, workload: Workload, numerics: Numerics, dataset: str = "", scoring: str = "", problems: int = 100,
    compared: int = 32, planted: float = 1.0, ranking: str | None = None,
) -> QualityOutcome:  # fmt: skip
    """Solve held-out problems of the model's checkpoint, in batches, under any policy and numerics.

    Args:
        model: Names the checkpoint.
        workload: The policy.
        numerics: Formats and scheme.
        dataset: A file of problems, JSON with `prompt` and `result` in each line; empty: the checkpoint's own.
        scoring: A module of one's own whose `solved(text, result)` judges a generated text, named on the command line; empty:
            `workload.answer` judges.
        problems: Held-out problems that are solved, the first ones.
        compared: Of these, so many at most are compared step by step with the FP32 model on the same canvases.
        planted: Gain of K outliers that leave the function as it is; 1: none.
        ranking: Precision of the FP32 model's confidences: bf16, fp32 or fp64; null: `numerics.confidences`, whose
            ties would else hide what a cache does to committed sets.

    Raises:
        TripathError: a value out of range, or the checkpoint lacks weights or problems.
    """
    _check(model, workload, numerics, problems, compared, planted, ranking)
    compared = min(compared, problems)
    judge, known = judge_of(workload, scoring), load_problems(model, dataset, any_result=bool(scoring))
    limit = len(known) - CALIBRATION_PROBLEMS
    if problems > limit:
        raise TripathError(f"simulator.quality.problems: {problems} exceed the {limit} that do not calibrate")
    tensors = load_tensors(model)
    if planted != 1:
        tensors = plant_outliers(tensors, model, planted)
    calibration = None
    if numerics.smoothing.smoother is Smoother.STATIC:
        prompts = [problem.prompt for problem in known[limit:]]
        calibration = calibrate(model, tensors, numerics, prompts, workload, lanes="bf16")
    mine = StudyModel(model, tensors, numerics, workload.block_length, lanes="bf16", calibration=calibration)
    ideal = StudyModel(model, tensors, replace(UNQUANTISED, confidences=ranking or numerics.confidences))
    comparison = Comparison(ideal, workload)
    solved, trips = 0, []
    for part, observer in ((known[:compared], comparison), (known[compared:problems], None)):
        right, steps = score(mine, part, workload, comparison=observer, judge=judge)
        solved, trips = solved + sum(right), trips + steps.tolist()
    steps_of_block = [sum(column) / problems for column in zip(*trips, strict=True)]
    prompt = sum(len(problem.prompt) for problem in known[:problems]) / problems
    metrics = {
        "problems": problems, "compared": compared, **exact_match(solved, problems), **comparison.summary,
        "kv_bytes_per_token": kv_bytes_per_token(
            model, numerics, workload.block_length, canvas=prompt + workload.generation_length
        ),
        "steps_per_block": sum(steps_of_block) / workload.blocks,
    }  # fmt: skip
    trace = trace_at(steps_of_block)
    table = Table(columns=["metric", "value"], rows=[[name, float(value)] for name, value in metrics.items()])
    result = Result(
        simulator="quality", program_digest="", trace_digest=trace.digest, metrics=metrics, counts={},
        tables={"held-out problems": table},
    )  # fmt: skip
    return QualityOutcome(result=result, trace=trace)


def trace_at(steps_of_block: list[float]) -> Trace:
    """The trace of mean steps per block: whole steps, whose sum up to any block is the rounded sum of the means."""
    breaks, mean, whole = [], 0.0, 0
    for steps in steps_of_block:
        mean += steps
        until = math.floor(mean + 0.5)  # a half goes up, so that a block of at least one step has one
        breaks.append(until - whole - 1)  # a loop is left at the index of its last step
        whole = until
    return Trace(breaks=tuple(breaks))


def _check(
    model: ModelSpec, workload: Workload, numerics: Numerics, problems: object, compared: object, planted: object,
    ranking: object,
) -> None:  # fmt: skip
    if model.mask is not Mask.FULL:
        raise TripathError(
            f"model.attention_mask={model.attention_mask}: the quality path does not decode this, programs do"
        )
    for name, value in (("problems", problems), ("compared", compared)):  # of one there is no standard error
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise TripathError(f"simulator.quality.{name}: must be an integer of at least 2, got {value!r}")
    if isinstance(planted, bool) or not isinstance(planted, (int, float)):
        raise TripathError(f"simulator.quality.planted: must be a number, got {planted!r}")
    if ranking not in (None, *CONFIDENCES):
        raise TripathError(f"simulator.quality.ranking: unknown {ranking!r}, one of {', '.join(CONFIDENCES)}")
    if workload.samples_only:
        raise TripathError(f"workload.stage: {workload.stage} generates no text for quality to judge")
    if workload.guided:
        raise TripathError("workload.guidance: the quality path does not carry this out, programs do")
    if workload.edits:
        raise TripathError("workload.edit_threshold: the quality path does not carry this out, programs do")
    if workload.draws:
        key = "temperature" if workload.temperature else "score"
        raise TripathError(
            f"workload.{key}={getattr(workload, key)}: the quality path draws no random numbers, programs do"
        )
    if workload.commits.measures_entropy:
        raise TripathError(f"workload.commit={workload.commit}: the quality path does not carry this out, programs do")
    if workload.stop_at_end:
        raise TripathError("workload.stop_at_end: the quality path does not carry this out, programs do")
    selection, smoothing = workload.caches.by_data, numerics.smoothing
    if smoothing.measured and isinstance(selection, DelayedCaching | FeatureCaching):
        raise TripathError(
            f"numerics.smoothing.scheme: {smoothing.scheme} needs all K and V of a block at once, which workload.cache="
            f"{workload.cache} never has"
        )
    if model.shifted_logits and isinstance(selection, DelayedCaching):
        raise TripathError(
            f"workload.cache: {workload.cache} does not serve model.shifted_logits, whose logits are of rows that it leaves out"
        )
    if workload.caches.appends:
        raise TripathError(f"workload.cache={workload.cache}: the quality path does not carry this out, programs do")
    if model.checkpoint is None:
        raise TripathError(f"paths: model {model.name} has no checkpoint whose quality could be measured")
