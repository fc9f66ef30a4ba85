"""The NumPy reference against an independent torch implementation, and its commit rules against brute force."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.decoding import Forced, Generation, commit_quota, committed, generate, sample
from dllm.families import expected_shapes
from dllm.model import ModelSpec
from dllm.policies import CACHE_POLICIES
from dllm.reference import ReferenceModel, silu  # fmt: skip
from dllm.workload import Workload

if TYPE_CHECKING:
    from tests.accuracy import torch_llada as oracle
else:
    pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
    oracle = pytest.importorskip("tests.accuracy.torch_llada")

PROMPT = [5, 17, 40, 3, 22, 60, 9]
POLICIES = [(cache, commit) for cache in ("none", "prefix", "dual") for commit in ("quota", "threshold")]


def small_spec(kv_heads: int) -> ModelSpec:
    """A three-layer model of four heads: GQA with 2 or 1 KV heads, MHA with 4."""
    return ModelSpec(
        name="small", layers=3, hidden=64, heads=4, kv_heads=kv_heads, head_dim=32, ffn=96, vocab=96,
        rope_theta=10_000.0, rms_eps=1e-5, mask_id=1, eos_id=2, max_sequence=128,
    )  # fmt: skip


def random_tensors(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Weights large enough for clear arg maxima and for attention that is far from uniform."""
    rng = np.random.default_rng(seed)
    shapes = {"wte": (spec.vocab, spec.hidden), "ln_f": (spec.hidden,), "ff_out": (spec.vocab, spec.hidden)}
    for layer in range(spec.layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in (
            ("attn_norm", (spec.hidden,)), ("ff_norm", (spec.hidden,)), ("q_proj", (spec.query_width, spec.hidden)),
            ("k_proj", (spec.kv_width, spec.hidden)), ("v_proj", (spec.kv_width, spec.hidden)),
            ("attn_out", (spec.hidden, spec.query_width)), ("ff_proj", (spec.ffn, spec.hidden)),
            ("up_proj", (spec.ffn, spec.hidden)), ("ff_out", (spec.hidden, spec.ffn)),
        )}  # fmt: skip
    scale = {1: 0.3, 2: 1.6 / spec.hidden**0.5}
    return {
        f"model.transformer.{name}.weight": (
            (len(shape) == 1) + scale[len(shape)] * rng.standard_normal(shape)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def pair(kv_heads: int, seed: int, *, dream: bool = False) -> tuple[ReferenceModel, "oracle.TorchLlada"]:
    """The same random model twice; `dream`: with biases of Q, K and V, and logits from the row before."""
    spec = dataclasses.replace(small_spec(kv_heads), qkv_bias=dream, shifted_logits=dream)
    tensors = random_tensors(spec, seed)
    if dream:
        rng = np.random.default_rng(seed + 100)
        tensors |= {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in expected_shapes(spec).items()
            if name.endswith(".bias")
        }
    return ReferenceModel(spec, tensors), oracle.TorchLlada(spec, tensors)


def workload(cache: str, commit: str, steps: int = 12, threshold: float = 0.5) -> Workload:
    """Three blocks of eight tokens; twelve steps commit two tokens each."""
    return Workload(
        prompt_length=len(PROMPT), generation_length=24, block_length=8, steps=steps, cache=cache, commit=commit,
        threshold=threshold,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchRun:
    """Generated tokens, steps per block, and per step (block, canvas before it [S], logits of the block [L, V])."""

    token_ids: list[int]
    trip_counts: list[int]
    steps: list[tuple[int, list[int], np.ndarray]]


def torch_run(twin: "oracle.TorchLlada", w: Workload) -> TorchRun:
    """The oracle's decoding of PROMPT."""
    mask = twin.spec.mask_id
    canvas, records, trips = PROMPT + [mask] * w.generation_length, [], []
    for block in range(w.blocks):
        start, step = len(PROMPT) + block * w.block_length, 0
        here = range(start, start + w.block_length)
        while step < w.block_length and any(canvas[i] == mask for i in here):
            logits = twin.block_logits(canvas, start, w.block_length, step, w.cache)
            ids, _, chosen = oracle.decide(logits, [canvas[i] == mask for i in here], w, step)
            records.append((block, canvas, logits.numpy()))
            replaced = {i: int(token) for i, token, commit in zip(here, ids, chosen, strict=True) if commit}
            canvas, step = [replaced.get(i, token) for i, token in enumerate(canvas)], step + 1
        trips.append(step)
    return TorchRun(token_ids=canvas[len(PROMPT) :], trip_counts=trips, steps=records)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_full_forward_logits_match_torch(kv_heads: int, seed: int) -> None:
    model, twin = pair(kv_heads, seed)
    tokens = np.random.default_rng(seed).integers(0, model.spec.vocab, 41)
    mine = model.logits(model.forward(tokens))
    theirs = twin.forward(tokens.tolist(), slice(0, 41), keep=False)
    assert np.abs(mine).max() > 3, "logits near zero would make the comparison weak"
    np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cache", "commit"), POLICIES)
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dream", [False, True])
def test_decoding_matches_torch(kv_heads: int, seed: int, cache: str, commit: str, *, dream: bool) -> None:
    model, twin = pair(kv_heads, seed, dream=dream)
    w = workload(cache, commit)
    mine, theirs = generate(model, PROMPT, w), torch_run(twin, w)
    assert mine.token_ids == theirs.token_ids
    assert mine.trip_counts == theirs.trip_counts
    for record, (block, canvas, logits) in zip(mine.steps, theirs.steps, strict=True):
        assert record.block == block
        np.testing.assert_array_equal(record.canvas, canvas)
        np.testing.assert_allclose(record.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("commit", ["quota", "threshold"])
def test_cache_policies_differ_on_these_models(commit: str) -> None:
    """Else the comparison with torch would not tell them apart."""
    model, _ = pair(2, 0)
    logits = [generate(model, PROMPT, workload(cache, commit)).steps[1].logits for cache in ("none", "prefix", "dual")]
    assert not np.allclose(logits[0], logits[1], atol=1e-3)
    assert not np.allclose(logits[1], logits[2], atol=1e-3)


@pytest.mark.parametrize("steps", [3, 9, 15, 24])
def test_quota_takes_the_scheduled_steps(steps: int) -> None:
    model, twin = pair(2, 3)
    w = workload("dual", "quota", steps)
    mine = generate(model, PROMPT, w)
    assert mine.token_ids == torch_run(twin, w).token_ids
    if model.spec.mask_id not in mine.token_ids:
        assert mine.trip_counts == [steps // 3] * 3
        assert [int(r.committed.sum()) for r in mine.steps if r.block == 0] == w.quotas()


def test_one_step_per_block_makes_all_cache_policies_equal() -> None:
    model, _ = pair(2, 4)
    runs = [generate(model, PROMPT, workload(cache, "quota", 3)).token_ids for cache in ("none", "prefix", "dual")]
    assert runs[0] == runs[1] == runs[2]


def test_prefix_equals_dual_in_the_last_block() -> None:
    model, _ = pair(2, 5)
    base = generate(model, PROMPT, workload("none", "quota"))
    canvases = {(r.block, r.step): r.canvas for r in base.steps}
    runs = [_forced(model, cache, canvases) for cache in ("prefix", "dual")]
    for mine, theirs in zip(*(run.steps for run in runs), strict=True):
        if mine.block == 2:
            np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-5)


def _forced(model: ReferenceModel, cache: str, canvases: dict[tuple[int, int], np.ndarray]) -> Generation:
    plan = workload(cache, "quota")
    (loop,) = plan.step_loops(0)
    known = {step: (canvas, loop) for step, canvas in canvases.items()}
    return generate(model, PROMPT, plan, force=lambda block, step: known.get((block, step)))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_forcing_its_own_canvases_changes_nothing(cache: str) -> None:
    model, _ = pair(4, 6)
    free = generate(model, PROMPT, workload(cache, "quota"))
    forced = _forced(model, cache, {(r.block, r.step): r.canvas for r in free.steps})
    assert forced.token_ids == free.token_ids
    assert forced.trip_counts == free.trip_counts
    for mine, theirs in zip(free.steps, forced.steps, strict=True):
        np.testing.assert_array_equal(mine.logits, theirs.logits)


def test_a_forced_canvas_replaces_the_tokens_and_none_leaves_the_block() -> None:
    model, _ = pair(2, 7)
    canvas = np.array([*PROMPT, *range(10, 18), *[1] * 16])
    canvas[len(PROMPT) + 2] = 1

    def force(block: int, step: int) -> Forced | None:
        return (canvas, *workload("dual", "quota").step_loops(0)) if (block, step) == (0, 0) else None

    forced = generate(model, PROMPT, workload("dual", "quota"), force=force)
    assert forced.trip_counts == [1, 0, 0]
    assert forced.steps[0].committed.tolist() == [False, False, True] + [False] * 5
    assert canvas[len(PROMPT) + 2] == model.spec.mask_id, "the caller's canvas is left as it was"
    expected = model.logits(model.forward(canvas))[len(PROMPT) :][:8]
    np.testing.assert_allclose(forced.steps[0].logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cache", "kept"), [("prefix", 15), ("dual", 15)])
def test_refine_steps_freeze_the_rest_of_the_cache(cache: str, kept: int) -> None:
    model, _ = pair(2, 8)
    canvas = np.array([*PROMPT, *range(10, 18), *[1] * 16])
    state = model.new_cache()
    model.forward(canvas, slice(0, len(canvas)), state)
    before = [{name: value.copy() for name, value in layer.items()} for layer in state]
    canvas = canvas.copy()
    canvas[kept + 3] = 33
    rows = CACHE_POLICIES[cache].rows(0, 1).of(kept, 8, len(canvas))
    model.forward(canvas, rows, state)
    frozen = np.ones(len(canvas), bool)
    frozen[rows] = False
    assert frozen.sum() == (kept if cache == "prefix" else len(canvas) - 8)
    for old, new in zip(before, state, strict=True):
        for name in ("k", "v"):
            np.testing.assert_array_equal(old[name][frozen], new[name][frozen])
            assert not np.array_equal(old[name][kept + 3], new[name][kept + 3])


def test_a_model_that_commits_the_mask_token_still_ends() -> None:
    spec = small_spec(2)
    tensors = random_tensors(spec, 9)
    tensors["model.transformer.ff_out.weight"][:] = 0
    model = ReferenceModel(spec, tensors)
    w = workload("none", "threshold")
    assert generate(model, PROMPT, w).token_ids == [0] * 24, "all logits equal: the lowest index wins"
    masked = {**tensors, "model.transformer.ff_out.weight": np.zeros((spec.vocab, spec.hidden), np.float32)}
    masked["model.transformer.ff_out.weight"][1] = 1.0
    masked["model.transformer.ff_out.weight"][0] = -1.0
    ends = generate(ReferenceModel(spec, masked), PROMPT, w)
    assert max(ends.trip_counts) <= w.block_length


values = st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
confidences = st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=12)


def best_masked(pairs: list[tuple[float, bool]], taken: set[int]) -> int | None:
    """Brute force: scan for the first position of highest confidence that is masked and not taken."""
    best = None
    for index, (confidence, masked) in enumerate(pairs):
        if masked and index not in taken and (best is None or confidence > pairs[best][0]):
            best = index
    return best


def check(pairs: list[tuple[float, bool]], expected: set[int], rule: Callable[..., np.ndarray], limit: float) -> None:
    """Compare a commit rule with the expected set."""
    confidence = np.array([c for c, _ in pairs], np.float32)
    masked = np.array([m for _, m in pairs])
    assert set(np.flatnonzero(rule(confidence, masked, limit)).tolist()) == expected


@given(confidences, st.integers(0, 14))
def test_commit_quota_against_brute_force(pairs: list[tuple[float, bool]], count: int) -> None:
    expected: set[int] = set()
    for _ in range(count):
        best = best_masked(pairs, expected)
        if best is not None:
            expected.add(best)
    check(pairs, expected, commit_quota, count)


@given(confidences, st.sampled_from([0.05, 0.25, 0.5, 0.75, 1.0]))
def test_commit_threshold_against_brute_force(pairs: list[tuple[float, bool]], threshold: float) -> None:
    expected = {index for index, (confidence, masked) in enumerate(pairs) if masked and confidence >= threshold}
    best = best_masked(pairs, set())
    workload = Workload(generation_length=8, block_length=8, steps=8, commit="threshold", threshold=threshold)
    check(
        pairs, expected | ({best} if best is not None else set()),
        lambda confidence, masked, _: committed(confidence, masked, workload, 0), threshold,
    )  # fmt: skip


@given(st.lists(st.lists(st.integers(-4, 4), min_size=5, max_size=5), min_size=1, max_size=6))
def test_sample_takes_the_first_maximum_and_its_probability(rows: list[list[int]]) -> None:
    ids, confidence = sample(np.array(rows, np.float32))
    for row, token, share in zip(rows, ids.tolist(), confidence.tolist(), strict=True):
        assert token == row.index(max(row))
        assert share == pytest.approx(1 / sum(np.exp(float(value - max(row))) for value in row), rel=1e-5)


@pytest.mark.filterwarnings("error")
def test_silu_of_extreme_values_raises_no_warning() -> None:
    np.testing.assert_allclose(silu(np.array([-1e30, -200.0, -1.0, 0.0, 1.0, 200.0], np.float32)),
                               [0, 0, -0.26894143, 0, 0.7310586, 200.0], rtol=1e-6, atol=1e-30)  # fmt: skip
