"""The word problems of a checkpoint and their scoring."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

import torch

from accuracy.quality.decode import decode
from accuracy.quality.metrics import Comparison
from accuracy.quality.model import StudyModel
from dllm.answers import answer_pattern, number_in
from dllm.checkpoint import load_tokenizer
from dllm.model import ModelSpec
from dllm.workload import Workload
from npu.errors import TripathError

TEST = "test.jsonl"
"""The problems of a checkpoint or of an adapter."""
CALIBRATION_PROBLEMS = 40
"""The last problems of a dataset calibrate the static scheme and are never scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A word problem: prompt as token ids, and the number that answers it, or whatever a judge of one's own compares with."""

    prompt: list[int]
    result: object


Judge: TypeAlias = Callable[[str, object], bool]
"""True if a generated text solves the problem with this result."""


def judge_of(workload: Workload, scoring: str = "") -> Judge:
    """The function `solved` of the module `scoring`; without one, the number that `workload.answer` finds must be the result.

    Raises:
        TripathError: the module cannot be imported, or has no function `solved`.
    """
    if not scoring:
        pattern = answer_pattern(workload.answer)
        return lambda text, result: number_in(text, pattern) == result
    try:
        return import_module(scoring).solved
    except (ImportError, AttributeError) as error:
        raise TripathError(f"simulator.quality.scoring: no function solved in {scoring} ({error})") from None


def load_problems(model: ModelSpec, dataset: str = "", *, any_result: bool = False) -> list[Problem]:
    """The problems of a file in their order; without one the held-out problems of the model's adapter or checkpoint.

    Each line of the file is JSON with `prompt`, a text, and `result`, a whole number (or `any_result`).

    Raises:
        TripathError: the file is missing, or a row is no problem.
    """
    assert model.checkpoint is not None
    file = Path(dataset or Path(model.adapter or model.checkpoint) / TEST)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        subject = "simulator.quality.dataset" if dataset else "model.adapter" if model.adapter else "model.checkpoint"
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise TripathError(f"{subject}: cannot read {file} ({why})") from None
    kinds = KINDS[:1] if any_result else KINDS
    rows = [_row(f"{file}: line {number}", line, kinds) for number, line in enumerate(lines, 1) if line.strip()]
    tokenizer = load_tokenizer(model.checkpoint)
    assert tokenizer is not None
    return [Problem(prompt=tokenizer.encode(prompt), result=result) for prompt, result in rows]


KINDS = (("prompt", str, "a text"), ("result", int, "an integer"))


def _row(place: str, line: str, kinds: Sequence[tuple[str, type, str]]) -> tuple[str, object]:
    """Prompt and result of a line, which must be of these kinds.

    Raises:
        TripathError: naming file, line and what is missing or of another type.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TripathError(f"{place}: is not JSON ({error})") from None
    for name, _, _ in KINDS:
        if not isinstance(row, dict) or name not in row:
            raise TripathError(f"{place}: {name} is missing")
    for name, kind, what in kinds:
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise TripathError(f"{place}: {name} must be {what}, got {row[name]!r}")
    return row["prompt"], row["result"]


def score(
    model: StudyModel, problems: Sequence[Problem], workload: Workload, *, batch_size: int = 64,
    comparison: Comparison | None = None, judge: Judge | None = None,
) -> tuple[list[bool], torch.Tensor]:  # fmt: skip
    """Decode and judge the problems: for each, True if it is solved; and the denoising steps of each block ([problems, blocks]).

    `comparison` observes every step; `judge` None: that of the workload.
    """
    solves, right = judge or judge_of(workload), [False] * len(problems)
    assert model.spec.checkpoint is not None
    tokenizer = load_tokenizer(model.spec.checkpoint)
    assert tokenizer is not None
    trips = torch.zeros(len(problems), workload.blocks, dtype=torch.int64)
    observe, probe = (comparison.observe, comparison.probe) if comparison else (None, None)
    for members in batches(problems, batch_size):
        made = decode(model, [problems[i].prompt for i in members], workload, observe=observe, probe=probe)
        trips[members] = made.trip_counts
        for index, ids in zip(members, made.token_ids.tolist(), strict=True):
            right[index] = bool(solves(tokenizer.decode(ids), problems[index].result))
    return right, trips


def batches(problems: Sequence[Problem], size: int) -> list[list[int]]:
    """Indices in batches of similar prompt length, so that little is padded."""
    order = sorted(range(len(problems)), key=lambda index: len(problems[index].prompt))
    return [order[first : first + size] for first in range(0, len(order), size)]
