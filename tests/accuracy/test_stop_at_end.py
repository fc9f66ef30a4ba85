"""Stopping at the end token: the blocks that are decoded are those of a run that does not stop, up to the one where the last sequence
ends; all paths agree on what they cost."""

import dataclasses
import json
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analytical
import cycle
from accuracy.simulator import simulate
from analytical.tree import retirements
from dllm.canvas import canvas_of
from dllm.checkpoint import load_tensors, load_tokenizer
from dllm.decoding import generate
from dllm.reference import ReferenceModel
from npu.errors import ProgramError, TripathError
from npu.program.exits import all_exits, denoising_loops, exits_of, generated_tokens, steps_of_blocks
from npu.program.trace import Trace
from npu_compiler import compile_program
from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.api import prepare

PROMPTS = ("Tom has 12 apples and finds 30 more. How many apples does Tom have now?",
           "Nina has 4 bags with 6 pens each. How many pens does Nina have?")  # fmt: skip
SHORT = ("workload.generation_length=32", "workload.commit=threshold", "workload.stop_at_end=true")
CASES = {
    "one loop": ("model=wordmath", "workload.cache=dual"),
    "no cache": ("model=wordmath", "workload.cache=none", "workload.batch=2"),
    "two groups": ("model=wordmath", "workload.cache=prefix", "hardware.sram.vector_bytes=65536"),
    "first block apart": ("model=wordmath", "numerics=mxint4_kv", "scheme=frozen"),
    "appended": ("model=wordmath_block", "workload.batch=2"),
    "two end tokens": (
        "model=wordmath",
        "workload.cache=dual",
        "workload.batch=2",
        "model.other_eos_ids=[500,266]",
    ),
}


def compiled(*overrides):
    """Experiment, prompts, and the program that stops."""
    x = compose_experiment(*overrides, *SHORT)
    tokenizer = load_tokenizer(x.model.checkpoint)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS[: x.workload.batch]]
    lengths = [len(prompt) for prompt in prompts]
    return x, prompts, compile_program(x.model, x.workload, x.hardware, x.numerics, lengths)


def last_block(x, prompts, tokens):
    """By brute force, of the tokens of a run that does not stop: the blocks until every sequence has an end token."""
    length, plan = x.workload.block_length, canvas_of(x.model, x.workload, [len(prompt) for prompt in prompts])
    ended = []
    for sequence, row in enumerate(tokens):
        blocks = [
            (plan.tail(sequence) + place) // length + 1 for place, token in enumerate(row) if token in x.model.end_ids
        ]
        ended.append(blocks[0] if blocks else plan.blocks)
    return max(ended)


@pytest.mark.parametrize("name", CASES)
def test_the_machine_decodes_the_blocks_up_to_the_last_end_token(name):
    x, prompts, program = compiled(*CASES[name])
    whole = dataclasses.replace(x.workload, stop_at_end=False)
    lengths = [len(prompt) for prompt in prompts]
    unstopped = simulate(
        compile_program(x.model, whole, x.hardware, x.numerics, lengths), model=x.model, workload=whole, prompts=prompts
    )
    found = simulate(program, model=x.model, workload=x.workload, prompts=prompts)
    blocks = last_block(x, prompts, unstopped.token_ids)
    assert blocks < len(unstopped.trip_counts), "the case stops nowhere"
    assert found.trip_counts == unstopped.trip_counts[:blocks]
    for mine, theirs in zip(found.token_ids, unstopped.token_ids, strict=True):
        assert mine == theirs[: len(mine)]
        assert set(x.model.end_ids) & set(mine)
    metrics, plan = found.result.metrics, canvas_of(x.model, x.workload, lengths)
    tails = sum(plan.tail(sequence) for sequence in range(len(prompts)))
    assert metrics["generated_tokens"] == blocks * x.workload.block_length * len(prompts) - tails
    assert metrics["generated_tokens"] == generated_tokens(program, found.trace.breaks)
    assert metrics["kept_tokens"] == unstopped.result.metrics["kept_tokens"]
    appended = (1 + blocks) if x.workload.caches.appends else 0  # the prompt, and a clean forward of each block
    assert metrics["forwards"] == sum(found.trip_counts) + appended
    assert metrics["forwards_per_kept_token"] == metrics["forwards"] * len(prompts) / metrics["kept_tokens"]
    exact = cycle.simulate(program, hardware=x.hardware, trace=found.trace, technology=x.technology)
    closed = analytical.simulate(program, hardware=x.hardware, trace=found.trace, technology=x.technology)
    assert exact.counts == closed.counts == found.result.counts
    makespan = exact.metrics["makespan_cycles"]
    assert closed.metrics["lower_bound_cycles"] <= makespan
    assert abs(closed.metrics["estimated_cycles"] - makespan) <= 0.1 * makespan
    assert exact.metrics["tokens_per_second"] == metrics["generated_tokens"] / exact.metrics["seconds"]
    assert [row[1] + 1 for row in exact.tables["blocks"].rows] in (
        found.trip_counts,
        [n + 1 for n in found.trip_counts],
    )


@pytest.mark.parametrize("model", ["wordmath", "wordmath_block"])
def test_the_reference_stops_where_brute_force_says(model):
    x, prompts, _ = compiled(f"model={model}")
    reference = ReferenceModel(x.model, load_tensors(x.model))
    whole = generate(reference, prompts[0], dataclasses.replace(x.workload, stop_at_end=False))
    found = generate(reference, prompts[0], x.workload)
    blocks = last_block(x, prompts, [whole.token_ids])
    assert found.trip_counts == whole.trip_counts[:blocks]
    assert found.token_ids == whole.token_ids[: len(found.token_ids)]
    assert len(found.steps) == sum(found.trip_counts)


@lru_cache
def of_case(name):
    x, _, program = compiled(*CASES[name])
    return x, program


def drawn(data, program):
    """A trace of any data: every loop that may be left early is left anywhere."""
    needed, breaks = 1, []
    while len(breaks) < needed:
        loop = exits_of_so_far(program, breaks)[len(breaks)].loop
        breaks.append(data.draw(st.integers(0, min(loop.most_trips - 1, 3))))
        needed = len(exits_of_so_far(program, breaks))
    return tuple(breaks)


def exits_of_so_far(program, breaks):
    """The exits of a trace that goes on with index 0."""
    for more in range(1000):
        try:
            return exits_of(program, (*breaks, *[0] * more))
        except ProgramError:
            continue
    raise AssertionError


@settings(max_examples=8, deadline=None)
@given(data=st.data(), name=st.sampled_from(["one loop", "two groups", "appended"]))
def test_counts_and_cycles_follow_any_exits_of_nested_loops(data, name):
    x, program = of_case(name)
    trace = Trace(breaks=drawn(data, program))
    exact = cycle.simulate(program, hardware=x.hardware, trace=trace, race_check=False)
    slow = cycle.simulate(program, hardware=x.hardware, trace=trace, race_check=False, fast_forward=False)
    assert exact.metrics["makespan_cycles"] == slow.metrics["makespan_cycles"]
    assert analytical.simulate(program, hardware=x.hardware, trace=trace).counts == exact.counts
    assert retirements(program, trace).sum() == exact.metrics["instructions"]


@pytest.mark.parametrize("name", CASES)
def test_without_a_trace_all_blocks_are_taken(name):
    x, prompts, program = compiled(*CASES[name])
    whole = dataclasses.replace(x.workload, stop_at_end=False)
    lengths = [len(prompt) for prompt in prompts]
    steps = x.schedule(prompts).breaks
    trace = x.schedule(prompts, program)
    assert steps_of_blocks(program, trace.breaks) == [index + 1 for index in steps]
    assert trace.breaks == all_exits(program, steps)
    plain = compile_program(x.model, whole, x.hardware, x.numerics, lengths)
    theirs = analytical.simulate(plain, hardware=x.hardware, trace=Trace(breaks=steps)).counts
    mine = analytical.simulate(program, hardware=x.hardware, trace=trace).counts
    assert mine["macs"] == theirs["macs"]
    assert len(denoising_loops(program)) == len(denoising_loops(plain))


def test_a_trace_that_does_not_fit_is_refused():
    x, program = of_case("one loop")
    for breaks in ((), (3, 0, 0), (1, 0, 0, 0), (0, 0, 0)):
        with pytest.raises(ProgramError, match=f"trace: {len(breaks)} loop exits, the program has"):
            analytical.simulate(program, hardware=x.hardware, trace=Trace(breaks=breaks))
    with pytest.raises(ProgramError, match="has 4 trips, left at index 4"):
        analytical.simulate(program, hardware=x.hardware, trace=Trace(breaks=(4, 0, 0, 0, 0, 0)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("workload=paper_sampling", "workload.stop_at_end=true"),
            r"workload\.stop_at_end: stage=sampling is one step",
        ),
        (
            ("hardware=npu_autoregressive", "compiler=host_sampling", "workload.cache=none", *SHORT),
            r"workload\.stop_at_end: compiler\.sampling=host",
        ),
    ],
)
def test_who_cannot_stop_says_so(given, said):
    with pytest.raises(TripathError, match=said):
        prepare(compose_experiment(*given), PROMPTS[0])


def test_the_quality_path_does_not_stop():
    from accuracy.quality import simulate as quality

    x = compose_experiment("workload.stop_at_end=true")
    with pytest.raises(TripathError, match=r"workload\.stop_at_end: the quality path does not carry this out"):
        quality(model=x.model, workload=x.workload, numerics=x.numerics, problems=2)


def test_a_prompt_s_own_end_token_ends_nothing():
    """The tail of a prompt opens the first block of a block-causal model; end tokens in it do not count."""
    x, prompts, _ = compiled("model=wordmath_block", "workload.batch=1")
    prompt = [*prompts[0][: len(prompts[0]) // 8 * 8], x.model.eos_id, x.model.eos_id]
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(prompt)])
    found = simulate(program, model=x.model, workload=x.workload, prompts=[prompt])
    whole = generate(
        ReferenceModel(x.model, load_tensors(x.model)), prompt, dataclasses.replace(x.workload, stop_at_end=False)
    )
    assert found.token_ids[0] == whole.token_ids[: len(found.token_ids[0])]
    assert len(found.trip_counts) == last_block(x, [prompt], [whole.token_ids])
    assert np.mean(np.array(prompt) == x.model.eos_id) > 0


def test_the_command_reports_the_blocks_that_were_decoded(tripath_command, tmp_path):  # noqa: F811
    """All paths and checks of a run that stops, and draws its tokens."""
    status, output, errors = tripath_command(
        "workload.stop_at_end=true", "workload.temperature=0.2", "workload.steps_per_block=2", "hydra.run.dir=run"
    )
    assert (status, errors) == (0, ""), output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    metrics = report["simulators"]["accuracy"]["metrics"]
    blocks = len(report["generation"]["trip_counts"])
    assert blocks < 4
    assert metrics["accuracy.generated_tokens"] == 8 * blocks == len(report["generation"]["token_ids"])
    assert f"{8 * blocks} tokens (" in output
    for path in ("analytical", "cycle"):
        own = report["simulators"][path]["metrics"]
        assert own[f"{path}.tokens_per_second"] == pytest.approx(8 * blocks / own[f"{path}.seconds"])
