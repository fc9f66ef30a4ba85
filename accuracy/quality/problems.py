"""The word problems of a checkpoint and their scoring."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from accuracy.quality.decode import decode
from accuracy.quality.metrics import Comparison
from accuracy.quality.model import StudyModel
from dllm.checkpoint import load_tokenizer
from dllm.workload import Workload
from npu.errors import TripathError

ANSWER = re.compile(r"####\s*(-?\d+)")
CALIBRATION_PROBLEMS = 40
"""The last problems of the checkpoint's test.jsonl calibrate the static scheme and are never scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A word problem: prompt as token ids, and the number that answers it."""

    prompt: list[int]
    result: int


def load_problems(folder: Path) -> list[Problem]:
    """The held-out problems of a checkpoint, in the order of its test.jsonl.

    Raises:
        TripathError: the file is missing.
    """
    try:
        lines = (folder / "test.jsonl").read_text().splitlines()
    except OSError:
        raise TripathError(f"model.checkpoint: no test.jsonl in {folder}") from None
    tokenizer, rows = load_tokenizer(str(folder)), [json.loads(line) for line in lines]
    assert tokenizer is not None
    return [Problem(prompt=tokenizer.encode(row["prompt"]), result=row["result"]) for row in rows]


def score(
    model: StudyModel, problems: Sequence[Problem], workload: Workload, folder: Path, *, batch_size: int = 64,
    comparison: Comparison | None = None,
) -> tuple[list[bool], torch.Tensor]:  # fmt: skip
    """Whether each problem is solved, and the denoising steps of each block ([problems, blocks]).

    `comparison` is entered step by step; `folder` holds the tokenizer.
    """
    tokenizer, right = load_tokenizer(str(folder)), [False] * len(problems)
    assert tokenizer is not None
    trips = torch.zeros(len(problems), workload.blocks, dtype=torch.int64)
    observe, probe = (comparison.observe, comparison.probe) if comparison else (None, None)
    for members in batches(problems, batch_size):
        made = decode(model, [problems[i].prompt for i in members], workload, observe=observe, probe=probe)
        trips[members] = made.trip_counts
        for index, ids in zip(members, made.token_ids.tolist(), strict=True):
            hit = ANSWER.search(tokenizer.decode(ids))
            right[index] = hit is not None and int(hit[1]) == problems[index].result
    return right, trips


def batches(problems: Sequence[Problem], size: int) -> list[list[int]]:
    """Indices in batches of similar prompt length, so that little is padded."""
    order = sorted(range(len(problems)), key=lambda index: len(problems[index].prompt))
    return [order[first : first + size] for first in range(0, len(order), size)]
