"""Prompts as texts and token ids: a text, a file of texts, or a number of tokens."""

import hashlib
import json
import os
import select
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from dllm.workload import Workload
from npu.choices import is_a
from npu.errors import TripathError
from npu.files import write_atomically
from npu.sources import user_cache
from tripath.experiment.inputs import Experiment

FIRST_SYNTHETIC_TOKEN = 3
FILE = "workload.prompts_file"
PIPE_SECONDS = 30.0

Prompt = str | list[int]
"""A text, or token ids."""


class Tokenizer(Protocol):
    """Text to token ids and back (dllm.checkpoint.TextTokenizer)."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """Words that the vocabulary lacks."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Token ids and texts, one per sequence; the tokenizer (None: the model has none), and words it does not know; of each
    prompt the number that answers it, where the file says so."""

    token_ids: list[list[int]]
    texts: list[str]
    tokenizer: Tokenizer | None
    unknown_words: list[str]
    results: list[int | None] = field(default_factory=list)


def read_prompts(experiment: Experiment, default_prompt: str | None) -> Prompts:
    """The prompts of an experiment; where only a length is given, that many tokens, counted up, without mask and EOS.

    Raises:
        TripathError: no prompt, an unreadable file, an empty prompt, or a number of prompts other than the batch.
    """
    workload, model = experiment.workload, experiment.model
    tokenizer = None
    if model.checkpoint is not None:
        from dllm.checkpoint import check_checkpoint, load_tokenizer

        check_checkpoint(model)
        tokenizer = load_tokenizer(model.checkpoint, needed=workload.prompt_length is None)
    if workload.prompt_length is not None:
        plain = [i % model.vocab for i in range(FIRST_SYNTHETIC_TOKEN, FIRST_SYNTHETIC_TOKEN + workload.prompt_length)]
        special = (model.mask_id, model.eos_id)
        tokens = [min(set(range(3)) - set(special)) if token in special else token for token in plain]
        texts = [f"{workload.prompt_length} tokens"] * workload.batch
        return Prompts(token_ids=[tokens] * workload.batch, texts=texts, tokenizer=tokenizer, unknown_words=[])
    if tokenizer is None:
        raise TripathError(
            f"workload.prompt_length: model {model.name} has no tokenizer, give the prompt's length in tokens"
        )
    given = _texts(workload, default_prompt)
    token_ids = [prompt if isinstance(prompt, list) else tokenizer.encode(prompt) for prompt in given]
    texts = [tokenizer.decode(prompt) if isinstance(prompt, list) else prompt for prompt in given]
    if not all(token_ids):
        raise TripathError("workload.prompt: the prompt is empty")
    for token in (token for tokens in token_ids for token in tokens):
        if not 0 <= token < model.vocab:
            raise TripathError(
                f"workload.prompt: token ids must be from 0 to {model.vocab - 1} (model.vocab), got {token}"
            )
    unknown = sorted({word for text in texts for word in tokenizer.unknown_words(text)})
    results = read_results(workload.prompts_file) if workload.prompts_file else []
    return Prompts(token_ids=token_ids, texts=texts, tokenizer=tokenizer, unknown_words=unknown, results=results)


def read_prompts_file(name: str) -> list[Prompt]:
    """The prompts of a file, one a line, blank lines left out; of `NAME.jsonl` each an object with a text
    `prompt`, or with `token_ids`.

    Raises:
        TripathError: the file cannot be read, holds no prompt, or a line is none.
    """
    numbered = _lines(name)
    if not name.endswith(".jsonl"):
        return [line for _, line in numbered]
    return [_of_json(line, f"{FILE}: {name}, line {number}") for number, line in numbered]


def read_results(name: str) -> list[int | None]:
    """The numbers that answer the prompts of a file, `result` of each line of `NAME.jsonl`; None: its line has none.

    Raises:
        TripathError: the file cannot be read, or a result is no whole number.
    """
    if not name.endswith(".jsonl"):
        return []
    found: list[int | None] = []
    for number, line in _lines(name):
        value = json.loads(line).get("result")
        if not (value is None or is_a(value, int)):
            raise TripathError(f"{FILE}: {name}, line {number}: result must be a whole number, got {value!r}")
        found.append(value)
    return found


def _lines(name: str) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers.

    Raises:
        TripathError: it cannot be read, or has none.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").split("\n")  # splitlines would split at U+2028 too
    except (OSError, ValueError) as error:
        raise TripathError(f"{FILE}: cannot read {name} ({error})") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise TripathError(f"{FILE}: no prompt in {name}")
    return numbered


def _of_json(line: str, subject: str) -> Prompt:
    """The prompt of a line of JSON.

    Raises:
        TripathError: it is none.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    given = [row[key] for key in ("prompt", "token_ids") if key in row] if isinstance(row, dict) else []
    if len(given) == 1 and isinstance(given[0], str):
        return given[0]
    if len(given) == 1 and isinstance(given[0], list) and all(is_a(token, int) for token in given[0]):
        return given[0]
    raise TripathError(f"{subject}: needs an object with a text `prompt`, or with a list of integers `token_ids`")


@lru_cache
def kept_prompts(name: str) -> str:
    """The name of a file that can be read again, also by a worker: of a pipe (`/dev/stdin`, `<(...)`) a copy in the user's cache.

    Raises:
        TripathError: nobody writes to the pipe.
    """
    try:
        kind = Path(name).stat().st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            return name
        content = b"".join(_received(name))
    except OSError as error:
        raise TripathError(f"{FILE}: cannot read {name} ({error.strerror})") from None
    folder = user_cache() / "prompts"
    folder.mkdir(exist_ok=True)
    copy = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.txt"
    write_atomically(copy, content)
    return str(copy)


def _received(name: str) -> Iterator[bytes]:
    """The content of a pipe, in parts, until its writers close it.

    Raises:
        TripathError: nothing arrives for PIPE_SECONDS.
    """
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait here for a writer
    try:
        while True:
            if not select.select([handle], [], [], PIPE_SECONDS)[0]:
                raise TripathError(f"{FILE}: nothing came from {name} in {PIPE_SECONDS:.0f} s")
            part = os.read(handle, 1 << 16)
            if not part:
                return
            yield part
    finally:
        os.close(handle)


def _texts(workload: Workload, default_prompt: str | None) -> Sequence[Prompt]:
    if workload.prompts_file is not None:
        texts = read_prompts_file(workload.prompts_file)
        if len(texts) != workload.batch:
            counted = f"{workload.prompts_file} has {len(texts)} prompts"
            raise TripathError(f"workload.batch: {workload.batch}, but {counted}")
        return texts
    text = workload.prompt if workload.prompt is not None else default_prompt
    if text is None:
        raise TripathError("workload.prompt: no prompt is given")
    return [text] * workload.batch
