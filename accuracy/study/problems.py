"""The word problems of a checkpoint and their scoring; its shape from config.json, without Hydra."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from accuracy.checkpoint import load_tokenizer
from accuracy.study.decode import Decoding, Policy, decode
from accuracy.study.model import StudyModel
from tripath.errors import TripathError
from tripath.model import ModelSpec

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "wordmath"
ANSWER = re.compile(r"####\s*(-?\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A word problem: prompt as token ids, and the number that answers it."""

    prompt: list[int]
    result: int


def spec_of(folder: Path) -> ModelSpec:
    """Shape of a LLaDA checkpoint by its config.json.

    Raises:
        TripathError: the file is missing or lacks a key.
    """
    try:
        c = json.loads((folder / "config.json").read_text())
        return ModelSpec(
            name=folder.name, layers=c["n_layers"], hidden=c["d_model"], heads=c["n_heads"], kv_heads=c["n_kv_heads"],
            head_dim=c["d_model"] // c["n_heads"], ffn=c["mlp_hidden_size"], vocab=c["vocab_size"],
            rope_theta=c["rope_theta"], rms_eps=c["rms_norm_eps"], mask_id=c["mask_token_id"], eos_id=c["eos_token_id"],
            max_sequence=c["max_sequence_length"], checkpoint=str(folder),
        )  # fmt: skip
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise TripathError(f"model.checkpoint: config.json in {folder} is missing or incomplete ({error})") from None


def load_problems(folder: Path = CHECKPOINT) -> list[Problem]:
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
    model: StudyModel, problems: Sequence[Problem], policy: Policy, *, batch_size: int = 64, folder: Path = CHECKPOINT,
) -> tuple[list[bool], torch.Tensor]:  # fmt: skip
    """Whether each problem is solved, and the denoising steps of each block ([problems, blocks])."""
    tokenizer, right = load_tokenizer(str(folder)), [False] * len(problems)
    trips = torch.zeros(len(problems), policy.blocks, dtype=torch.int64)
    for members in batches(problems, batch_size):
        made = decode(model, [problems[i].prompt for i in members], policy)
        for index, answer, counts in zip(
            members, solved(made, problems, members, tokenizer), made.trip_counts, strict=True
        ):
            right[index], trips[index] = answer, counts
    return right, trips


def solved(made: Decoding, problems: Sequence[Problem], members: Sequence[int], tokenizer) -> list[bool]:
    """Whether the number after #### is the problem's result."""
    texts = [tokenizer.decode(ids) for ids in made.token_ids.tolist()]
    found = [ANSWER.search(text) for text in texts]
    return [hit is not None and int(hit[1]) == problems[i].result for hit, i in zip(found, members, strict=True)]


def batches(problems: Sequence[Problem], size: int) -> list[list[int]]:
    """Indices in batches of similar prompt length, so that little is padded."""
    order = sorted(range(len(problems)), key=lambda index: len(problems[index].prompt))
    return [order[first : first + size] for first in range(0, len(order), size)]
