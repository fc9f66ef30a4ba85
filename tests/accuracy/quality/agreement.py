"""The executor and the reference path on the same canvases, and how far apart legal orders of FP32 sums can lie."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from accuracy.quality.calibrate import kept_calibration
from accuracy.quality.decode import decode, layout
from accuracy.quality.model import StudyModel
from accuracy.simulator import execute
from npu.formats import FORMATS
from npu.formats.rounding import decode_rows
from npu_compiler import compile_program
from tests.conftest import compose_experiment

TABLES = 2.0**-17
"""Relative error of the executor's exp, 1/x and 1/sqrt(x) (docs/numerics.md)."""
SUMS = 2.0**-20
"""Error of an FP32 sum of at most 256 terms, of the largest sum of its row: sqrt(256) roundings of 2^-24."""


@dataclass
class Compared:
    """One denoising step of all sequences: what both decoders say, and the deviations of the perturbed runs."""

    masked: np.ndarray
    executor: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    deviation: np.ndarray
    """Largest absolute deviation of a logit in each perturbed run: [runs, B]."""
    logit_format: str
    """What the reference path stores logits in."""


def experiment_of(preset, problems, *overrides):
    """The default experiment in a preset of `conf/numerics`, for a batch."""
    room = ("hardware.sram.vector_bytes=4000000", "hardware.sram.fp_bytes=65536", "hardware.sram.int_bytes=65536")
    return compose_experiment(f"numerics={preset}", f"workload.batch={problems}", *room, *overrides)


def small_experiment(spec, *changes):
    """Two sequences of a small model of one's own on the default machine: what `run_executor` and `compare` read."""
    base = compose_experiment(
        "workload.prompt=null", "workload.prompt_length=7", "workload.generation_length=16", "workload.block_length=8",
        "workload.steps=8", "workload.batch=2", "numerics=mxint8", *changes,
    )  # fmt: skip
    return SimpleNamespace(
        model=spec, workload=base.workload, hardware=base.hardware, numerics=base.numerics,
        shown_numerics=base.shown_numerics, compiler=base.compiler,
    )  # fmt: skip


def perturbed(x, product, generator):
    """An FP32 result as another order of its sum, or another table of exp, might have left it."""
    uniform = 2 * torch.rand(x.shape, generator=generator) - 1
    return x + SUMS * x.abs().amax(-1, keepdim=True) * uniform if product else x * (1 + TABLES * uniform)


def observations(model, prompts, workload, force):
    """The views of all steps of a decoding on given canvases."""
    views = []
    decode(model, prompts, workload, force=force, observe=views.append)
    return views


def run_executor(x, tensors, prompts):
    """Machine after a generation, and the executor's record of every step of each sequence."""
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(p) for p in prompts], x.compiler)
    return execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=prompts)


def compare(x, tensors, prompts, machine, records, runs=4, *, lanes="bf16", block_length=None, **changes):
    """(last batch of the reference path, steps): both decoders on the executor's canvases.

    The reference path has the machine's tiles; `changes` to its numerics, `lanes` and `block_length` are seeded defects.
    """
    numerics, static = replace(x.shown_numerics, **changes), x.numerics.smoothing.scheme == "static"
    model = StudyModel(
        x.model, tensors, numerics, block_length or x.workload.block_length, lanes=lanes,
        key_tile=machine.program.layout["key_tile"], calibration=kept_calibration(x.model) if static else None,
    )  # fmt: skip
    steps = {(r.block, r.step): [sequence[i] for sequence in records] for i, r in enumerate(records[0])}

    def force(block, step):
        if (block, step) not in steps:
            return None
        tokens, first = layout(prompts, x.workload, model)
        for row, record in enumerate(steps[block, step]):
            tokens[row, first[row] :] = torch.from_numpy(record.canvas)
        return tokens

    views = observations(model, prompts, x.workload, force)
    others = []
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        model.noise = lambda values, product, generator=generator: perturbed(values, product, generator)
        others.append([view.logits for view in observations(model, prompts, x.workload, force)])
    model.noise = None
    result = []
    for number, view in enumerate(views):
        mine = steps[view.block, view.step]
        fields = ("logits", "token_ids", "confidence", "committed")
        deviation = torch.stack([(other[number] - view.logits).abs().amax((1, 2)) for other in others])
        result.append(
            Compared(
                masked=view.masked.numpy(), executor={f: np.stack([getattr(r, f) for r in mine]) for f in fields},
                reference={f: getattr(view, f).numpy() for f in fields}, deviation=deviation.numpy(), logit_format=numerics.logits,
            )
        )  # fmt: skip
    return views[-1].batch, result


def cache_of(machine, side):
    """The executor's cache as values, [layers, batch, kv_heads, canvas, head_dim], for one of SIDES."""
    program = machine.program
    tensor = program.tensor(side)
    values = np.zeros(tensor.shape, np.float32)
    raw = machine.hbm[tensor.address : tensor.address + tensor.size_bytes]
    decode_rows(raw, FORMATS[tensor.format].code, tensor.block, values.reshape(-1, tensor.shape[-1]))
    if values.ndim == 6:  # blocks along tokens: [.., groups, head_dim, tokens of a group]
        values = values.swapaxes(-1, -2).reshape(*tensor.shape[:3], -1, tensor.shape[4])
    return values[:, :, :, program.layout["cache_tokens"] - program.layout["canvas"] :]
