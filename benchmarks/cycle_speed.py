"""Measures the speed of the cycle path: `python benchmarks/cycle_speed.py [--scalesim PYTHON] [--quick]` prints one table.

Each case runs in a process of its own, on one core, after a small program has loaded the compiled code. CPU seconds are those of
`cycle.simulate` without its race check; for models, those of the race check stand beside them. Memory is the peak of the process.
PYTHON is an interpreter that has SCALE-Sim: `python3.11 -m venv /tmp/scalesim; /tmp/scalesim/bin/pip install scalesim 'numpy<2'`.
It simulates the same products C[M, N] = A[M, K] B[K, N] on an array of the same size, in the same run, so that the ratio does not
depend on the machine.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLADA = (
    "model=llada_8b",
    "hardware=npu_datacenter",
    "numerics=mxint4",
    "workload=llada_gsm8k",
    "paths=[analytical,cycle]",
)
EXPERTS = {
    f"{name}, 256 + {tokens}": (f"model={model}", "hardware=npu_datacenter", "numerics=mxint4", "workload.prompt_length=256",
                                f"workload.generation_length={tokens}", "paths=[analytical,cycle]")
    for name, model, tokens in (("LLaDA2-mini", "llada2_mini", 256), ("LLaDA2-flash", "llada2_flash", 64),
                                ("SDAR-30B-A3B", "sdar_30b_a3b", 256), ("DiffusionGemma", "diffusiongemma_26b_a4b", 256))
}  # fmt: skip
GEMMS = ((32, 512, 2048), (32, 4096, 4096), (256, 2048, 2048))
"""M, N, K."""
SIDE = 32
"""Rows and columns of the array."""
SCALESIM = """
import contextlib, io, sys, time
from scalesim.scale_sim import scalesim
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    began = time.perf_counter()
    tool = scalesim(save_disk_space=True, verbose=False, config="{0}/c.cfg", topology="{0}/t.csv", layout="{0}/l.csv",
                    input_type_gemm=True)
    tool.run_scale(top_path="{0}")
    took = time.perf_counter() - began
print(tool.runner.single_layer_sim_object_list[0].get_compute_report_items()[0], took)
"""
SCALESIM_CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight = {side}
ArrayWidth = {side}
IfmapSramSzkB = 512
FilterSramSzkB = 512
OfmapSramSzkB = 512
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = os
Bandwidth = 64
ReadRequestBuffer = 512
WriteRequestBuffer = 512
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scalesim", help="a Python interpreter that has SCALE-Sim")
    parser.add_argument("--quick", action="store_true", help="only what takes seconds")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        sys.stdout.write(json.dumps(run_case(**json.loads(options.case))) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in (
        "case",
        "cycles",
        "instructions",
        "executed",
        "seconds",
        "race check",
        "M instructions/s",
        "cycles/s",
        "MiB",
    ):
        table.add_column(column, justify="left" if column == "case" else "right")

    def add(name: str, case: dict[str, object]) -> None:
        row = in_process(case)
        table.add_row(
            name, f"{row['cycles']:,.0f}", f"{row['instructions']:,.0f}", f"{row['executed'] / row['instructions']:.1%}",
            f"{row['seconds']:.2f}", f"{row['proof_seconds']:.2f}" if "overrides" in case else "",
            f"{row['instructions'] / row['seconds'] / 1e6:,.1f}",
            f"{row['cycles'] / row['seconds']:,.0f}", f"{row['mebibytes']:.0f}",
        )  # fmt: skip

    add(
        "LLaDA-8B, 1 layer, 32 steps, all run",
        {"overrides": [*LLADA, "model.layers=1", "workload.steps=32"], "fast": False},
    )
    if not options.quick:
        for cache in ("none", "prefix", "dual"):
            add(f"LLaDA-8B, {cache}", {"overrides": [*LLADA, f"workload.cache={cache}"]})
        for layers in (1, 8):
            add(f"LLaDA-8B, dual, {layers} layers", {"overrides": [*LLADA, f"model.layers={layers}"]})
        for steps in (32, 128):
            add(f"LLaDA-8B, dual, {steps} steps", {"overrides": [*LLADA, f"workload.steps={steps}"]})
        for name, overrides in EXPERTS.items():
            add(name, {"overrides": overrides})
    for gemm in GEMMS[:1] if options.quick else GEMMS:
        name = "x".join(map(str, gemm))
        for fast in (False, True):
            add(f"product {name}, {'fast-forward' if fast else 'all run'}", {"gemm": gemm, "fast": fast})
        if options.scalesim:
            cycles, seconds = scalesim(options.scalesim, gemm)
            cells = ["", "", f"{seconds:.2f}", "", "", f"{cycles / seconds:,.0f}", ""]
            table.add_row(f"product {name}, SCALE-Sim", f"{cycles:,.0f}", *cells)
    Console(width=150).print(table)


def in_process(case: dict[str, object]) -> dict[str, float]:
    """Run a case in a new process on one core."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603  ourselves
    return json.loads(done.stdout.splitlines()[-1])


def run_case(
    overrides: list[str] | None = None, gemm: list[int] | None = None, *, fast: bool = True
) -> dict[str, float]:
    """One simulation, after another has loaded the compiled code."""
    import cycle
    from cycle.races import find_race
    from npu.program.trace import Trace

    small, hardware = product_program((SIDE, 64, 64))
    cycle.simulate(small, hardware=hardware, trace=Trace(breaks=()), race_check=False)
    find_race(small)
    trace = Trace(breaks=())
    if gemm:
        program, hardware = product_program(tuple(gemm))
    else:
        from npu_compiler import compile_program, schedule
        from tripath.command.composition import compose_experiment

        experiment = compose_experiment(*overrides)
        workload, hardware = experiment.workload, experiment.hardware
        lengths = [workload.prompt_length or 0] * workload.batch
        program = compile_program(experiment.model, workload, hardware, experiment.numerics, lengths)
        trace = experiment.with_load(program, schedule(workload))
    began = time.process_time()
    find_race(program)
    proof_seconds, began = time.process_time() - began, time.process_time()
    result = cycle.simulate(program, hardware=hardware, trace=trace, race_check=False, fast_forward=fast)
    seconds = time.process_time() - began
    return {
        "cycles": result.metrics["makespan_cycles"], "instructions": result.metrics["instructions"],
        "executed": result.metrics["executed_instructions"], "seconds": seconds, "proof_seconds": proof_seconds,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def product_program(gemm: tuple[int, ...]):
    """C[M, N] = A[M, K] B[K, N] in MXINT8 on an array of SIDE x SIDE, weights streamed through two buffers."""
    from npu.isa import assemble
    from npu.program import Program, Tensor, words_of
    from tripath.command.composition import compose_experiment

    hardware = dataclasses.replace(compose_experiment().hardware, blen=SIDE, mlen=SIDE)
    m, n, k = (size // SIDE for size in gemm)
    tile = SIDE * (SIDE + 1)
    text = f"""
        A_BASE register=0 base=0
        A_STEP register=0 level=1 stride={k * tile}
        A_STEP register=0 level=2 stride={tile}
        A_BASE register=1 base=0
        A_RING register=1 ring=0 length=2 stride={tile}
        A_BASE register=2 base=0
        M_SYNC signal=s2
        M_SYNC signal=s2
        C_LOOP level=0 trips={m} length=9
        C_LOOP level=1 trips={n} length=7
        C_LOOP level=2 trips={k} length=4
        H_LOAD_M dst=a1 src=a0 rows=1 row_bytes={tile} wait=s2 signal=s1
        M_MM weights=a1 acts=a2 rows={SIDE} cols={SIDE} k={SIDE} block=5 weight_format=2 act_format=2 block_stride={SIDE + 1} wait=s1 signal=s2
        A_NEXT ring=0
        C_NEXT level=2
        M_OUT dst=a2 rows={SIDE} cols={SIDE}
        C_NEXT level=1
        C_NEXT level=0
        H_LOAD_SYNC wait=s2
        H_LOAD_SYNC wait=s2
        C_END"""  # noqa: E501  an instruction is a line
    geometry = {"blen": SIDE, "mlen": SIDE, "vlen": hardware.vlen, "matrix_bytes": 4 * tile, "vector_bytes": 1 << 16}
    geometry |= {"fp_bytes": 64, "int_bytes": 64}
    weights = Tensor(name="w", address=0, shape=(n * k * tile,), format="bf16", block=32, writable=True)
    layout = {"batch": 1, "generation_length": 1}
    return Program(
        words=words_of(assemble(text)), hbm=(weights,), geometry=geometry, layout=layout, phases=()
    ), hardware


def scalesim(python: str, gemm: tuple[int, ...]) -> tuple[float, float]:
    """Simulated cycles and seconds of SCALE-Sim for one product."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "c.cfg").write_text(SCALESIM_CONFIG.format(side=SIDE), encoding="utf-8")
        (folder / "t.csv").write_text(f"Layer,M,N,K,\nproduct,{gemm[0]},{gemm[1]},{gemm[2]},\n", encoding="utf-8")
        (folder / "l.csv").write_text("Layer,\nproduct," + "1," * 18 + "\n", encoding="utf-8")
        command = [python, "-W", "ignore", "-c", SCALESIM.format(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)  # noqa: S603
    cycles, seconds = map(float, done.stdout.split()[-2:])
    return cycles, seconds


if __name__ == "__main__":
    main()
