"""Cache policies whose rows or keys data choose: each is written down once more, for one sequence, row by row, in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from accuracy.quality.decode import decode, layout
from accuracy.quality.metrics import Comparison
from accuracy.quality.model import StudyModel
from dllm.decoding import generate
from dllm.devices import steps_of
from dllm.policies import CACHE_POLICIES, CachePolicy, DelayedCaching, FeatureCaching, Rows, SparseAttention
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from tests.accuracy.quality.models import PROMPTS, SPEC, tensors
from tests.accuracy.torch_llada import TorchLlada

DEEP = dataclasses.replace(SPEC, layers=3)
WEIGHTS = tensors(spec=DEEP)
WEIGHTS["model.transformer.ff_out.weight"][DEEP.mask_id] = (
    0  # no step commits a mask, so each one changes all V a little
)
MODEL = StudyModel(DEEP, WEIGHTS)
WORKLOAD = Workload(generation_length=16, block_length=8, steps=16)  # a token a step
POLICIES = {
    "dkv": DelayedCaching(interval=4), "dllm_cache": FeatureCaching(prompt_interval=5, response_interval=3),
    "sparse": SparseAttention(),
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    for name, by_data in POLICIES.items():
        monkeypatch.setitem(CACHE_POLICIES, name, dataclasses.replace(CACHE_POLICIES[name], by_data=by_data))


def views_of(prompts, cache, **changes):
    views, workload = [], dataclasses.replace(WORKLOAD, cache=cache, **changes)
    return decode(MODEL, prompts, workload, observe=views.append), views


class Layers:
    """One sequence: of each layer what is kept of each token, by its place."""

    def __init__(self, prompt):
        self.twin, self.prompt = TorchLlada(DEEP, WEIGHTS), prompt
        self.k, self.v, self.attention, self.mlp = ([{} for _ in range(DEEP.layers)] for _ in range(4))

    def project(self, layer, x, name):
        h = self.twin.norm(x, f"blocks.{layer}.attn_norm")
        return (self.twin.w[f"blocks.{layer}.{name}"] @ h).unflatten(0, (-1, DEEP.head_dim))

    def turned(self, heads, place):
        return self.twin.rotate(heads[None], torch.tensor([place]))[0]

    def keep(self, layer, x, place):
        self.k[layer][place] = self.turned(self.project(layer, x, "k_proj"), place)
        self.v[layer][place] = self.project(layer, x, "v_proj")

    def attend(self, layer, x, place, keys):
        """What attention adds to a row that sees these places."""
        q, heads = self.turned(self.project(layer, x, "q_proj"), place), []
        for head in range(DEEP.heads):
            own = head * DEEP.kv_heads // DEEP.heads
            scores = torch.stack([q[head] @ self.k[layer][key][own] for key in keys]) * DEEP.head_dim**-0.5
            heads.append(scores.softmax(0) @ torch.stack([self.v[layer][key][own] for key in keys]))
        return self.twin.w[f"blocks.{layer}.attn_out"] @ torch.cat(heads)

    def transform(self, layer, x):
        """What the MLP adds to a row."""
        return self.twin.gated(self.twin.norm(x, f"blocks.{layer}.ff_norm"), f"blocks.{layer}")

    def embedded(self, canvas):
        return [self.twin.w["wte"][token] for token in canvas]

    def logits(self, rows):
        return torch.stack([self.twin.w["ff_out"] @ self.twin.norm(x, "ln_f") for x in rows])

    def forward(self, canvas, rows, keys):
        """States of `rows` that write their K and V and see those of `keys` of each layer."""
        x = self.embedded(canvas)
        for layer in range(DEEP.layers):
            for place in rows:
                self.keep(layer, x[place], place)
            for place in rows:
                x[place] = x[place] + self.attend(layer, x[place], place, keys(layer))
                x[place] = x[place] + self.transform(layer, x[place])
        return x


def delayed(prompt, views):
    """Logits of each step: by the list of rows that dKV-Cache-Decode forwards."""
    layers, before = Layers(prompt), None
    for view, canvas in views:
        places = range(len(canvas))
        masks = [place for place in places if canvas[place] == DEEP.mask_id]
        whole = view.step < 2 or view.step % 4 == 0
        rows = (
            places if whole else sorted({*masks, *before})
        )  # what was masked a step ago: masks, and what was committed
        assert whole or len(rows) < len(canvas)
        x, before = layers.forward(canvas, rows, lambda _: places), masks
        yield x


def features(prompt, views):
    """dLLM-Cache, of which K, V and the results of attention and MLP are kept."""
    layers = Layers(prompt)
    for number, (_, canvas) in enumerate(views):
        places, start = range(len(canvas)), len(prompt)
        x, response = layers.embedded(canvas), range(start, len(canvas))
        for layer in range(DEEP.layers):
            due = set()
            if layer == 0 or number % 5 == 0:
                due |= set(range(start))
            if layer == 0 or number % 3 == 0:
                due |= set(response)
            else:
                now = {place: layers.project(layer, x[place], "v_proj").flatten() for place in response}
                then = {place: layers.v[layer][place].flatten() for place in response}
                alike = {
                    place: float(now[place] @ then[place] / now[place].norm() / then[place].norm())
                    for place in response
                }
                due |= set(sorted(response, key=alike.__getitem__)[: len(response) // 4])
            for place in response:
                layers.v[layer][place] = layers.project(layer, x[place], "v_proj")
            for place in due:
                layers.keep(layer, x[place], place)
            for place in due:
                layers.attention[layer][place] = layers.attend(layer, x[place], place, places)
            for place in places:
                x[place] = x[place] + layers.attention[layer][place]
                if place in due:
                    layers.mlp[layer][place] = layers.transform(layer, x[place])
                x[place] = x[place] + layers.mlp[layer][place]
        yield x


def sparse(prompt, views):
    """Sparse-dLLM: two full steps, the second of which chooses half of the other keys, then the block."""
    layers, kept = Layers(prompt), {}
    for view, canvas in views:
        places, first = range(len(canvas)), len(prompt) + 8 * view.block
        block = range(first, first + 8)
        others = [place for place in places if place not in block]
        if view.step < 2:
            states = []
            x = layers.embedded(canvas)
            for layer in range(DEEP.layers):
                for place in places:
                    layers.keep(layer, x[place], place)
                queries = [layers.turned(layers.project(layer, x[place], "q_proj"), place) for place in block]
                mean = torch.stack(queries).mean(0)
                scores = [
                    float(
                        sum(mean[head] @ layers.k[layer][place][head // 2] for head in range(DEEP.heads)) / DEEP.heads
                    )
                    for place in others
                ]
                pooled = [max(scores[max(0, at - 1) : at + 2]) for at in range(len(others))]
                best = sorted(range(len(others)), key=lambda at: (-pooled[at], at))[: len(others) // 2]
                kept[layer] = [others[at] for at in best]
                for place in places:
                    x[place] = x[place] + layers.attend(layer, x[place], place, places)
                    x[place] = x[place] + layers.transform(layer, x[place])
            states = x
        else:
            states = layers.forward(canvas, block, lambda layer: [*kept[layer], *block])
        yield states


@pytest.mark.parametrize(("cache", "rule"), [("dkv", delayed), ("dllm_cache", features), ("sparse", sparse)])
def test_a_policy_computes_what_its_rule_says(cache, rule):
    for prompt in PROMPTS:
        _, views = views_of([prompt], cache)
        _, first = layout([prompt], WORKLOAD, MODEL)
        steps = [(view, view.canvas[0, first[0] :].tolist()) for view in views]
        assert len(steps) == 16
        layers = Layers(prompt)
        differs = 0.0
        exact = StudyModel(DEEP, WEIGHTS)
        for (view, _), states in zip(steps, rule(prompt, steps), strict=True):
            start = len(prompt) + 8 * view.block
            expected = layers.logits(states[start : start + 8])
            masked = view.masked[0]
            np.testing.assert_allclose(view.logits[0][masked], expected[masked], atol=1e-4, rtol=1e-4)
            whole = exact.forward(view.canvas, slice(None), exact.new_batch(first, view.canvas.shape[1]))
            differs = max(differs, float((exact.logits(whole[:, view.place]) - view.logits)[0][masked].abs().max()))
        assert differs > 0.05  # the policy leaves something out


SAME = [
    ("dkv", DelayedCaching(interval=1), "none"), ("dllm_cache", FeatureCaching(prompt_interval=1, response_interval=1), "none"),
    ("dllm_cache", FeatureCaching(prompt_interval=1, response_interval=9, share=1.0), "none"),
    ("dllm_cache", FeatureCaching(prompt_interval=50, response_interval=9, share=0.0, full_layers=3), "none"),
    ("sparse", SparseAttention(kept=1.0), "twice"),
]  # fmt: skip


@pytest.mark.parametrize(("cache", "by_data", "other"), SAME)
def test_limits_of_the_policies_are_the_plain_ones(cache, by_data, other, monkeypatch):
    """Intervals of one, a share of all rows or all keys: `none`, or `dual` with two full steps."""
    monkeypatch.setitem(CACHE_POLICIES, "twice", CachePolicy(later=Rows.BLOCK, full_steps=2))
    monkeypatch.setitem(CACHE_POLICIES, cache, dataclasses.replace(CACHE_POLICIES[cache], by_data=by_data))
    found, views = views_of(PROMPTS, cache)
    expected, others = views_of(PROMPTS, other)
    assert torch.equal(found.token_ids, expected.token_ids)
    for view, twin in zip(views, others, strict=True):
        np.testing.assert_allclose(view.logits, twin.logits, atol=1e-4)


@pytest.mark.parametrize("cache", POLICIES)
@pytest.mark.parametrize("commit", ["quota", "threshold"])
def test_a_batch_gives_each_sequence_what_it_gets_alone(cache, commit):
    """Also where some are done with a block before the others."""
    together, _ = views_of(PROMPTS, cache, commit=commit, threshold=0.3)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = views_of([prompt], cache, commit=commit, threshold=0.3)
        assert together.token_ids[row].tolist() == alone.token_ids[0].tolist()
        assert together.trip_counts[row].tolist() == alone.trip_counts[0].tolist()


@pytest.mark.parametrize("cache", POLICIES)
def test_a_model_does_not_differ_from_itself(cache):
    workload = dataclasses.replace(WORKLOAD, cache=cache)
    comparison = Comparison(StudyModel(DEEP, WEIGHTS), workload)
    decode(MODEL, PROMPTS, workload, observe=comparison.observe, probe=comparison.probe)
    found = comparison.summary
    assert found["logit_kl"] == pytest.approx(0, abs=1e-9)
    assert (found["argmax_flips"], found["transfer_overlap"]) == (0, 1)
    assert found["attention_error"] < 1e-5 or cache == "sparse"  # whose rows see fewer keys than the exact ones


@pytest.mark.parametrize("cache", POLICIES)
def test_the_numpy_reference_and_device_models_refuse_them_by_name(cache):
    model, workload = ReferenceModel(SPEC, tensors()), dataclasses.replace(WORKLOAD, cache=cache)
    with pytest.raises(TripathError, match=f"workload.cache={cache}: the NumPy reference does not carry this out"):
        generate(model, PROMPTS[0], workload)
    with pytest.raises(
        TripathError, match=f"workload.cache={cache}: device models do not know the rows that data choose"
    ):
        list(steps_of(workload, 21))
