"""Milliseconds of the analytical path: `python -m benchmarks.analytical_speed [--peers PYTHON]`.

For the shipped model and LLaDA-8B (256 + 256 tokens, 256 steps): to compile; to analyse a program seen for the first time; to
analyse it again on other hardware (another number of channels, same program), as a sweep does. Medians of CPU time over
repetitions, and each as a share of what the cycle path takes for the same program, compiled code warm.

With the Python of an environment that has `zigzag-dse`, `genz-llm` and `six` from PyPI, the same matrix products through ZigZag
(its TPU-like machine and mapping, the search for the best mapping included) beside ours, and a prefill of Llama-2-7B through
GenZ beside a whole generation of LLaDA-8B.
"""

import argparse
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import analytical
import cycle
from benchmarks.cycle_speed import GEMMS, LLADA, product_program
from npu.program import Program
from npu.program.trace import Trace
from npu_compiler import compile_program, schedule
from tripath.command.composition import compose_experiment

REPEATS = 15
CASES = {f"{name}, {cache}": (*model, f"workload.cache={cache}") for name, model in (("wordmath", ()), ("LLaDA-8B", LLADA))
         for cache in ("none", "prefix", "dual")}  # fmt: skip


def milliseconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    function()
    return 1e3 * (time.process_time() - began)


def line(name: str, overrides: Sequence[str]) -> str:
    """The figures of one case."""
    x = compose_experiment(*overrides)
    lengths, trace = [x.workload.prompt_length or 19], schedule(x.workload)
    wider = dataclasses.replace(x.hardware.hbm, channels=2 * x.hardware.hbm.channels)
    machines = [x.hardware, dataclasses.replace(x.hardware, hbm=wider)]

    def program() -> Program:
        return compile_program(x.model, x.workload, x.hardware, x.numerics, lengths)

    kept = program()
    compiled = [milliseconds(program) for _ in range(REPEATS)]
    fresh = [program() for _ in range(REPEATS)]
    first = [milliseconds(partial(analytical.simulate, p, hardware=x.hardware, trace=trace)) for p in fresh]
    runs = [partial(analytical.simulate, kept, hardware=machines[n % 2], trace=trace) for n in range(REPEATS + 1)]
    again = [milliseconds(run) for run in runs][1:]
    timed = partial(cycle.simulate, kept, hardware=x.hardware, trace=trace, race_check=False)
    timed()
    slow = milliseconds(timed)
    figures = [median(row) for row in (compiled, first, again)]
    return f"{name:18}{figures[0]:9.1f}{figures[1]:9.1f}{figures[2]:9.1f}{slow:12.1f}   {figures[2] / slow:.4f}"


PEERS = """
import json, logging, pathlib, tempfile, time, warnings
warnings.filterwarnings("ignore")
import zigzag
from GenZ import prefill_moddeling
from zigzag.api import get_hardware_performance_zigzag
logging.disable(logging.CRITICAL)
inputs, seconds = pathlib.Path(zigzag.__file__).parent / "inputs", []
for m, n, k in {gemms}:
    layer = dict(id=0, operator_type="Gemm", equation="O[b][k]+=I[b][c]*W[k][c]", loop_dims=["B", "K", "C"], loop_sizes=[m, n, k],
                 operand_precision=dict(W=8, I=8, O=16, O_final=8), operand_source=dict(I=0, W=0))
    began = time.process_time()
    get_hardware_performance_zigzag([layer], str(inputs / "hardware/tpu_like.yaml"), str(inputs / "mapping/tpu_like.yaml"),
                                    loma_show_progress_bar=False, dump_folder=tempfile.mkdtemp())
    seconds.append(time.process_time() - began)
for _ in range(6):
    began = time.process_time()
    prefill_moddeling(model="meta-llama/Llama-2-7B", batch_size=1, input_tokens=512, system_name="A100_40GB_GPU", bits="int8")
    last = time.process_time() - began
print(json.dumps([seconds, last]))
"""


def peers(python: str) -> None:
    """Ours and theirs in the same minute."""
    command = [python, "-c", PEERS.format(gemms=GEMMS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  the user's own Python
    zigzag, genz = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{'product':18}{'ours':>9}{'ZigZag':>9}   ms of CPU time")
    for gemm, theirs in zip(GEMMS, zigzag, strict=True):
        program, hardware = product_program(tuple(gemm))
        run = partial(analytical.simulate, program, hardware=hardware, trace=Trace(breaks=()))
        ours = median([milliseconds(run) for _ in range(REPEATS)])
        print(f"{'x'.join(map(str, gemm)):18}{ours:9.2f}{1e3 * theirs:9.0f}   {1e3 * theirs / ours:,.0f} times")
    print(f"GenZ, one prefill of 512 tokens of Llama-2-7B: {1e3 * genz:.0f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python interpreter that has ZigZag and GenZ")
    options = parser.parse_args()
    print(f"{'':18}{'compile':>9}{'first':>9}{'again':>9}{'cycle path':>12}   ms; again / cycle")
    for name, overrides in CASES.items():
        print(line(name, overrides), flush=True)
    if options.peers:
        peers(options.peers)


if __name__ == "__main__":
    main()
