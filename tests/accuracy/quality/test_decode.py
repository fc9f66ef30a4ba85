"""The unquantised reference path equals an independent torch model; commit rules equal brute force and Dream's own loop."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accuracy.quality.decode import commit, decode, layout, sample
from accuracy.quality.metrics import Comparison
from accuracy.quality.model import UNQUANTISED, StudyModel
from dllm.numerics import Numerics
from dllm.policies import COMMIT_POLICIES, Score
from dllm.workload import Workload
from tests.accuracy.quality.models import PROMPTS, SPEC, WORKLOAD, tensors
from tests.accuracy.torch_llada import TorchLlada

MODEL = StudyModel(SPEC, tensors())
COMMITS = [name for name, each in COMMIT_POLICIES.items() if not each.measures_entropy]
SCORES = [each.value for each in Score if each is not Score.RANDOM]
"""Those of the reference path; the others it refuses by name."""


def views_of(model, prompts, workload, **options):
    views = []
    return decode(model, prompts, workload, observe=views.append, **options), views


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("key_tile", [None, 8, 16])
def test_logits_equal_an_unbatched_float64_model_with_its_own_cache(cache, key_tile):
    model = StudyModel(SPEC, tensors(), key_tile=key_tile)
    workload = dataclasses.replace(WORKLOAD, cache=cache)
    _, views = views_of(model, PROMPTS, workload)
    _, first = layout(PROMPTS, workload, model)
    for row, prompt in enumerate(PROMPTS):
        oracle = TorchLlada(SPEC, tensors())
        for view in views:
            canvas = view.canvas[row, first[row] :].tolist()
            logits = oracle.block_logits(canvas, len(prompt) + 8 * view.block, 8, view.step, cache)
            assert logits.abs().max() > 1
            np.testing.assert_allclose(view.logits[row], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_model_does_not_differ_from_itself(cache, shifted):
    """Also where logits lie one row ahead of their positions, and a refine step does not forward that row."""
    spec, workload = dataclasses.replace(SPEC, shifted_logits=shifted), dataclasses.replace(WORKLOAD, cache=cache)
    model, same = (StudyModel(spec, tensors(spec=spec)) for _ in range(2))
    comparison = Comparison(same, workload)
    decode(model, PROMPTS, workload, observe=comparison.observe, probe=comparison.probe)
    found = comparison.summary
    assert found["logit_kl"] == pytest.approx(0, abs=1e-9)
    assert (found["argmax_flips"], found["transfer_overlap"]) == (0, 1)


@pytest.mark.parametrize("commit_policy", COMMITS)
def test_a_batch_gives_each_sequence_what_it_gets_alone(commit_policy):
    workload = dataclasses.replace(WORKLOAD, commit=commit_policy, threshold=0.3)
    together = decode(MODEL, PROMPTS, workload)
    for row, prompt in enumerate(PROMPTS):
        alone = decode(MODEL, [prompt], workload)
        assert together.token_ids[row].tolist() == alone.token_ids[0].tolist()
        assert together.trip_counts[row].tolist() == alone.trip_counts[0].tolist()


ROUGH = Numerics(weights="mxint4", activations="mxfp8_e4m3", kv="mxfp4_e2m1", logits="mxint8")


@pytest.mark.parametrize(("numerics", "lanes"), [(UNQUANTISED, "fp32"), (ROUGH, "bf16")])
def test_more_padding_changes_nothing(numerics, lanes):
    """A longer neighbour adds whole blocks of padding, which only changes the order of sums in torch."""
    model = StudyModel(SPEC, tensors(), numerics, 8, lanes=lanes)
    workload = Workload(generation_length=8, block_length=8, steps=1, cache="none")
    _, alone = views_of(model, PROMPTS[:1], workload)
    _, padded = views_of(model, [PROMPTS[0], list(range(3, 40))], workload)
    difference = (alone[0].logits[0] - padded[0].logits[0]).abs()
    assert difference.max() <= (1e-4 if lanes == "fp32" else 0.05 * alone[0].logits.abs().max())


def test_forcing_its_own_canvases_changes_nothing():
    workload = dataclasses.replace(WORKLOAD, steps=16)
    free, views = views_of(MODEL, PROMPTS, workload)
    canvases = {(view.block, view.step): view.canvas for view in views}
    forced, again = views_of(MODEL, PROMPTS, workload, force=lambda block, step: canvases.get((block, step)))
    assert torch.equal(free.token_ids, forced.token_ids)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(views, again, strict=True))


@pytest.mark.parametrize("steps", [2, 4, 16])
def test_quotas_commit_on_schedule(steps):
    workload = dataclasses.replace(WORKLOAD, steps=steps)
    made, views = views_of(MODEL, PROMPTS, workload)
    assert (made.trip_counts == steps // 2).all()
    assert all((view.committed.sum(1) == 16 // steps).all() for view in views)


values = st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
rows = st.lists(st.tuples(values, st.booleans()), min_size=8, max_size=8)


def ranked(pairs):
    """Masked positions, best first, the lowest first among equals."""
    return sorted((i for i, (_, masked) in enumerate(pairs) if masked), key=lambda i: (-pairs[i][0], i))


@given(rows, st.sampled_from(["quota", "threshold", "factor"]), st.sampled_from([0.2, 0.6, 1.0, 1.6]))
def test_commit_rules_against_brute_force(pairs, rule, limit):
    confidence, masked = torch.tensor([[c for c, _ in pairs]]), torch.tensor([[m for _, m in pairs]])
    least = min(limit, 1.0)
    workload = dataclasses.replace(WORKLOAD, commit=rule, threshold=least, factor=limit, steps=4)  # quotas of four
    order = ranked(pairs)
    if rule == "quota":
        expected = order[:4]
    elif rule == "threshold":
        expected = [i for i in order if np.float32(pairs[i][0]) >= np.float32(least)] or order[:1]
    else:
        sizes = [
            n
            for n in range(1, len(order) + 1)
            if np.float32(n + 1) * (np.float32(1) - np.float32(pairs[order[n - 1]][0])) < np.float32(limit)
        ]
        expected = order[: max(sizes, default=1)]
    assert commit(confidence, masked, workload, 0)[0].nonzero().flatten().tolist() == sorted(expected)


def dream_counts(length, steps, eps=1e-3):
    """Tokens that Dream's published loop commits at each step of a canvas of masks."""
    timesteps, masks, counts = torch.linspace(1, eps, steps + 1), length, []
    for i in range(steps):
        t, s = timesteps[i], timesteps[i + 1]
        counts.append(int(masks * (1 - s / t)) if i < steps - 1 else masks)
        masks -= counts[-1]
    return counts


@pytest.mark.parametrize("steps", [1, 3, 8, 16, 32])
@pytest.mark.parametrize("score", SCORES)
def test_dream_commits_as_its_published_loop(steps, score):
    workload = Workload(generation_length=32, block_length=32, steps=steps, commit="dream", cache="none", score=score)
    made, views = views_of(MODEL, PROMPTS, workload)
    counts = torch.tensor(dream_counts(32, steps))
    assert not (made.token_ids == SPEC.mask_id).any() or steps < 32
    for view in views[:steps]:
        assert (
            view.committed.sum(1) - counts[view.step]
        ).abs().max() <= 1  # a floor next to an integer, in float64 here
    best = views[0].confidence.argmax(1)
    if counts[0]:
        assert views[0].committed.gather(1, best[:, None]).all()


def test_scores_are_those_of_dream():
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)) * 3
    p = logits.double().softmax(-1)
    top = p.sort(-1, descending=True).values
    expected = {"maskgit_plus": top[..., 0], "topk_margin": top[..., 0] - top[..., 1], "entropy": (p * p.log()).sum(-1)}
    for score in SCORES:
        for kind, tolerance in (("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 0.03)):
            ids, confidence = sample(logits, score, kind)
            assert torch.equal(ids, logits.argmax(-1))
            np.testing.assert_allclose(confidence.double(), expected[score], rtol=tolerance, atol=tolerance)


def test_rows_that_the_cache_policies_recompute():
    def rows(cache, step):
        return dataclasses.replace(WORKLOAD, cache=cache).caches.rows(1, step).of(16, 8, 40)

    assert rows("dual", 0) == rows("prefix", 0) == rows("none", 0) == rows("none", 3) == slice(0, 40)
    assert rows("prefix", 1) == slice(16, 40)
    assert rows("dual", 1) == slice(16, 24)
    assert [rows("sparse", step) for step in (0, 1, 2)] == [slice(0, 40), slice(0, 40), slice(16, 24)]
    assert rows("dkv", 5) == rows("dllm_cache", 5) == slice(0, 40)
