"""Layers of a large model through the executor: `python -m benchmarks.accuracy_slice [--model llada_8b|dream_7b] [--layers 2]`.

The weights are synthetic, of the true shapes (`model.checkpoint=synthetic`): one block of 32 tokens behind a prompt of 32,
two steps. Prints seconds of each stage and GMAC/s of the execution, and the reference's forward pass (NumPy, float32)
beside it as the peer.
"""

import argparse
import time

import numpy as np

from accuracy.executor import Machine
from accuracy.image import build_image
from dllm.checkpoint import load_tensors
from dllm.reference import ReferenceModel
from npu.program.tables import event_counts
from npu_compiler import compile_program
from tripath.command.composition import compose_experiment
from tripath.experiment.prompts import read_prompts

WORKLOAD = ("workload=llada_gsm8k", "workload.prompt_length=32", "workload.generation_length=32", "workload.steps=2")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llada_8b")
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    overrides = (f"model={options.model}", "model.checkpoint=synthetic", f"model.only_layers={list(range(options.layers))}",
                 "hardware=npu_datacenter", "numerics=mxint4", "paths=[accuracy]", *WORKLOAD)  # fmt: skip
    x = compose_experiment(*overrides)
    prompts = read_prompts(x, None).token_ids
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [32])
    began = time.perf_counter()

    def lap(what: str) -> float:
        nonlocal began
        seconds, began = time.perf_counter() - began, time.perf_counter()
        print(f"{what:44} {seconds:7.1f} s", flush=True)
        return seconds

    tensors = load_tensors(x.model)
    lap("weights made, float32")
    image = build_image(program, x.model, x.workload, tensors, prompts)
    lap(f"quantised into an image of {image.nbytes / 2**30:.2f} GiB")
    machine = Machine(program=program, hbm=image)
    machine.run_to_break()
    lap("warm step, with what compiles")
    before = event_counts(program, machine.retired)["macs"]
    while machine.run_to_break():
        pass
    seconds, macs = lap("refine step"), event_counts(program, machine.retired)["macs"] - before
    print(f"{macs / 1e9:.1f} GMAC, {macs / seconds / 1e9:.2f} GMAC/s")
    reference, tokens = ReferenceModel(x.model, tensors), np.array([*prompts[0], *[x.model.mask_id] * 32])
    hidden = reference.forward(tokens)
    reference.logits(hidden[32:])
    seconds = lap("NumPy float32, the canvas and its logits")
    macs = len(tokens) * x.model.network.layer_macs_per_row + 32 * x.model.hidden * x.model.vocab
    print(f"{macs / 1e9:.1f} GMAC, {macs / seconds / 1e9:.2f} GMAC/s")


if __name__ == "__main__":
    main()
