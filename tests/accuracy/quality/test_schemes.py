"""Laws of the KV schemes: what must change nothing, what must be exact, and what smoothing does where it applies."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from accuracy.quality.calibrate import calibrate, plant_outliers
from accuracy.quality.decode import decode
from accuracy.quality.metrics import Comparison, kv_bytes_per_token
from accuracy.quality.model import UNQUANTISED, StudyModel
from accuracy.quality.schemes import channel_maxima, hadamard, smoothing_factors
from dllm.answers import wilson
from dllm.numerics import SIDES, Numerics, Smoothing
from npu.errors import TripathError
from tests.accuracy.quality.models import PROMPTS, SPEC, WORKLOAD, tensors
from tests.conftest import compose_experiment

SCHEMES = sorted(file.stem for file in (Path(__file__).parents[3] / "conf" / "scheme").glob("*.yaml"))
MACHINE = Numerics(weights="mxint8", activations="mxint8", kv="mxint4", logits="mxint8")


def model_of(numerics=MACHINE, *, lanes="bf16", weights=None, workload=WORKLOAD, **smoothing):
    weights = tensors() if weights is None else weights
    if smoothing:
        numerics = dataclasses.replace(numerics, smoothing=Smoothing(**smoothing))
    calibration = None
    if numerics.smoothing.scheme == "static":
        calibration = calibrate(SPEC, weights, numerics, PROMPTS, workload, lanes=lanes)
    return StudyModel(SPEC, weights, numerics, workload.block_length, lanes=lanes, calibration=calibration)


def logits_of(model, workload=WORKLOAD, canvases=None):
    views = []
    force = None if canvases is None else lambda block, step: canvases.get((block, step))
    decode(model, PROMPTS, workload, observe=views.append, force=force)
    return views


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_without_rounding_no_scheme_changes_the_function(name, cache):
    workload = dataclasses.replace(WORKLOAD, cache=cache)
    plain = logits_of(StudyModel(SPEC, tensors()), workload)
    canvases = {(view.block, view.step): view.canvas for view in plain}
    x = compose_experiment(f"scheme={name}").numerics
    numerics = dataclasses.replace(UNQUANTISED, k_axis=x.k_axis, v_axis=x.v_axis, smoothing=x.smoothing)
    smoothed = logits_of(model_of(numerics, lanes="fp32", workload=workload), workload, canvases)
    for one, other in zip(plain, smoothed, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["mxint4", "mxint8", "mxfp4_e2m1", "mxfp6_e3m2", "mxfp8_e4m3"])
@pytest.mark.parametrize("smoother", ["baos", "static", "frozen", "oracle"])
def test_negative_control_powers_of_two_change_no_bit_of_v_along_tokens(name, smoother):
    """Each block of V lies in one channel, so its scale absorbs s; exponents stay far from E8M0's ends here."""
    numerics = dataclasses.replace(MACHINE, kv=name)
    plain = logits_of(model_of(numerics))
    control = logits_of(model_of(numerics, scheme=smoother, keys=False, power_of_two=True))
    assert len(plain) == len(control)
    for one, other in zip(plain, control, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.committed, other.committed)
    moved = control[0].batch.sides[0]["values"].s
    assert (moved != 1).any(), "the control would be empty if all s were 1"


def test_the_same_does_change_v_along_channels_and_k():
    for numerics in (dataclasses.replace(MACHINE, v_axis="channels"), MACHINE):
        one = logits_of(model_of(numerics))
        other = logits_of(model_of(numerics, scheme="baos", power_of_two=True, keys=numerics.v_axis == "tokens"))
        assert not torch.equal(one[0].logits, other[0].logits)


def test_a_vanishing_alpha_is_plain():
    one, other = logits_of(model_of()), logits_of(model_of(scheme="baos", alpha=1e-6))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(one, other, strict=True))


def test_before_the_first_refine_step_frozen_and_oracle_are_baos():
    runs = [logits_of(model_of(scheme=kind)) for kind in ("baos", "frozen", "oracle")]
    assert torch.equal(runs[0][0].logits, runs[1][0].logits)
    assert torch.equal(runs[0][0].logits, runs[2][0].logits)


def test_when_s_is_computed():
    """baos: at each block's first step; frozen: once; oracle: at every step; static: never from the sequence itself."""
    workload = dataclasses.replace(WORKLOAD, steps=16)
    for kind, expected in (("baos", {0}), ("frozen", set()), ("oracle", set(range(8))), ("static", set())):
        seen, changed = {}, set()

        def observe(view, seen=seen, changed=changed):
            s = view.batch.sides[1]["keys"].s.clone()
            if seen and not torch.equal(s, seen["s"]):
                changed.add(view.step)
            seen["s"] = s

        decode(model_of(scheme=kind, workload=workload), PROMPTS, workload, observe=observe)
        assert changed <= expected
        assert bool(changed) == bool(expected)


def test_refine_steps_leave_the_rest_of_the_cache_alone():
    model = model_of(scheme="baos", centre=True)
    views, stored = [], []

    def observe(view):
        views.append(view)
        stored.append({side: kept.stored.clone() for side, kept in view.batch.sides[0].items()})

    decode(model, PROMPTS, WORKLOAD, observe=observe)
    place = views[1].place
    for side in SIDES:
        before, after = stored[0][side], stored[1][side]
        outside = torch.ones(before.shape[2], dtype=torch.bool)
        outside[place] = False
        assert torch.equal(before[:, :, outside], after[:, :, outside])
        assert not torch.equal(before[:, :, place], after[:, :, place])


def test_smoothing_follows_its_formula_and_sees_no_padding():
    x = torch.randn(2, 3, 10, 32, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 9, 32)
    real = torch.arange(10) >= torch.tensor([0, 4])[:, None]
    x[1, :, :4] = 1e6
    c = channel_maxima(x, real)
    np.testing.assert_array_equal(c[1, :, 0], x[1, :, 4:].abs().amax(1))
    for alpha in (0.5, 1.0):
        s = smoothing_factors(c, Smoothing(scheme="baos", alpha=alpha)).double()
        geomean = c.double().log().mean(-1, keepdim=True).exp()
        np.testing.assert_allclose(s, (c.double() / geomean) ** alpha, rtol=1e-5)
        np.testing.assert_allclose(s.log().mean(-1), 0, atol=1e-6)
    powers = smoothing_factors(c, Smoothing(scheme="baos", power_of_two=True)).log2()
    assert torch.equal(powers, powers.round())
    pairs = smoothing_factors(channel_maxima(x, real, pairs=True), Smoothing(scheme="baos"))
    assert torch.equal(pairs[..., :16], pairs[..., 16:])


def test_a_dead_channel_keeps_s_finite():
    x = torch.ones(1, 1, 4, 32)
    x[..., 5] = 0
    s = smoothing_factors(channel_maxima(x, torch.ones(1, 4, dtype=torch.bool)), Smoothing(scheme="baos"))
    assert torch.isfinite(s).all()
    assert (s > 0).all()


def test_hadamard_is_orthonormal():
    h = hadamard(32)
    np.testing.assert_allclose(h @ h.T, torch.eye(32), atol=1e-6)
    with pytest.raises(TripathError, match="power of two"):
        hadamard(96)


@pytest.mark.parametrize("gain", [8.0, 16.0])
def test_planted_outliers_change_no_bit_of_the_function_and_enlarge_k(gain):
    plain, planted = StudyModel(SPEC, tensors()), StudyModel(SPEC, plant_outliers(tensors(), SPEC, gain))
    one, other = logits_of(plain), logits_of(planted)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-4, rtol=1e-4)
    keys = [views[0].batch.sides[0]["keys"].raw.abs().amax((0, 1, 2)) for views in (one, other)]
    ratio = keys[1] / keys[0]
    assert ((ratio - gain).abs() < 1e-3).sum() == 4
    assert ((ratio - 1).abs() < 1e-3).sum() == 28


def test_smoothing_undoes_planted_outliers():
    """With outliers of 16 in K, BAOS lies nearer to FP32 than plain blocks do."""
    planted = plant_outliers(tensors(), SPEC, 16.0)
    errors = {}
    for name in ("plain", "baos"):
        comparison = Comparison(StudyModel(SPEC, planted), WORKLOAD)
        decode(
            model_of(scheme=name, weights=planted),
            PROMPTS,
            WORKLOAD,
            observe=comparison.observe,
            probe=comparison.probe,
        )
        errors[name] = comparison.summary["attention_error"]
    assert errors["baos"] < 0.8 * errors["plain"]


def test_the_reference_compared_with_itself_shows_nothing():
    model = StudyModel(SPEC, tensors())
    comparison = Comparison(model, WORKLOAD)
    decode(model, PROMPTS, WORKLOAD, observe=comparison.observe, probe=comparison.probe)
    summary = comparison.summary
    assert summary["logit_kl"] == pytest.approx(0, abs=1e-9)
    assert summary["argmax_flips"] == 0
    assert summary["transfer_overlap"] == 1
    assert summary["attention_error"] < 1e-5
    assert summary["drift_steps_k"] > 0
    assert summary["drift_blocks_v"] > 0


def test_the_error_of_logit_kl_is_the_standard_error_over_sequences():
    """All sequences have as many masked positions here, so it is the plain standard error of their means."""
    comparison, per_sequence = (
        Comparison(StudyModel(SPEC, tensors()), WORKLOAD),
        torch.zeros(len(PROMPTS), dtype=torch.float64),
    )
    reference = StudyModel(SPEC, tensors())
    batch = []

    def observe(view):
        comparison.observe(view)
        if not batch:
            batch.append(reference.new_batch((~view.batch.real).sum(1), view.canvas.shape[1]))
        rows = slice(0, view.canvas.shape[1]) if view.step == 0 else view.place
        hidden = reference.forward(view.canvas, rows, batch[0], block=view.block)
        p = reference.logits(hidden[:, view.place] if view.step == 0 else hidden).double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(view.logits.double().log_softmax(-1), p, reduction="none", log_target=True).sum(
            -1
        )
        per_sequence.add_((kl * view.masked).sum(1))

    decode(model_of(), PROMPTS, WORKLOAD, observe=observe, probe=comparison.probe)
    means = per_sequence / (2 * (8 + 6 + 4 + 2))
    assert comparison.summary["logit_kl"] == pytest.approx(float(means.mean()), rel=1e-6)
    assert comparison.summary["logit_kl_error"] == pytest.approx(float(means.std()) / len(PROMPTS) ** 0.5, rel=1e-6)


def test_kv_bytes_count_elements_scales_and_factors():
    def size(format, block=32, v_axis="tokens", **options):
        numerics = dataclasses.replace(
            MACHINE, kv=format, block_size=block, v_axis=v_axis, smoothing=Smoothing(**options)
        )
        return kv_bytes_per_token(SPEC, numerics, 8, canvas=64.0)

    width = 2 * 2 * 32  # layers, KV heads, channels
    assert size("bf16") == 2 * 2 * width
    assert size("mxint4") == width * (4 / 8 + 1 / 32) + width * (4 / 8 + 1 / 8)
    assert size("mxfp6_e2m3", v_axis="channels") == 2 * width * (6 / 8 + 1 / 32)
    assert size("mxint8", block=16) == width * (1 + 1 / 16) + width * (1 + 1 / 8)
    assert size("mxint4", scheme="baos") - size("mxint4") == 2 * width * 2 / 64
    assert size("mxint4", scheme="baos", power_of_two=True, values=False) - size("mxint4") == width / 64


def test_wilson_against_published_values():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20)[0] == 0
    assert wilson(20, 20)[1] == pytest.approx(1)
