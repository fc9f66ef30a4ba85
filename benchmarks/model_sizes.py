"""Measures the tool's cost and estimate for each shipped model: `python benchmarks/model_sizes.py [MODEL ...]` prints a table.

Each model decodes as it does by default, in MXINT4 on `npu_datacenter`: `--tokens` (256) after a prompt of 256. Each runs in a
process of its own on one core, after a small program has loaded the compiled code. Seconds are CPU seconds; those of the cycle
path exclude the race check, which has its own column. A row of Markdown is printed as soon as a model is measured; the last row
has the worst of each column.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MODELS = Path(__file__).parent.parent / "conf" / "model"
PROMPT = 256
COLUMNS = (
    "compile, s",
    "words",
    "proof, s",
    "cycle, s",
    "analytical, ms",
    "again, ms",
    "cycles / bound",
    "estimate / cycles",
)
HEADING = f"| model | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}\n"


def main() -> None:
    """Measure the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all shipped ones unless given")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="tokens to generate")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one, options.tokens)) + "\n")
        return
    sys.stdout.write(HEADING)
    rows = []
    for model in options.models or shipped():
        rows.append(in_process(model, options.tokens))
        sys.stdout.write(row_of(f"`{model}`", rows[-1]))
        sys.stdout.flush()
    worst = {name: max(row[name] for row in rows) for name in COLUMNS}
    worst["estimate / cycles"] = max((row["estimate / cycles"] for row in rows), key=lambda ratio: abs(ratio - 1))
    sys.stdout.write(row_of("worst", worst))


def shipped() -> list[str]:
    """The models of published sizes: those of `conf/model` but folders, and what was trained here."""
    names = sorted(path.stem for path in MODELS.glob("*.yaml"))
    return [name for name in names if name not in ("_optional", "hf") and not name.startswith("wordmath")]


def row_of(name: str, row: Mapping[str, float]) -> str:
    """A row of the table."""
    cells = (f"{row['compile, s']:.1f}", f"{row['words']:,.0f}", f"{row['proof, s']:.1f}", f"{row['cycle, s']:.1f}",
             f"{row['analytical, ms']:.0f}", f"{row['again, ms']:.0f}", f"{row['cycles / bound']:.3f}",
             f"{row['estimate / cycles']:.3f}")  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |\n"


def in_process(model: str, tokens: int) -> dict[str, float]:
    """Measure a model in a new process on one core."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")}
    command = [sys.executable, __file__, "--one", model, "--tokens", str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603  ourselves
    return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, tokens: int) -> dict[str, float]:
    """The row of a model."""
    import analytical
    import cycle
    from cycle.races import find_race
    from npu_compiler import compile_program, schedule
    from tripath.command.composition import compose_experiment

    def made(*overrides: str) -> tuple:
        experiment = compose_experiment("paths=[analytical,cycle]", *overrides)
        workload = experiment.workload
        lengths: Sequence[int] = [workload.prompt_length or 0] * workload.batch
        began = time.process_time()
        program = compile_program(experiment.model, workload, experiment.hardware, experiment.numerics, lengths)
        return experiment, program, experiment.with_load(program, schedule(workload)), time.process_time() - began

    experiment, program, trace, _ = made("workload.prompt_length=8")
    cycle.simulate(program, hardware=experiment.hardware, trace=trace)
    analytical.simulate(program, hardware=experiment.hardware, trace=trace)
    experiment, program, trace, compiling = made(
        f"model={model}", "hardware=npu_datacenter", "numerics=mxint4", f"workload.prompt_length={PROMPT}",
        f"workload.generation_length={tokens}",
    )  # fmt: skip
    began = time.process_time()
    find_race(program)
    proof, began = time.process_time() - began, time.process_time()
    exact = cycle.simulate(program, hardware=experiment.hardware, trace=trace, race_check=False)
    seconds, began = time.process_time() - began, time.process_time()
    closed = analytical.simulate(program, hardware=experiment.hardware, trace=trace)
    first, began = time.process_time() - began, time.process_time()
    analytical.simulate(program, hardware=experiment.hardware, trace=trace)
    cycles = exact.metrics["makespan_cycles"]
    return {
        "compile, s": compiling, "words": len(program.words), "proof, s": proof, "cycle, s": seconds,
        "analytical, ms": 1e3 * first, "again, ms": 1e3 * (time.process_time() - began),
        "cycles / bound": cycles / closed.metrics["lower_bound_cycles"],
        "estimate / cycles": closed.metrics["estimated_cycles"] / cycles,
    }  # fmt: skip


if __name__ == "__main__":
    main()
