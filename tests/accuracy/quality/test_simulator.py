"""The path `quality`: what it measures, what its results are kept under, and what the timing paths take from it."""

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accuracy.quality.simulator import simulate, trace_at
from dllm.workload import reference_only
from npu.errors import TripathError
from npu_compiler import compile_program, schedule
from tests.conftest import compose_experiment
from tripath.run.job import prepare
from tripath.run.pipeline import known_runs, run_paths
from tripath.run.results import Cache

SMALL = ("experiment=quick", "simulator.quality.problems=4", "simulator.quality.compared=2", "workload.generation_length=8",
         "workload.steps=8")  # fmt: skip


def quality_of(*overrides, **options):
    x = compose_experiment(*overrides, "paths=[quality]")
    return simulate(
        model=x.model, workload=x.workload, numerics=x.numerics, **{"problems": 8, "compared": 3, **options}
    )


def test_a_quantised_cache_does_what_smoothing_is_for():
    """Planted K outliers change nothing in BF16, break plain MXINT4, and BAOS mends that; bytes by hand."""
    runs = {
        (kv, scheme, gain): quality_of(
            f"numerics.kv={kv}", f"scheme={scheme}", "workload.steps=16", planted=gain
        ).result.metrics
        for kv, scheme, gain in (
            ("bf16", "plain", 1),
            ("bf16", "plain", 16),
            ("mxint4", "plain", 16),
            ("mxint4", "baos", 16),
        )
    }
    one, planted, broken, mended = runs.values()
    assert (one["problems"], one["compared"]) == (8, 3)
    assert one["exact_match"] == one["solved"] / 8
    assert one["exact_match_low"] < one["exact_match"] < one["exact_match_high"]
    assert abs(planted["solved"] - one["solved"]) <= 1
    assert planted["logit_kl"] < 0.01 < broken["logit_kl"]
    assert broken["solved"] < mended["solved"]
    assert mended["logit_kl"] < 0.2 * broken["logit_kl"]
    assert one["kv_bytes_per_token"] == 2 * 2 * 2 * 128  # layers, K and V, bytes, channels
    assert broken["kv_bytes_per_token"] == 2 * 128 * (4 / 8 + 1 / 32) + 2 * 128 * (4 / 8 + 1 / 8)
    assert {name for run in runs.values() for name in run} == set(one)


def test_quotas_take_their_schedule_and_thresholds_what_they_need():
    made = quality_of("workload.steps=8")
    assert made.result.metrics["steps_per_block"] == 8 / 4
    assert made.trace == schedule(compose_experiment("workload.steps=8").workload)
    low, high = (quality_of("workload.commit=threshold", f"workload.threshold={tau}") for tau in (0.5, 1.0))
    assert 1 <= low.result.metrics["steps_per_block"] < high.result.metrics["steps_per_block"] < 8
    assert sum(low.trace.breaks) < sum(high.trace.breaks)


@given(st.lists(st.floats(1, 8), min_size=1, max_size=40))
@example([1.5, 1.0])
def test_a_trace_of_means_takes_as_many_steps(means):
    steps = [index + 1 for index in trace_at(means).breaks]
    for block in range(1, len(means) + 1):
        assert abs(sum(steps[:block]) - sum(means[:block])) <= 0.5 + 1e-9
    assert all(1 <= step <= 8 for step in steps)


def test_the_ideal_ranks_in_what_is_asked_for():
    """In FP32 and FP64 hardly anything ties; in BF16 the confidences near 1 do."""
    overlap = {
        (own, ranking): quality_of(
            "numerics=bf16", f"numerics.confidences={own}", ranking=ranking, problems=8, compared=8
        ).result.metrics["transfer_overlap"]
        for own, ranking in (("bf16", "fp64"), ("fp64", "fp64"), ("fp64", None))
    }
    assert overlap["fp64", "fp64"] == overlap["fp64", None]
    assert overlap["bf16", "fp64"] < overlap["fp64", "fp64"]


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ((), {"problems": 561}, "simulator.quality.problems: 561 exceed the 560 that do not calibrate"),
        ((), {"problems": 1}, "simulator.quality.problems: must be an integer of at least 2, got 1"),
        ((), {"compared": True}, "simulator.quality.compared: must be an integer of at least 2, got True"),
        ((), {"planted": "x"}, "simulator.quality.planted: must be a number, got 'x'"),
        ((), {"planted": -1}, "simulator.quality.planted: gain -1 must be positive"),
        ((), {"ranking": "bf8"}, "simulator.quality.ranking: unknown 'bf8', one of bf16, fp32, fp64"),
        (("workload=paper_sampling",), {}, "workload.stage: sampling generates no text"),
        (("model=wordmath_block",), {}, "model.attention_mask=block_causal: the quality path does not decode this"),
        (("workload.cache=append",), {}, "workload.cache=append: the quality path does not carry this out"),
        (
            ("workload.cache=dkv", "scheme=baos"),
            {},
            "numerics.smoothing.scheme: baos needs all K and V of a block at once",
        ),
        (
            ("workload.cache=dkv", "model.shifted_logits=true"),
            {},
            "workload.cache: dkv does not serve model.shifted_logits",
        ),
    ],
)
def test_options_are_checked(overrides, options, message):
    with pytest.raises(TripathError, match=message):
        quality_of(*overrides, **options)


def test_a_result_is_kept_under_all_that_decides_it_and_nothing_else(tmp_path):
    cache = Cache(tmp_path)

    def cached(*overrides):
        x = compose_experiment(*SMALL, "paths=[quality]", *overrides)
        return run_paths(None, x, [], cache)["quality"].cached

    assert not cached()
    for same in ((), ("hardware.vlen=128",), ("simulator.cycle.race_check=false",)):
        assert cached(*same)
    for other in ("scheme=hadamard", "numerics.kv=mxint4", "numerics.confidences=fp64", "workload.score=entropy",
                  "simulator.quality.planted=8", "simulator.quality.problems=5", "simulator.quality.ranking=fp64"):  # fmt: skip
        assert not cached(other)
        assert cached(other)


def test_timing_paths_replay_the_mean_steps_of_the_problems(tmp_path):
    x = compose_experiment(*SMALL, "workload.commit=threshold", "paths=[analytical,quality]")
    prepared, cache = prepare(x, "Tom has 12 apples."), Cache(tmp_path)
    runs = run_paths(prepared.program, x, prepared.token_ids, cache)
    assert runs["analytical"].trace == runs["quality"].trace != schedule(x.workload)
    alone = dataclasses.replace(x, paths=["analytical"])
    scheduled = run_paths(prepared.program, alone, prepared.token_ids, cache)["analytical"].result
    assert runs["analytical"].result.metrics["estimated_cycles"] < scheduled.metrics["estimated_cycles"]
    again = known_runs(prepared.program, x, prepared.token_ids, cache)
    assert {name: run.result for name, run in again.items()} == {name: run.result for name, run in runs.items()}
    assert all(run.cached for run in again.values())


BEYOND = {
    "workload.commit=factor": (), "workload.commit=dream": (), "workload.score=topk_margin": (), "workload.score=entropy": (),
    "workload.cache=dkv": (), "workload.cache=dllm_cache": (), "workload.cache=sparse": (), "numerics.confidences=fp32": (), "numerics.confidences=fp64": (),
    "numerics.smoothing.scheme=oracle": ("scheme=oracle",),
    "numerics.smoothing.centre=true": ("scheme=static", "numerics.smoothing.centre=true"),
    "numerics.smoothing.pre_rope=true": ("scheme=prerope", "numerics.k_axis=tokens"),
}  # fmt: skip


@pytest.mark.parametrize("choice", BEYOND)
def test_what_no_program_carries_out_is_left_to_the_reference_path(choice):
    overrides = BEYOND[choice] or (choice,)
    x = compose_experiment("paths=[analytical,cycle,quality]", *overrides)
    assert (x.paths, x.reference_only) == (["quality"], choice)
    with pytest.raises(TripathError, match=f"{choice}: no program carries this out, the reference path does"):
        compile_program(x.model, x.workload, x.hardware, x.numerics, [19])
    assert prepare(x, None).program is None


@pytest.mark.parametrize(
    "scheme",
    [
        "plain",
        "baos",
        "baos_half",
        "baos_pow2",
        "baos_k",
        "baos_v_pow2",
        "baos_centred",
        "kivi",
        "v_channels_baos",
        "frozen",
        "static",
        "prerope",
        "prerope_baos",
        "hadamard",
    ],
)
def test_a_scheme_of_the_machine_is_one_key_for_both(scheme):
    x = compose_experiment("paths=[analytical,quality]", f"scheme={scheme}")
    assert (x.paths, x.reference_only) == (["analytical", "quality"], "")
    assert not reference_only(x.workload, x.numerics)
    assert compile_program(x.model, x.workload, x.hardware, x.numerics, [19])
