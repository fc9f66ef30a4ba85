"""Smoothing of the KV cache as a program: what it must not change, what it costs, what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accuracy.calibration import FILE
from accuracy.image import build_image, read_tokens
from accuracy.simulator import execute
from analytical.tree import retirements
from npu.errors import TripathError
from npu.program.tables import event_counts
from npu_compiler import compile_program
from tests.conftest import PROMPT, compiled, compose_experiment

SMALL = ("workload.generation_length=16", "workload.steps=4")


def run(tensors, prompts, *overrides):
    """(canvas, all records) of a generation."""
    x = compose_experiment(*SMALL, f"workload.batch={len(prompts)}", *overrides)
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(p) for p in prompts])
    machine, steps = execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=prompts)
    return read_tokens(machine.hbm, program), steps


def equal(one, other):
    """Whether two runs agree in every token and every bit of the logits."""
    same = (one[0] == other[0]).all()
    pairs = [(a, b) for rows in zip(one[1], other[1], strict=True) for a, b in zip(*rows, strict=True)]
    return bool(same) and all(np.array_equal(a.logits, b.logits) for a, b in pairs)


@pytest.mark.parametrize("kv", ["mxint4", "mxint8", "mxfp8_e4m3"])
@pytest.mark.parametrize("cache", ["dual", "none"])
def test_a_power_of_two_is_a_no_op_for_values_in_blocks_along_tokens(kv, cache, tensors, tokenizer):
    """The negative control: a block is one channel, its scale takes the factor up, and the output gets it back."""
    prompts, policy = [tokenizer.encode(PROMPT)], (f"numerics.kv={kv}", f"workload.cache={cache}")
    smoothed = ("numerics/smoothing=baos", "numerics.smoothing.power_of_two=true", "numerics.smoothing.keys=false")
    plain = run(tensors, prompts, *policy)
    assert equal(plain, run(tensors, prompts, *policy, *smoothed))
    # Along channels, or with any other factor, it is none.
    assert not equal(run(tensors, prompts, *policy, "numerics.v_axis=channels"),
                     run(tensors, prompts, *policy, *smoothed, "numerics.v_axis=channels"))  # fmt: skip
    assert not equal(plain, run(tensors, prompts, *policy, *smoothed, "numerics.smoothing.power_of_two=false"))


@pytest.mark.parametrize("centring", [(), ("numerics.smoothing.centre=true",)])
def test_each_sequence_of_a_batch_has_its_own_factors(centring, tensors, tokenizer):
    """A sequence gets bit for bit what it gets alone, with as much padding."""
    texts = [PROMPT, "Anna has 7 pens and loses 2 of them. How many pens does Anna have now?"]
    ids = [tokenizer.encode(text)[-16:] for text in texts]
    together = run(tensors, ids, "numerics=mxint4_baos", "hardware.sram.vector_bytes=80000", *centring)
    for row, prompt in enumerate(ids):
        alone = run(tensors, [prompt], "numerics=mxint4_baos", *centring)
        assert equal(alone, (together[0][row : row + 1], together[1][row : row + 1]))


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_traffic_of_the_phases_is_charged(cache, centre):
    """A warm step writes K and V in BF16 and reads them again (twice where they are centred, each time with the validity of
    the rows), and writes a row of factors; a chunk of any step reads the halves of that row that it needs."""
    overrides = ("numerics=mxint4_kv", f"workload.cache={cache}", "workload.batch=2")
    counts = []
    for smoothing in ("plain", "baos"):
        x = compose_experiment(*overrides, f"numerics/smoothing={smoothing}", f"numerics.smoothing.centre={centre}")
        program, trace = compiled(x)
        counts.append(event_counts(program, retirements(program, trace)))
    model, batch, canvas = x.model, x.workload.batch, program.layout["canvas"]
    assert program.layout["chunk_rows"] >= batch * canvas  # one chunk a pass
    warm = x.workload.steps if cache == "none" else x.workload.blocks
    refine = x.workload.steps - warm
    raw, row = 2 * 2 * model.kv_width * canvas, 2 * 2 * (model.kv_width + model.query_width)
    again, counts_of_tokens = raw, 0
    if centre:  # the means of K and V, and V's once more for each query channel
        row += 2 * (2 * model.kv_width + model.query_width)
        again, counts_of_tokens = 2 * (raw + 4 * canvas), 4 * batch
    added = {key: counts[1][key] - counts[0][key] for key in ("hbm_write_bytes", "hbm_read_bytes", "macs")}
    assert added == {
        "hbm_write_bytes": model.layers * batch * warm * (raw + row),
        "hbm_read_bytes": model.layers * batch * (warm * again + (warm + refine) * row) + counts_of_tokens, "macs": 0,
    }  # fmt: skip


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_traffic_of_keys_before_rope_is_charged(cache):
    """Every pass reads a layer's keys and the table of angles once more, and writes the keys as BF16 rows; attention then
    reads these instead of the cache's. No other work changes."""
    counts = []
    for scheme in ("plain", "prerope"):
        x = compose_experiment("numerics=mxint4_kv", f"workload.cache={cache}", "workload.batch=2", f"scheme={scheme}")
        program, trace = compiled(x)
        counts.append(event_counts(program, retirements(program, trace)))
    model, batch, canvas, passes = x.model, x.workload.batch, program.layout["canvas"], x.workload.steps
    keys, rotated, loaded = program.tensor("keys"), program.tensor("rotated_keys"), program.layout["cache_tokens"]
    written = 2 * model.kv_width * canvas
    read = keys.row_bytes * model.kv_heads * canvas + 2 * model.head_dim * canvas
    # One chunk forwards a pass's rows of all sequences, so that attention loads each tile once for it.
    tiles = (rotated.row_bytes - keys.row_bytes) * model.kv_heads * loaded
    difference = {key: counts[1][key] - counts[0][key] for key in ("hbm_write_bytes", "hbm_read_bytes", "macs")}
    assert difference == {
        "hbm_write_bytes": model.layers * batch * passes * written,
        "hbm_read_bytes": model.layers * batch * passes * (read + tiles), "macs": 0,
    }  # fmt: skip


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(("side", "heads"), [("keys", 4 + 2), ("values", 2 + 4), ("both", 4 + 2 + 2 + 4)])
def test_mixed_channels_cost_a_product_of_each_head_and_one_matrix(cache, side, heads):
    """K: each row's Q and K heads; V: its V heads and those of the output. The matrix is read once, nothing else moves."""
    counts = []
    for scheme in ("plain", "hadamard"):
        sides = [f"numerics.smoothing.{other}=false" for other in ("keys", "values") if side not in (other, "both")]
        x = compose_experiment(
            "numerics=mxint4_kv", f"workload.cache={cache}", "workload.batch=2", f"scheme={scheme}", *sides
        )
        program, trace = compiled(x)
        counts.append(event_counts(program, retirements(program, trace)))
    model, workload, canvas = x.model, x.workload, program.layout["canvas"]
    assert (model.heads, model.kv_heads) == (4, 2)
    length, refine = workload.block_length, workload.steps_per_block - 1
    left = [workload.generation_length - block * length for block in range(workload.blocks)]
    again = {"none": canvas * workload.blocks, "prefix": sum(left), "dual": length * workload.blocks}[cache]
    rows = workload.batch * model.layers * (workload.blocks * canvas + refine * again)
    difference = {key: counts[1][key] - counts[0][key] for key in ("hbm_write_bytes", "hbm_read_bytes", "macs")}
    assert difference == {
        "hbm_write_bytes": 0, "hbm_read_bytes": 2 * model.head_dim**2, "macs": rows * heads * model.head_dim**2
    }  # fmt: skip


def test_frozen_factors_are_measured_in_the_first_block_alone_and_static_ones_never():
    """Bytes of the smoothing phase: those of BAOS at each of the blocks, at one, and at none."""
    written = {}
    for scheme in ("plain", "baos", "frozen", "static"):
        program, trace = compiled(compose_experiment("numerics=mxint4_kv", "workload.batch=2", f"scheme={scheme}"))
        written[scheme] = event_counts(program, retirements(program, trace))["hbm_write_bytes"]
    blocks = compose_experiment().workload.blocks
    assert written["static"] == written["plain"]
    assert written["baos"] - written["plain"] == blocks * (written["frozen"] - written["plain"]) > 0


def test_a_calibration_is_needed_and_checked(tmp_path, tensors, tokenizer):
    x = compose_experiment("scheme=static")
    program, _ = compiled(x)
    model = dataclasses.replace(x.model, checkpoint=str(tmp_path))

    def image(model):
        return build_image(program, model, x.workload, tensors, [tokenizer.encode(PROMPT)])

    with pytest.raises(TripathError, match=r"static needs the channel maxima of a calibration set: .* is missing"):
        image(model)
    with pytest.raises(TripathError, match=r"which model\.checkpoint=synthetic has not"):
        image(dataclasses.replace(x.model, checkpoint="synthetic"))
    known = load_file(Path(x.model.checkpoint) / FILE)
    name = "layers.1.values"
    for wrong in (
        {**known, name: known[name][:1]},
        {**known, name: -known[name]},
        {**known, name: known[name].astype("f8")},
    ):
        save_file({key: np.ascontiguousarray(value) for key, value in wrong.items()}, tmp_path / FILE)
        with pytest.raises(TripathError, match=f"model.checkpoint: {name} in .* is not a float32 tensor"):
            image(model)
    (tmp_path / FILE).write_bytes(b"junk")
    with pytest.raises(TripathError, match="missing or unreadable"):
        image(model)


def test_blocks_along_the_other_axis_take_the_same_memory_and_are_converted_on_load():
    native, _ = compiled(compose_experiment())
    other, trace = compiled(compose_experiment("numerics.k_axis=tokens", "numerics.v_axis=channels"))
    for side in ("keys", "values"):
        elements = np.prod(other.tensor(side).shape)
        assert elements == np.prod(native.tensor(side).shape)
    assert other.geometry["matrix_bytes"] > native.geometry["matrix_bytes"]  # BF16 tiles
    assert event_counts(other, retirements(other, trace))["instructions.H_LOAD_T"] > 0
    assert not [i for i in native.instructions if i.mnemonic == "H_LOAD_T"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("numerics.smoothing.scheme=magic",),
            "numerics.smoothing.scheme: unknown 'magic', one of plain, baos, frozen",
        ),
        (("numerics.smoothing.alpha=1.5",), "numerics.smoothing.alpha: must be from 1e-6 to 1, got 1.5"),
        (("numerics.k_axis=rows",), "numerics.k_axis: unknown 'rows', one of channels, tokens"),
        (("numerics.block_size=12",), "numerics.block_size: unknown 12, one of 8, 16, 32"),
        (("scheme=hadamard", "numerics.smoothing.pre_rope=true"), "numerics.smoothing.pre_rope: a rotation"),
        (("numerics.confidences=fp16",), "numerics.confidences: unknown 'fp16', one of bf16, fp32, fp64"),
        (("workload.score=luck",), "workload.score: unknown 'luck', one of maskgit_plus"),
        (("workload.factor=0",), "workload.factor: must be from 1e-6 to 1e6, got 0"),
    ],
)
def test_what_nobody_can_do_is_refused_in_one_line(overrides, message):
    with pytest.raises(TripathError, match=message):
        compose_experiment(*overrides)
