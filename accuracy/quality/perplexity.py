"""The path `perplexity`: how well a causal model with a quantised KV cache predicts texts, and how far it is from FP32.

One pass over a text gives the logits of all its places: each sees K and V of the places up to its own as the cache holds them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accuracy.quality.calibrate import calibrate_texts
from accuracy.quality.metrics import kv_bytes_per_token
from accuracy.quality.model import StudyModel
from accuracy.quality.simulator import QualityOutcome
from dllm.checkpoint import load_tensors, open_tensors
from dllm.model import ModelSpec
from dllm.numerics import SIDES, Numerics
from dllm.operators import Mask
from dllm.policies import Smoother
from dllm.workload import Workload
from npu.errors import TripathError
from npu.metrics import Result, Table
from npu.program.trace import Trace

CALIBRATION_TEXTS = 2
"""The last texts calibrate the static scheme and are never scored."""
QUANTISED = {"both": SIDES, **{side: (side,) for side in SIDES}}
FEWEST_SCORED = 2
"""Of one text there is no standard error."""


@torch.no_grad()
def simulate(
    *, model: ModelSpec, workload: Workload, numerics: Numerics, prompts: Sequence[Sequence[int]], quantised: str = "both",
    prefix: int = 128,
) -> QualityOutcome:  # fmt: skip
    """Predict each token of the prompts but their first.

    Args:
        model: Names the checkpoint.
        workload: Its `block_length` is the most tokens of a block along tokens.
        numerics: Formats and scheme.
        prompts: The texts, as token ids; the last ones only calibrate.
        quantised: Sides of the cache that are in the format `numerics.kv`, the others are in BF16: both, keys or values.
        prefix: Tokens of each text whose channel maxima the frozen scheme keeps for the rest.

    Raises:
        TripathError: the model is not causal, texts are too few or of unfit length, or an option or scheme is unknown here.
    """
    _check(model, workload, numerics, prompts, quantised, prefix)
    texts, calibrating = prompts[:-CALIBRATION_TEXTS], prompts[-CALIBRATION_TEXTS:]
    ideal, sides, smoother = reference(model, texts), QUANTISED[quantised], numerics.smoothing.smoother
    static = smoother is Smoother.STATIC
    calibration = calibrate_texts(model, ideal.tensors, numerics, calibrating, lanes="bf16") if static else None
    mine = StudyModel(
        model, ideal.tensors, numerics, workload.block_length, lanes="bf16", calibration=calibration, quantised=sides
    )
    first = prefix if smoother is Smoother.FROZEN else 0
    found = torch.stack(
        [
            _compared(log_shares(ideal.model, states), log_shares(mine, hidden_states(mine, text, first)), text)
            for text, states in zip(texts, ideal.hidden, strict=True)
        ]
    )
    tokens = sum(len(text) - 1 for text in texts)
    loss, loss_fp32, divergence, agreeing = (found.sum(0) / tokens).tolist()
    metrics = {
        "texts": len(texts), "tokens": tokens, "perplexity": math.exp(loss), "perplexity_fp32": math.exp(loss_fp32),
        "logit_kl": divergence, "logit_kl_error": _error(found[:, 2], [len(text) - 1 for text in texts]),
        "argmax_agreement": agreeing,
        "kv_bytes_per_token": kv_bytes_per_token(
            model, numerics, workload.block_length, canvas=tokens / len(texts), quantised=sides
        ),
    }  # fmt: skip
    table = Table(columns=["metric", "value"], rows=[[name, float(value)] for name, value in metrics.items()])
    trace = Trace(breaks=())
    result = Result(
        simulator="perplexity", program_digest="", trace_digest=trace.digest, metrics=metrics, counts={},
        tables={"texts": table},
    )  # fmt: skip
    return QualityOutcome(result=result, trace=trace)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The weights of a checkpoint, the unquantised model, and its hidden states of each text."""

    tensors: Mapping[str, np.ndarray]
    model: StudyModel
    hidden: Sequence[Tensor]


_last: dict[object, Reference] = {}
"""The reference of the last call: jobs of a sweep share it, which saves two fifths of their time."""


def reference(model: ModelSpec, texts: Sequence[Sequence[int]]) -> Reference:
    """The reference of a checkpoint as it is now.

    Raises:
        TripathError: the checkpoint is not the model's, or unreadable.
    """
    tensors = open_tensors(model)
    key = repr(model), repr(texts), *(tensors.identity(name) for name in tensors)
    if key not in _last:
        _last.clear()
        loaded = load_tensors(model)
        ideal = StudyModel(model, loaded)
        _last[key] = Reference(tensors=loaded, model=ideal, hidden=[hidden_states(ideal, text) for text in texts])
    return _last[key]


def hidden_states(model: StudyModel, text: Sequence[int], first: int = 0) -> Tensor:
    """Hidden states [1, tokens - 1, hidden] of a text but for its last token; the cache is written at once, or after its
    `first` rows (0: none)."""
    tokens, length = torch.tensor([text[:-1]]), len(text) - 1
    batch = model.new_batch(torch.zeros(1, dtype=torch.int64), length)
    parts = [slice(0, first), slice(first, length)] if first else [slice(0, length)]
    return torch.cat([model.forward(tokens, rows, batch) for rows in parts], 1)


def log_shares(model: StudyModel, hidden: Tensor) -> Tensor:
    """Log probabilities [tokens - 1, vocab] of what follows, in float64."""
    return model.logits(hidden)[0].double().log_softmax(-1)


def _compared(ideal: Tensor, mine: Tensor, text: Sequence[int]) -> Tensor:
    """Sums over the places of a text: losses of `mine` and of `ideal`, KL(ideal || mine), equal most likely tokens."""
    following = torch.tensor(text[1:])[:, None]
    return torch.stack([
        -mine.gather(1, following).sum(), -ideal.gather(1, following).sum(), (ideal.exp() * (ideal - mine)).sum(),
        (ideal.argmax(-1) == mine.argmax(-1)).double().sum(),
    ])  # fmt: skip


def _error(sums: Tensor, tokens: Sequence[int]) -> float:
    """Standard error over texts of the mean over tokens."""
    counts = torch.tensor(tokens, dtype=torch.float64)
    residual = sums - counts * sums.sum() / counts.sum()
    return float((residual.square().sum() * len(sums) / (len(sums) - 1)).sqrt() / counts.sum())


def _check(
    model: ModelSpec, workload: Workload, numerics: Numerics, prompts: Sequence[Sequence[int]], quantised: object,
    prefix: int,
) -> None:  # fmt: skip
    if model.mask is not Mask.CAUSAL:
        raise TripathError(
            f"model.attention_mask: perplexity is measured of causal models, got {model.attention_mask}; use paths=[quality]"
        )
    if quantised not in QUANTISED:
        raise TripathError(f"simulator.perplexity.quantised: unknown {quantised!r}, one of {', '.join(QUANTISED)}")
    smoothing, block = numerics.smoothing, workload.block_length
    if smoothing.smoother is Smoother.ORACLE:
        raise TripathError("numerics.smoothing.scheme=oracle: in one pass over a text it is baos")
    needed = FEWEST_SCORED + CALIBRATION_TEXTS
    if len(prompts) < needed:
        raise TripathError(
            f"workload.prompts_file: perplexity needs {needed} texts ({CALIBRATION_TEXTS} calibrate), got {len(prompts)}"
        )
    for number, text in enumerate(prompts, 1):
        if len(text) < block + 1 or (len(text) - 1) % block:
            raise TripathError(
                f"workload.prompts_file: text {number} has {len(text)} tokens, not one more than whole blocks of "
                f"workload.block_length {block}"
            )
    if smoothing.smoother is Smoother.FROZEN:
        if smoothing.centre:
            raise TripathError("numerics.smoothing.centre: perplexity has no means of a prefix alone; use scheme=baos")
        shortest = min(map(len, prompts)) - 1
        if not 0 < prefix < shortest or prefix % block:
            raise TripathError(
                f"simulator.perplexity.prefix: must be whole blocks of workload.block_length {block} and below the {shortest} "
                f"tokens of the shortest text, got {prefix}"
            )
