"""The unquantised model and decoding loop in plain NumPy float32: what the executor is compared with. It knows no ISA.

Shape suffixes: S tokens of the canvas, R rows recomputed, L positions of a block, H heads, D head_dim, V vocabulary.
Architecture: LLaDA (arXiv:2502.09992); cache policies and threshold commits: Fast-dLLM (arXiv:2505.22618).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dllm.model import ModelSpec
from dllm.workload import Workload

_PREFIX = "model.transformer."
Cache = list[dict[str, np.ndarray]]
"""Per layer: `k` (after RoPE) and `v`, float32 [S, kv_heads, head_dim]; empty until the first forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One denoising step of one sequence: what was sampled at each position of the block, and what was committed.

    `canvas` [S] are the tokens before the step, `logits` [L, vocab], `token_ids` [L], `confidence` [L] in 0 to 1,
    `committed` [L] booleans.
    """

    block: int
    step: int
    canvas: np.ndarray
    logits: np.ndarray
    token_ids: np.ndarray
    confidence: np.ndarray
    committed: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Generated tokens of one sequence, denoising steps per block, and every step."""

    token_ids: list[int]
    trip_counts: list[int]
    steps: list[Step] = field(default_factory=list)


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """X / sqrt(mean(x^2) + epsilon) * weight along the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax along the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    """X * sigmoid(x), without overflow for any finite x."""
    small = np.exp(-np.abs(x))
    return x * np.where(x >= 0, np.float32(1), small) / (1 + small)


def rope_tables(positions: np.ndarray, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [R, 1, head_dim] of angles position * theta^(-2j / head_dim), both halves alike."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.outer(positions, frequency)
    cosine, sine = (np.concatenate([f(angle)] * 2, -1)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    return cosine, sine


def rotate(x_RHD: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Rotary embedding in the rotate-half form: channel j turns with channel j + head_dim / 2."""
    low, high = np.split(x_RHD, 2, axis=-1)
    return x_RHD * cosine + np.concatenate([-high, low], -1) * sine


class ReferenceModel:
    """A LLaDA-style transformer over one sequence without padding; positions count from its first token.

    `tensors` are float32 under LLaDA's names (`model.transformer.blocks.0.q_proj.weight`, ...).
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> None:
        self.spec, self._tensors = spec, tensors
        prefixes = [f"{_PREFIX}blocks.{index}." for index in range(spec.layers)]
        self._parts = [{name.removeprefix(p).removesuffix(".weight"): name for name in tensors if name.startswith(p)}
                       for p in prefixes]  # fmt: skip

    def _weight(self, name: str) -> np.ndarray:
        return self._tensors[f"{_PREFIX}{name}.weight"]

    def _layer(self, index: int) -> dict[str, np.ndarray]:
        """The tensors of one layer by their short names, biases as `q_proj.bias`."""
        return {part: self._tensors[name] for part, name in self._parts[index].items()}

    def new_cache(self) -> Cache:
        """An empty KV cache."""
        return [{} for _ in range(self.spec.layers)]

    def forward(self, tokens: np.ndarray, rows: slice = slice(None), cache: Cache | None = None) -> np.ndarray:
        """Hidden states [R, hidden] of `rows` before the final norm; every row attends to all of `tokens` [S].

        K and V of `rows` are overwritten in `cache`, those of the other tokens stay as they are: a warm step passes all
        rows, a refine step the rows its cache policy recomputes. Without a cache `rows` must be the whole canvas.
        """
        spec = self.spec
        cache = self.new_cache() if cache is None else cache
        positions = np.arange(len(tokens))[rows]
        rope = rope_tables(positions, spec.head_dim, spec.rope_theta)
        x = self._weight("wte")[tokens[rows]]
        for number, kept in enumerate(cache):
            weights = self._layer(number)
            assert kept or len(positions) == len(tokens), "a partial forward needs a warm cache"
            h = rms_norm(x, weights["attn_norm"], spec.rms_eps)
            x = x + self._attention(h, weights, rope=rope, rows=rows, kept=kept, canvas=len(tokens))
            h = rms_norm(x, weights["ff_norm"], spec.rms_eps)
            x = x + (silu(h @ weights["ff_proj"].T) * (h @ weights["up_proj"].T)) @ weights["ff_out"].T
        return x

    def _attention(
        self, h: np.ndarray, weights: dict[str, np.ndarray], *, rope: tuple[np.ndarray, np.ndarray], rows: slice,
        kept: dict[str, np.ndarray], canvas: int,
    ) -> np.ndarray:  # fmt: skip
        spec = self.spec
        q_RHD, k_RHD, v_RHD = (
            (h @ weights[name].T + weights.get(f"{name}.bias", np.float32(0))).reshape(len(h), heads, spec.head_dim)
            for name, heads in (("q_proj", spec.heads), ("k_proj", spec.kv_heads), ("v_proj", spec.kv_heads))
        )
        for name, value in (("k", rotate(k_RHD, *rope)), ("v", v_RHD)):
            if name not in kept:
                kept[name] = np.zeros((canvas, spec.kv_heads, spec.head_dim), np.float32)
            kept[name][rows] = value
        k_SHD, v_SHD = (np.repeat(kept[name], spec.heads // spec.kv_heads, axis=1) for name in ("k", "v"))
        scores_HRS = np.einsum("rhd,shd->hrs", rotate(q_RHD, *rope), k_SHD) * np.float32(spec.head_dim**-0.5)
        attended = np.einsum("hrs,shd->rhd", softmax(scores_HRS), v_SHD).reshape(len(h), -1)
        return attended @ weights["attn_out"].T

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Final norm and LM head: [R, vocab]."""
        return rms_norm(hidden, self._weight("ln_f"), self.spec.rms_eps) @ self._weight("ff_out").T


def sample(logits_LV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy token of each position (lowest index wins ties) and its probability, both [L]."""
    ids = logits_LV.argmax(axis=-1)
    return ids, softmax(logits_LV)[np.arange(len(ids)), ids]


def commit_quota(confidence: np.ndarray, masked: np.ndarray, count: int) -> np.ndarray:
    """The `count` most confident masked positions (all of them where fewer are masked); ties go to the lowest index."""
    order = np.lexsort((np.arange(len(masked)), -confidence, ~masked))
    chosen = np.zeros(len(masked), bool)
    chosen[order[:count]] = True
    return chosen & masked


def commit_threshold(confidence: np.ndarray, masked: np.ndarray, threshold: float) -> np.ndarray:
    """All masked positions with confidence >= threshold, and always the best one (ties to the lowest index)."""
    return ((confidence >= threshold) & masked) | commit_quota(confidence, masked, 1)


def recomputed_rows(cache: str, step: int, start: int, block_length: int, canvas: int) -> slice:
    """Rows that a denoising step forwards: all at a block's first step, later what the cache policy says."""
    if step == 0 or cache == "none":
        return slice(0, canvas)
    return slice(start, canvas if cache == "prefix" else start + block_length)


def generate(
    model: ReferenceModel, prompt: Sequence[int], workload: Workload,
    force: Callable[[int, int], np.ndarray | None] | None = None,
) -> Generation:  # fmt: skip
    """Decode one sequence under the workload's cache and commit policies.

    The canvas is the prompt and then `generation_length` masks; a block is left when it holds no mask, after
    `block_length` steps at the latest (a model may commit the mask token itself).

    `force(block, step)` may give the canvas [S] to use at a step (another decoder's), or None where that one has left
    the block; the steps then say what the reference does on those canvases.
    """
    spec, length = model.spec, workload.block_length
    tokens = np.array([*prompt, *[spec.mask_id] * workload.generation_length])
    quotas = workload.quotas()
    steps: list[Step] = []
    trips: list[int] = []
    for block in range(workload.blocks):
        start = len(prompt) + block * length
        place, cache = slice(start, start + length), model.new_cache()
        edge = np.zeros((1, spec.hidden), np.float32)  # the row before the block, as the warm step left it
        for step in range(length):
            if force is not None:
                canvas = force(block, step)
                if canvas is None:
                    break
                tokens = canvas.copy()
            masked = tokens[place] == spec.mask_id
            if not masked.any():
                break
            rows = recomputed_rows(workload.cache, step, start, length, len(tokens))
            hidden = model.forward(tokens, rows, cache)
            first = start - rows.start
            own = hidden[first : first + length]
            if spec.shifted_logits:
                edge = hidden[first - 1 : first] if first else edge
                own = np.concatenate([edge, own[:-1]])
            logits = model.logits(own)
            ids, confidence = sample(logits)
            if workload.commit == "quota":
                chosen = commit_quota(confidence, masked, quotas[step] if step < len(quotas) else 0)
            else:
                chosen = commit_threshold(confidence, masked, workload.threshold)
            steps.append(Step(block=block, step=step, canvas=tokens.copy(), logits=logits, token_ids=ids,
                              confidence=confidence, committed=chosen))  # fmt: skip
            tokens[place] = np.where(chosen, ids, tokens[place])
        trips.append(sum(record.block == block for record in steps))
    return Generation(token_ids=tokens[len(prompt) :].tolist(), trip_counts=trips, steps=steps)
