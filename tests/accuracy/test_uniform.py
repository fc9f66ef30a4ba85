"""Uniform diffusion and self-conditioning: each step of the machine follows the published sampler with the same random numbers, soft
tokens are what its distributions expect, and an independent torch computes the same conditioned logits."""

import dataclasses

import numpy as np
import pytest

import analytical
import cycle
from accuracy.executor import Machine
from accuracy.image import build_image, read_tokens
from accuracy.simulator import execute
from cycle.races import find_race
from dllm.canvas import canvas_of
from dllm.decoding import generate, visible
from dllm.noise import Draws, Purpose, threefry
from dllm.operators import Mask
from dllm.reference import ReferenceModel, softmax
from npu.errors import TripathError
from npu.formats.rounding import round_bf16
from npu_compiler import compile_program
from tests.accuracy.test_experts import PROMPT, tensors_of
from tests.accuracy.test_gemma_operators import CHANGES
from tests.accuracy.test_reference import small_spec
from tests.conftest import compose_experiment

torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")

CONDITIONED = {"attention_mask": "causal", "self_conditioning": 64, "embedding_scale": 8.0, "tied_embeddings": True}
SCALES = {"layer_scales": True, "clean_layer_scales": True}
SPEC = dataclasses.replace(small_spec(2), **CONDITIONED, **SCALES)
PROMPTS = (PROMPT, PROMPT[:4])
UNIFORM = ("workload.prompt=null", "workload.prompt_length=7", "workload.generation_length=16", "workload.block_length=8",
           "workload.steps=null", "workload.steps_per_block=4", "workload.batch=2", "numerics=bf16", "workload.cache=append",
           "workload.commit=entropy_bound", "workload.entropy_bound=3.0", "workload.diffusion=uniform", "workload.temperature=0.8",
           "workload.last_temperature=0.4", "workload.seed=3")  # fmt: skip


def compiled(spec, *changes):
    x = compose_experiment(*UNIFORM, *changes)
    lengths = [len(prompt) for prompt in PROMPTS]
    return x, compile_program(spec, x.workload, x.hardware, x.numerics, lengths, x.compiler)


def run(spec, *changes, tensors=None):
    x, program = compiled(spec, *changes)
    tensors = tensors_of(spec, seed=2) if tensors is None else tensors
    machine, steps = execute(program, model=spec, workload=x.workload, tensors=tensors, prompts=PROMPTS)
    return x, program, machine, steps


CALM = dataclasses.replace(SPEC, self_conditioning=None)
"""With `calm_tensors`, a model whose layers add nothing: a token is likeliest where it stands."""


def calm_tensors():
    found = tensors_of(CALM, seed=2)
    return {name: value * (not name.endswith(("attn_out.weight", "ff_out.weight"))) for name, value in found.items()}


def fresh(workload, sequence, block, number, vocab):
    """Random tokens, from the words of the generator: stream and entry are those that docs/numerics.md says."""
    streams = (sequence * workload.block_length * (workload.blocks + 1) + block) * (workload.most_steps + 1) + number
    words, _ = threefry((workload.seed, Purpose.CANVAS), (np.arange(workload.block_length), np.full(8, streams)))
    return [int(word) * vocab >> 32 for word in words]


def accepted(entropy, bound):
    """Positions in ascending order of entropy, while those before add up to at most the bound: by brute force, of what lanes hold."""
    order, before, found = sorted(range(len(entropy)), key=lambda i: (entropy[i], i)), 0.0, set()
    for place in order:
        if before <= bound:
            found.add(place)
        before += entropy[place]
    return found


CASES = [
    (SPEC, ()), (SPEC, ("workload.stop_entropy=1e-4",)),
    (SPEC, ("compiler.schedule=plain", "hardware.vlen=128", "hardware.sram.vector_bytes=32768")),
    (CALM, ("workload.stop_entropy=3.0", "workload.entropy_bound=1e4")),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "changes"), CASES, ids=["all steps", "never calm", "plain", "calm"])
def test_each_step_keeps_what_entropies_admit_and_draws_the_rest_anew(spec, changes):
    tensors = calm_tensors() if spec is CALM else None
    x, program, machine, steps = run(spec, *changes, tensors=tensors)
    w, vocab, plan = x.workload, spec.vocab, canvas_of(spec, x.workload, [len(prompt) for prompt in PROMPTS])
    output = read_tokens(machine.hbm, program)
    ended_early = False
    for block in range(w.blocks):
        records = [[record for record in rows if record.block == block] for rows in steps]
        done = []
        for sequence, rows in enumerate(records):
            draws, place = Draws(workload=w, sequence=sequence), slice(len(PROMPTS[sequence]) + 8 * block, None)
            assert rows[0].canvas[place][:8].tolist() == fresh(w, sequence, block, w.most_steps, vocab)
            likeliest, settled = None, None
            for number, record in enumerate(rows):
                canvas = record.canvas[place][:8]
                noise = draws.gumbel(block, 8, number, vocab)
                noisy = record.logits[:, :vocab] + noise
                drawn = np.take_along_axis(noisy, record.token_ids[:, None], 1)[:, 0]
                assert (noisy.max(-1) - drawn < 2**-10).all()
                shares = softmax(record.logits.astype(np.float64))
                exact = -(shares * np.log(shares)).sum(-1)
                assert np.abs(record.entropy - exact).max() < 0.03
                kept = np.array(
                    [
                        place in accepted([round_bf16(each) for each in record.entropy], w.entropy_bound)
                        for place in range(8)
                    ]
                )
                after = np.where(kept, record.token_ids, fresh(w, sequence, block, number, vocab))
                if number + 1 < len(rows):
                    assert rows[number + 1].canvas[place][:8].tolist() == after.tolist()
                assert canvas.shape == (8,)
                best = record.logits.argmax(-1)
                if settled is None:
                    settled = best if likeliest is not None and (best == likeliest).all() else None
                    if w.stop_entropy is None or record.entropy.mean() >= w.stop_entropy:
                        settled = None
                    likeliest = best
            start = plan.prompt + 8 * block
            assert output[sequence, start : start + 8].tolist() == (likeliest if settled is None else settled).tolist()
            done.append(settled is not None)
        assert len(records[0]) == w.most_steps or all(done)
        ended_early |= len(records[0]) < w.most_steps
    assert ended_early == (spec is CALM)
    assert find_race(program) is None
    facts = {"hardware": x.hardware, "trace": machine.trace, "technology": x.technology}
    exact, closed = cycle.simulate(program, **facts, fast_forward=False), analytical.simulate(program, **facts)
    assert cycle.simulate(program, **facts).metrics["makespan_cycles"] == exact.metrics["makespan_cycles"]
    assert exact.counts == closed.counts
    assert closed.metrics["lower_bound_cycles"] <= exact.metrics["makespan_cycles"]
    assert abs(closed.metrics["estimated_cycles"] / exact.metrics["makespan_cycles"] - 1) < 0.1


def soft_of(machine, program):
    """The tensor of soft tokens, float32 [batch, canvas, hidden]."""
    tensor = program.tensor("soft")
    raw = machine.hbm[tensor.address : tensor.address + tensor.size_bytes].view("<u2").astype(np.uint32) << 16
    return raw.view(np.float32).reshape(tensor.shape)


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("changes", [(), ("hardware.vlen=64", "hardware.mlen=64")])
def test_soft_tokens_are_what_a_step_expects_and_condition_the_next(name, changes):
    """Of the machine's own logits, in float64; the reference model computes the next logits of the machine's soft tokens. Without
    them it is far off, and a vocabulary of 96 is a slice and a half of 64 lanes."""
    every = CHANGES["all"] | {
        "experts": dataclasses.replace(CHANGES["all"]["experts"], chosen=8),
        "attention_scale": 0.25,
    }
    spec = SPEC if name == "plain" else dataclasses.replace(small_spec(2), **{**every, **CONDITIONED, **SCALES})
    x, program = compiled(spec, *changes)
    tensors, w = tensors_of(spec, seed=2), x.workload
    seen = np.zeros((16, spec.vocab), np.float32)
    image = build_image(program, spec, w, tensors, PROMPTS)
    machine = Machine(program=program, hbm=image, logits=seen)
    assert machine.run_to_break()
    start = program.layout["prompt"]
    soft, tokens = soft_of(machine, program)[:, start : start + 8], read_tokens(machine.hbm, program)
    shares = softmax(seen.astype(np.float64)).reshape(2, 8, -1)
    expected = 8.0 * shares @ tensors["model.transformer.wte.weight"].astype(np.float64)
    size = np.abs(expected).max()
    assert np.abs(soft - expected).max() < 2**-6 * size
    assert machine.run_to_break()
    model, plan = ReferenceModel(spec, tensors), canvas_of(spec, w, [len(prompt) for prompt in PROMPTS])
    for row, prompt in enumerate(PROMPTS):
        canvas, first = tokens[row, plan.first(row) :].astype(int), len(prompt)
        cache, places = model.new_cache(), np.arange(len(canvas))
        prompts = slice(0, first)
        sees = visible(Mask.CAUSAL, places, prompts, 8)
        model.forward(canvas, prompts, cache, sees, places[prompts], clean=True)
        own, keys, begins = slice(first, first + 8), places[None] < first + 8, np.full(8, first)
        errors = []
        for told in (soft[row], None):
            logits = model.logits(model.forward(canvas, own, cache, keys, begins, soft=told)) / w.temperatures()[1]
            errors.append(np.sqrt(np.mean((logits - seen.reshape(2, 8, -1)[row]) ** 2)))
        assert errors[0] < 0.2 * errors[1]


def test_numpy_and_torch_compute_what_is_written_out():
    """The published formula in torch, of a model without layers in its way: e' = rms(e + down(gelu_tanh(gate(n)) * up(n)))."""
    from dllm_training.model import DiffusionTransformer

    spec = dataclasses.replace(SPEC, activation="gelu_tanh")
    tensors, rng = tensors_of(spec), np.random.default_rng(4)
    soft = rng.normal(size=(7, spec.hidden)).astype(np.float32)
    own = {name.removeprefix("model.transformer."): torch.from_numpy(value) for name, value in tensors.items()}
    f, prefix = torch.nn.functional, "self_conditioning."
    n = f.rms_norm(torch.from_numpy(soft), (spec.hidden,), own[f"{prefix}norm.weight"], spec.rms_eps)
    inner = f.gelu(n @ own[f"{prefix}ff_proj.weight"].T, approximate="tanh") * (n @ own[f"{prefix}up_proj.weight"].T)
    embedded = own["wte.weight"][list(PROMPT)] * 8.0 + inner @ own[f"{prefix}ff_out.weight"].T
    embedded = f.rms_norm(embedded, (spec.hidden,), None, spec.rms_eps).numpy()

    model = ReferenceModel(spec, tensors)
    places = np.arange(7)
    sees = visible(Mask.CAUSAL, places, slice(0, 7), 8)
    mine = model.logits(model.forward(np.array(PROMPT), slice(0, 7), None, sees, places, soft=soft))
    table = {
        **tensors,
        "model.transformer.wte.weight": embedded / 8.0,
    }  # rows that are embedded as what was written out
    twin = ReferenceModel(dataclasses.replace(spec, self_conditioning=None, tied_embeddings=False),
                          {**table, "model.transformer.ff_out.weight": tensors["model.transformer.wte.weight"]})  # fmt: skip
    np.testing.assert_allclose(
        mine, twin.logits(twin.forward(places, slice(0, 7), None, sees, places)), atol=1e-4, rtol=1e-4
    )
    trained = DiffusionTransformer(spec).eval()
    trained.load_state_dict(own)
    with torch.no_grad():
        logits = trained(torch.tensor([PROMPT]), torch.ones(1, 7, dtype=torch.bool), soft=torch.from_numpy(soft)[None])
    np.testing.assert_allclose(logits[0], mine, atol=1e-4, rtol=1e-4)
    assert not np.allclose(
        trained(torch.tensor([PROMPT]), torch.ones(1, 7, dtype=torch.bool))[0].detach(), mine, atol=0.1
    )


def test_the_reference_decodes_as_the_machine_does_without_conditioning():
    """Where nothing feeds back but tokens, executor and reference take the same steps, but for near-ties of bfloat16."""
    spec = dataclasses.replace(SPEC, self_conditioning=None)
    x, _, _, steps = run(spec)
    model = ReferenceModel(spec, tensors_of(spec, seed=2))
    same = []
    for number, prompt in enumerate(PROMPTS):
        known = {(record.block, record.step): record for record in steps[number]}
        forced = generate(model, prompt, x.workload, sequence=number,
                          force=lambda b, s, of=known: (of[b, s].canvas, of[b, s].loop) if (b, s) in of else None)  # fmt: skip
        assert len(forced.steps) == len(known)
        for record in forced.steps:
            same.append(record.token_ids == known[record.block, record.step].token_ids)
            assert np.abs(record.entropy - known[record.block, record.step].entropy).max() < 0.5
        free = generate(model, prompt, x.workload, sequence=number)
        assert len(free.token_ids) == 16
        assert free.trip_counts == [4, 4]
    assert np.mean(same) > 0.8


def test_a_random_token_is_below_the_bound_and_uniform():
    x = compose_experiment(*UNIFORM)
    draws = [
        Draws(workload=x.workload, sequence=s).tokens(b, step, 10) for s in (0, 1) for b in (0, 1) for step in range(5)
    ]
    counts = np.bincount(np.concatenate(draws), minlength=10)
    assert counts.sum() == 160
    assert counts.size == 10
    assert ((counts - 16) ** 2 / 16).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("workload.commit=quota",), "workload.commit: diffusion=uniform accepts by entropy_bound"),
        (("workload.temperature=0",), "workload.temperature: diffusion=uniform draws tokens"),
        (("workload.cache=dual",), "workload.cache: diffusion=uniform needs append"),
        (("workload.diffusion=absorbing", "workload.last_temperature=null", "workload.stop_entropy=0.1"), "stop_entropy: is of"),
        (("workload.diffusion=absorbing",), "workload.last_temperature: is of diffusion=uniform alone"),
    ],
)  # fmt: skip
def test_keys_of_the_other_diffusion_are_refused_by_name(changes, said):
    with pytest.raises(TripathError, match=said):
        compose_experiment(*UNIFORM, *changes)


def test_what_does_not_carry_it_out_says_so():
    with pytest.raises(TripathError, match=r"compiler.sampling: stored does not serve workload.diffusion=uniform"):
        compiled(SPEC, "compiler.sampling=stored")
    with pytest.raises(
        TripathError, match=r"workload.diffusion: uniform serves models of model.attention_mask: causal"
    ):
        compiled(small_spec(2))
    masked = ("workload.diffusion=absorbing", "workload.last_temperature=null", "workload.temperature=0")
    with pytest.raises(TripathError, match=r"workload.diffusion: absorbing does not serve model.self_conditioning"):
        compiled(SPEC, *masked)
