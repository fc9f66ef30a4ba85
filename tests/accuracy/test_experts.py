"""Mixtures of experts: NumPy and torch agree, the program equals the reference, and what it loads is what its trace says."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

import analytical
import cycle
from accuracy.image import read_tokens
from accuracy.simulator import execute, fidelity
from cycle.races import find_race
from dllm.canvas import canvas_of
from dllm.decoding import generate
from dllm.experts import Experts
from dllm.families import expected_shapes
from dllm.reference import ReferenceModel, route
from npu.errors import TripathError
from npu.program import Program
from npu.program.reads import reads_of
from npu.program.tables import event_counts
from npu_compiler import compile_program, traces, with_load
from tests.accuracy.test_reference import small_spec
from tests.conftest import compose_experiment

if TYPE_CHECKING:
    import torch

    from tests.accuracy import torch_llada as oracle
else:
    torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
    oracle = pytest.importorskip("tests.accuracy.torch_llada")

ROUTINGS = {
    "LLaDA-MoE": Experts(count=8, chosen=2, inner=32, normalised=False),
    "Qwen3-MoE": Experts(count=8, chosen=3, inner=64),
    "LLaDA2": Experts(count=16, chosen=4, inner=32, score="sigmoid", bias=True, groups=4, kept_groups=2, scale=2.5, shared=32,
                      first_layer=1),
    "LLaDA2.2": Experts(count=16, chosen=3, inner=32, score="sigmoid", bias=True, block_capacity=5, block_tokens=8, scale=2.5,
                        shared=32, first_layer=1),
}  # fmt: skip
"""As published: softmax without normalisation, softmax with, sigmoid with bias, groups, scale, shared expert, dense layer, and
the same with block routing instead of groups."""
PROMPT = [5, 17, 40, 3, 22, 60, 9]


def small_mixture(name, **changes):
    masks = {"attention_mask": "block_causal"} if ROUTINGS[name].block_capacity else {}
    return dataclasses.replace(small_spec(2), experts=ROUTINGS[name], **{**masks, **changes})


def tensors_of(spec, seed=1):
    rng, found = np.random.default_rng(seed), {}
    for name, shape in expected_shapes(spec).items():
        size = 0.3 if len(shape) == 1 else 1.6 / np.sqrt(shape[-1])
        found[name] = (size * rng.normal(size=shape) + name.endswith(("norm.weight", "ln_f.weight"))).astype(np.float32)
    return found


@pytest.mark.parametrize("name", ROUTINGS)
def test_the_reference_is_what_torch_computes_token_by_token(name):
    spec = small_mixture(name)
    tensors = tensors_of(spec)
    model, tokens = (
        ReferenceModel(spec, tensors),
        [*PROMPT, *PROMPT[::-1], *PROMPT[2:]],
    )  # two blocks of 8, and 3 tokens
    expected = oracle.TorchLlada(spec, tensors).forward(tokens, slice(0, 19), keep=False)
    np.testing.assert_allclose(model.logits(model.forward(np.array(tokens))), expected, atol=1e-4)


def test_equal_scores_go_to_the_lower_expert():
    experts = Experts(count=6, chosen=2, inner=32, groups=3, kept_groups=2)
    chosen, weights = route(experts, np.zeros((1, 6), np.float32), None, np.arange(1))
    assert chosen.tolist() == [[0, 1]]
    np.testing.assert_allclose(weights, 0.5)
    by_block = Experts(count=6, chosen=1, inner=32, block_capacity=2, block_tokens=2)
    logits = np.array(
        [[0, 3, 0, 0, 2, 1], [0, 0, 3, 0, 2, 1]], np.float32
    )  # both rows' second choice is nobody's first
    assert route(by_block, logits, None, np.arange(2))[0].tolist() == [[1], [2]]
    assert route(by_block, logits[:, ::-1], None, np.arange(1, 3))[0].tolist() == [[4], [3]]
    chosen, _ = route(dataclasses.replace(by_block, chosen=2), logits, None, np.arange(2))
    assert chosen.tolist() == [[1, 2], [2, 1]]


def run(spec, *changes, prompts=(PROMPT,)):
    """The experiment, the program, the machine behind it, and the fidelity of its steps."""
    x = compose_experiment(
        "workload.prompt=null", "workload.prompt_length=7", "workload.generation_length=16", "workload.block_length=8",
        "workload.steps=8", f"workload.batch={len(prompts)}", *changes,
    )  # fmt: skip
    tensors = tensors_of(spec)
    program = compile_program(spec, x.workload, x.hardware, x.numerics, [len(prompt) for prompt in prompts])
    machine, steps = execute(program, model=spec, workload=x.workload, tensors=tensors, prompts=prompts)
    plan = canvas_of(spec, x.workload, [len(prompt) for prompt in prompts])
    tokens = plan.outputs(read_tokens(machine.hbm, program))
    metrics, _ = fidelity(ReferenceModel(spec, tensors), x.workload, prompts, tokens, steps)
    return x, program, machine, metrics


MACHINES = [
    ("LLaDA-MoE", ("workload.cache=dual",), ()),
    ("LLaDA-MoE", ("workload.cache=prefix", "hardware.sram.vector_bytes=40960"), ()),
    ("Qwen3-MoE", ("workload.cache=none", "hardware.blen=16", "hardware.vlen=32"), ()),
    ("LLaDA2", ("workload.cache=append",), (("attention_mask", "block_causal"),)),
    ("LLaDA2", ("workload.cache=append", "hardware.execution=serial"), (("attention_mask", "block_causal"),)),
    ("LLaDA2.2", ("workload.cache=append",), ()),
]


@pytest.mark.parametrize(("name", "changes", "mask"), MACHINES)
def test_the_program_decodes_as_the_reference_and_all_paths_count_alike(name, changes, mask):
    spec = small_mixture(name, **dict(mask))
    x, program, machine, metrics = run(spec, "numerics=bf16", *changes)
    several = bool(ROUTINGS[name].block_capacity)  # rows lose an expert together
    assert metrics["logit_kl"] < (0.15 if several else 0.05)  # a choice between near scores differs now and then
    assert metrics["argmax_agreement"] > (0.8 if several else 0.85)
    assert find_race(program) is None
    trace = machine.trace
    assert sum(trace.counts) > 0
    fast, slow = (
        cycle.simulate(program, hardware=x.hardware, trace=trace, race_check=False, fast_forward=forward)
        for forward in (True, False)
    )
    assert fast.metrics["makespan_cycles"] == slow.metrics["makespan_cycles"]
    closed = analytical.simulate(program, hardware=x.hardware, trace=trace)
    assert fast.counts == slow.counts == closed.counts == event_counts(program, machine.retired)
    assert closed.metrics["lower_bound_cycles"] <= fast.metrics["makespan_cycles"]
    assert Program.from_bytes(program.to_bytes()).digest == program.digest


def test_the_rows_of_a_block_share_as_many_experts_as_its_capacity():
    """Where they choose alone, they share more, and compute something else."""
    spec, prompts = small_mixture("LLaDA2.2"), ([*PROMPT, *range(11, 30)], PROMPT * 3)
    alone = dataclasses.replace(spec, experts=dataclasses.replace(ROUTINGS["LLaDA2.2"], block_capacity=0))
    touched = []
    for each in (spec, alone):
        _, program, machine, _ = run(each, "numerics=bf16", "workload.cache=append", prompts=prompts)
        order = reads_of(program, machine.trace.breaks)
        most = np.array([program.instructions[n].operands["most"] for n in order]).reshape(-1, 16)[:, 0]
        assert set(most) == {16, 48}  # a block of each sequence, and the rows of both prompts
        touched.append((np.array(machine.trace.counts).reshape(-1, 16) > 0).sum(axis=1)[most == 16])
    assert touched[0].max() <= 2 * 5 < touched[1].max()
    tokens = np.array([*PROMPT * 2, *[spec.mask_id] * 2])
    by_block, by_row = (ReferenceModel(each, tensors_of(spec)) for each in (spec, alone))
    difference = by_block.logits(by_block.forward(tokens)) - by_row.logits(by_row.forward(tokens))
    assert np.abs(difference).max() > 0.5


def test_an_expert_without_rows_loads_nothing():
    """Traffic follows from the trace: of each expert with rows all of its weights, once a chunk; nothing of the others."""
    spec = small_mixture("Qwen3-MoE")
    x, program, machine, _ = run(spec, "numerics=mxint8", prompts=(PROMPT, PROMPT[:4], [*PROMPT, 8, 11]))
    trace = machine.trace
    silent = dataclasses.replace(trace, counts=(0,) * len(trace.counts))
    read = [
        cycle.simulate(program, hardware=x.hardware, trace=each, race_check=False).counts["hbm_read_bytes"]
        for each in (trace, silent)
    ]
    experts = ROUTINGS["Qwen3-MoE"]
    bytes_of_one = 3 * spec.hidden * experts.inner * 33 // 32  # MXINT8: a scale byte for 32 elements
    assert read[0] - read[1] == sum(count > 0 for count in trace.counts) * bytes_of_one
    rows = np.array(trace.counts).reshape(-1, experts.count).sum(axis=1)
    assert not (rows % experts.chosen).any()  # every row takes that many


def test_padding_takes_no_expert():
    """Rows before a short prompt choose nothing: beside a long one, its sequence adds its own rows alone."""
    spec = small_mixture("Qwen3-MoE")
    _, program, machine, _ = run(spec, "numerics=bf16", "workload.cache=none", prompts=([7, 9], list(range(3, 23))))
    order = reads_of(program, machine.trace.breaks)
    step = len(order) // sum(index + 1 for index in machine.trace.breaks)
    rows = sum(machine.trace.counts[:step]) / ROUTINGS["Qwen3-MoE"].chosen / spec.layers
    assert rows == (2 + 16) + (20 + 16)


@pytest.mark.parametrize("load", ["uniform", "zipf", "file"])
def test_a_stated_load_has_every_row_at_its_experts(load, tmp_path):
    if load == "file":
        load = str(tmp_path / "load.json")
        (tmp_path / "load.json").write_text("[1, 1, 1, 1, 1, 1, 1, 1000]")
    spec = small_mixture("LLaDA-MoE")
    x = compose_experiment("workload.prompt_length=7", "workload.prompt=null", f"workload.expert_load={load}")
    program = compile_program(spec, x.workload, x.hardware, x.numerics, [7])
    trace = with_load(program, spec.experts, x.workload, x.schedule([PROMPT]))
    counts = np.array(trace.counts).reshape(-1, 8)
    most = np.array([program.instructions[n].operands["most"] for n in reads_of(program, trace.breaks)]).reshape(-1, 8)
    assert (counts.sum(axis=1) == 2 * most[:, 0]).all()
    assert (counts <= most).all()
    shares = {"uniform": np.ones(8), "zipf": 1 / np.arange(1, 9)}.get(load, np.array([1.0] * 7 + [1000.0]))
    drawn = np.argsort(np.random.default_rng(5).random((20_000, 8)) / shares, axis=1)[:, :2]
    expected = np.bincount(drawn.ravel(), minlength=8) / 20_000
    np.testing.assert_allclose(counts.sum(axis=0) / most[:, 0].sum(), expected, atol=0.06)
    again = with_load(program, spec.experts, dataclasses.replace(x.workload, expert_seed=1), x.schedule([PROMPT]))
    assert again.counts != trace.counts


def test_loads_and_shapes_that_cannot_be_are_one_line(tmp_path):
    spec = small_mixture("LLaDA-MoE")
    for content, message in (
        (None, "neither uniform nor zipf"),
        ("[1, 2]", "a list in JSON of 8 numbers"),
        ("{", "no list of numbers"),
    ):
        file = tmp_path / "load.json"
        if content is not None:
            file.write_text(content)
        x = compose_experiment("workload.prompt_length=7", "workload.prompt=null", f"workload.expert_load={file}")
        program = compile_program(spec, x.workload, x.hardware, x.numerics, [7])
        with pytest.raises(TripathError, match=f"workload.expert_load: .*{message}"):
            with_load(program, spec.experts, x.workload, x.schedule([PROMPT]))
    for changes, message in (
        ({"groups": 3}, r"model\.experts\.groups: 3 does not divide model\.experts\.count 8"),
        ({"groups": 4, "kept_groups": 1, "chosen": 3}, r"model\.experts\.chosen: a row chooses among 2 experts"),
        ({"inner": 48}, r"model\.experts\.inner: must be a multiple of the MX block of 32, got 48"),
        ({"block_capacity": 1}, r"model\.experts\.block_capacity: each row takes 2 experts"),
        ({"block_capacity": 9}, r"model\.experts\.block_capacity: 9 of 8 experts"),
        ({"block_capacity": 4, "groups": 2}, r"model\.experts\.groups: stands beside model\.experts\.block_capacity"),
    ):  # fmt: skip
        with pytest.raises(TripathError, match=message):
            dataclasses.replace(ROUTINGS["LLaDA-MoE"], **changes)
    wide = dataclasses.replace(spec, experts=dataclasses.replace(ROUTINGS["LLaDA-MoE"], count=128))
    with pytest.raises(TripathError, match=r"model\.experts\.count: 128 scores of a row exceed hardware\.vlen 64"):
        compile_program(wide, x.workload, x.hardware, x.numerics, [7])
    with pytest.raises(TripathError, match=r"model\.experts\.block_capacity: needs model\.attention_mask block_causal"):
        small_mixture("LLaDA2.2", attention_mask="full")
    short = dataclasses.replace(x.workload, cache="append", block_length=4, steps=x.workload.generation_length)
    for refused in (
        lambda spec: compile_program(spec, short, x.hardware, x.numerics, [7]),
        lambda spec: generate(ReferenceModel(spec, tensors_of(spec)), PROMPT, short),
    ):
        with pytest.raises(
            TripathError, match=r"workload\.block_length: must be a multiple of model\.experts\.block_tokens 8"
        ):
            refused(small_mixture("LLaDA2.2"))


@pytest.mark.parametrize("load", ["uniform", "zipf"])
def test_a_stated_load_keeps_to_the_capacity_of_blocks(load):
    """Against the rule on the same numbers, written down row by row."""
    experts, rows = dataclasses.replace(ROUTINGS["LLaDA2.2"], shared=0), 24
    shares = np.ones(16, np.int64) if load == "uniform" else 65536 // np.arange(1, 17)
    found = traces._draw(np.random.Generator(np.random.PCG64(3)), 4, rows, experts, shares)
    random = np.random.Generator(np.random.PCG64(3))
    for counts in found:
        keys = random.integers(1 << 32, size=(rows, 16), dtype=np.int64) // shares * 16 + np.arange(16)
        expected = np.zeros(16, int)
        for first in range(0, rows, 8):
            block = keys[first : first + 8].tolist()
            kept = sorted(range(16), key=lambda expert: min(row[expert] for row in block))[:5]
            for row in block:
                expected[sorted(kept, key=row.__getitem__)[:3]] += 1
        assert counts.tolist() == expected.tolist()


def test_training_chooses_experts_by_block():
    """Also in noisy blocks behind the sequence, and behind a block of padding."""
    from dllm_training.model import DiffusionTransformer

    spec = small_mixture("LLaDA2.2")
    tensors, tokens = tensors_of(spec), np.array([*PROMPT, *PROMPT[::-1], *PROMPT, 4, 8, 2])
    noisy = np.array([spec.mask_id, 4, 8, spec.mask_id, 5, 6, spec.mask_id, 3])
    model, places = ReferenceModel(spec, tensors), np.arange(24)
    seen = places[None] // 8 <= places[:, None] // 8
    clean, other = (
        model.logits(model.forward(each, visible=seen)) for each in (tokens, np.concatenate([tokens[:16], noisy]))
    )
    trained = DiffusionTransformer(spec).eval()
    trained.load_state_dict(
        {key.removeprefix("model.transformer."): torch.tensor(value) for key, value in tensors.items()}
    )
    padded = torch.tensor(np.concatenate([np.zeros(8, int), tokens]))[None]
    with torch.no_grad():
        found = trained(padded, torch.arange(32)[None] >= 8, noisy=torch.tensor(noisy)[None])[0]
    np.testing.assert_allclose(found[8:32], clean, atol=1e-4)
    np.testing.assert_allclose(found[32:], other[16:], atol=1e-4)
    with pytest.raises(
        TripathError, match=r"model\.experts\.block_tokens: 8 does not divide the 4 tokens of a block in training"
    ):
        DiffusionTransformer(spec, block=4)


@pytest.mark.parametrize("name", [name for name in ROUTINGS if not ROUTINGS[name].block_capacity])
def test_training_and_the_quality_path_compute_the_reference(name):
    from accuracy.quality.model import StudyModel
    from dllm_training.model import DiffusionTransformer

    spec = small_mixture(name)
    tensors = tensors_of(spec)
    model = ReferenceModel(spec, tensors)
    expected = model.logits(model.forward(np.array(PROMPT)))
    trained = DiffusionTransformer(spec).eval()
    assert {key: tuple(value.shape) for key, value in trained.named_tensors().items()} == expected_shapes(spec)
    trained.load_state_dict(
        {key.removeprefix("model.transformer."): torch.tensor(value) for key, value in tensors.items()}
    )
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        np.testing.assert_allclose(trained(tokens, torch.ones_like(tokens).bool())[0], expected, atol=1e-4)
        study = StudyModel(spec, tensors)
        batch = study.new_batch(torch.tensor([0]), len(PROMPT))
        found = study.logits(study.forward(tokens, slice(0, 7), batch))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_bias_moves_towards_experts_that_few_rows_take():
    from dllm_training.model import DiffusionTransformer, Router

    model = DiffusionTransformer(small_mixture("LLaDA2")).train()
    router = next(each for each in model.modules() if isinstance(each, Router))
    tokens = torch.tensor([PROMPT * 4])
    for _ in range(400):
        model(tokens, torch.ones_like(tokens).bool())
    assert router.expert_bias is not None
    assert float(router.expert_bias.detach().abs().max()) > 10 * Router.BALANCE
    assert not router.expert_bias.requires_grad
