"""The unquantised model and decoding loop in plain NumPy float32: what the executor is compared with. It knows no ISA."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from accuracy.checkpoint import PREFIX
from tripath.model import ModelSpec
from tripath.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One denoising step of one sequence: what was sampled at each position of the block, and what was committed.

    `canvas` [S] are the tokens before the step, `logits` [L, vocab], `token_ids` [L], `confidence` [L], `committed` [L].
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
    """x / rms(x) * weight along the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax along the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


class ReferenceModel:
    """A LLaDA-style transformer over one sequence without padding."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> None:
        self.spec = spec
        self.tensors = {name.removeprefix(PREFIX).removesuffix(".weight"): value for name, value in tensors.items()}

    def new_cache(self) -> list[dict[str, np.ndarray]]:
        """An empty KV cache: per layer `k` and `v` [S, kv heads, head_dim]."""
        return [{} for _ in range(self.spec.layers)]

    def forward(self, tokens: np.ndarray, rows: slice, cache: list[dict[str, np.ndarray]]) -> np.ndarray:
        """Hidden states [rows, hidden] before the final norm; recomputes K and V of `rows` in `cache`, keeps the rest."""
        spec = self.spec
        positions = np.arange(len(tokens))[rows]
        frequency = spec.rope_theta ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)
        angle = np.outer(positions, frequency)
        cosine, sine = (np.concatenate([f(angle)] * 2, -1)[:, None].astype(np.float32) for f in (np.cos, np.sin))

        def rotate(x: np.ndarray) -> np.ndarray:
            low, high = np.split(x, 2, axis=-1)
            return x * cosine + np.concatenate([-high, low], -1) * sine

        x = self.tensors["wte"][tokens[rows]]
        for layer in range(spec.layers):
            weight = {n.split(".", 2)[2]: v for n, v in self.tensors.items() if n.startswith(f"blocks.{layer}.")}
            h = rms_norm(x, weight["attn_norm"], spec.rms_eps)
            q, k, v = (
                (h @ weight[name].T).reshape(len(positions), heads, spec.head_dim)
                for name, heads in (("q_proj", spec.heads), ("k_proj", spec.kv_heads), ("v_proj", spec.kv_heads))
            )
            for name, value in (("k", rotate(k)), ("v", v)):
                if name not in cache[layer]:
                    cache[layer][name] = np.zeros((len(tokens), spec.kv_heads, spec.head_dim), np.float32)
                cache[layer][name][rows] = value
            group = spec.heads // spec.kv_heads
            keys, values = (np.repeat(cache[layer][name], group, axis=1) for name in ("k", "v"))
            scores = np.einsum("qhd,khd->hqk", rotate(q), keys) * np.float32(spec.head_dim**-0.5)
            attended = np.einsum("hqk,khd->qhd", softmax(scores), values).reshape(len(positions), -1)
            x = x + attended @ weight["attn_out"].T
            h = rms_norm(x, weight["ff_norm"], spec.rms_eps)
            gate = h @ weight["ff_proj"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ weight["up_proj"].T)) @ weight["ff_out"].T
        return x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Final norm and LM head: [rows, vocab]."""
        return rms_norm(hidden, self.tensors["ln_f"], self.spec.rms_eps) @ self.tensors["ff_out"].T


def sample(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy token of each position (lowest index wins ties) and its probability."""
    ids = logits.argmax(axis=-1)
    return ids, softmax(logits)[np.arange(len(ids)), ids]


def commit_quota(confidence: np.ndarray, masked: np.ndarray, count: int) -> np.ndarray:
    """The `count` most confident masked positions; ties go to the lowest index."""
    order = np.lexsort((np.arange(len(masked)), -confidence, ~masked))
    chosen = np.zeros(len(masked), bool)
    chosen[order[:count]] = True
    return chosen & masked


def commit_threshold(confidence: np.ndarray, masked: np.ndarray, threshold: float) -> np.ndarray:
    """All masked positions with confidence >= threshold, and always the best one."""
    return ((confidence >= threshold) & masked) | commit_quota(confidence, masked, 1)


def generate(
    model: ReferenceModel, prompt: Sequence[int], workload: Workload,
    force: Callable[[int, int], np.ndarray | None] | None = None,
) -> Generation:  # fmt: skip
    """Decode one sequence under the workload's cache and commit policies.

    `force(block, step)` may give the canvas [S] to use at a step (another decoder's), or None where that one has left
    the block; the steps then say what the reference does on those canvases.
    """
    spec, length = model.spec, workload.block_length
    tokens = np.array([*prompt, *[spec.mask_id] * workload.generation_length])
    steps, trips = [], []
    for block in range(workload.blocks):
        start = len(prompt) + block * length
        place, cache = slice(start, start + length), model.new_cache()
        for step in range(length):
            if force is not None:
                canvas = force(block, step)
                if canvas is None:
                    break
                tokens = canvas.copy()
            masked = tokens[place] == spec.mask_id
            if not masked.any():
                break
            if step == 0 or workload.cache == "none":
                rows = slice(0, len(tokens))
            else:
                rows = slice(start, len(tokens)) if workload.cache == "prefix" else place
            hidden = model.forward(tokens, rows, cache)
            first = start - rows.start
            logits = model.logits(hidden[first : first + length])
            ids, confidence = sample(logits)
            if workload.commit == "quota":
                quotas = workload.quotas()
                chosen = commit_quota(confidence, masked, quotas[step] if step < len(quotas) else 0)
            else:
                chosen = commit_threshold(confidence, masked, workload.threshold)
            steps.append(Step(block=block, step=step, canvas=tokens.copy(), logits=logits, token_ids=ids,
                              confidence=confidence, committed=chosen))  # fmt: skip
            tokens[place] = np.where(chosen, ids, tokens[place])
        trips.append(sum(record.block == block for record in steps))
    return Generation(token_ids=tokens[len(prompt) :].tolist(), trip_counts=trips, steps=steps)
