"""Prompts as texts and token ids: a text, a file of texts, or a number of tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dllm.workload import Workload
from npu.errors import TripathError
from tripath.experiment.inputs import Experiment

FIRST_SYNTHETIC_TOKEN = 3


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
    """Token ids and texts, one per sequence; the tokenizer (None: the model has none), and words it does not know."""

    token_ids: list[list[int]]
    texts: list[str]
    tokenizer: Tokenizer | None
    unknown_words: list[str]


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
    texts = _texts(workload, default_prompt)
    token_ids = [tokenizer.encode(text) for text in texts]
    if not all(token_ids):
        raise TripathError("workload.prompt: the prompt is empty")
    unknown = sorted({word for text in texts for word in tokenizer.unknown_words(text)})
    return Prompts(token_ids=token_ids, texts=texts, tokenizer=tokenizer, unknown_words=unknown)


def read_prompts_file(name: str) -> list[str]:
    """The prompts of a file, one a line, blank lines left out.

    Raises:
        TripathError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise TripathError(f"workload.prompts_file: cannot read {name} ({error})") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise TripathError(f"workload.prompts_file: no prompt in {name}")
    return texts


def _texts(workload: Workload, default_prompt: str | None) -> list[str]:
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
