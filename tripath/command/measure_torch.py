"""Times the phases of a model in torch on a GPU of yours: `python -m tripath.command.measure_torch --device cuda`.

Writes the CSV file that `validation.measurements` takes: each phase then stands beside what the device model predicts.
"""

import argparse
import csv
import sys
from pathlib import Path
from statistics import median

from npu.errors import TripathError
from npu.units import format_seconds
from tripath.command.composition import compose_experiment
from tripath.validation.measurements import COLUMNS

DTYPES = ("bfloat16", "float16", "float32")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the file, print a line for each phase; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tripath.command.measure_torch", description=__doc__)
    parser.add_argument("--device", default="cuda", help="of torch: cuda, cuda:1, cpu (default %(default)s)")
    parser.add_argument("--name", help="device model that the rows are held against (conf/device); default: --device")
    parser.add_argument("--model", default="llada_8b", help="option of the group model (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default %(default)s)")
    parser.add_argument("--canvas", type=int, default=512, help="tokens of a sequence (default %(default)s)")
    parser.add_argument("--block", type=int, default=32, help="tokens of a block (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of weights and rows (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="executions of each phase (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("measured.csv"), help="file (default %(default)s)")
    given = parser.parse_args(arguments)
    try:
        _measure(given)
    except TripathError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(given: argparse.Namespace) -> None:
    for name in ("batch", "canvas", "block", "repeats"):
        if getattr(given, name) < 1:
            raise TripathError(f"--{name}: must be at least 1, got {getattr(given, name)}")
    if given.block > given.canvas:
        raise TripathError(f"--block: {given.block} exceeds --canvas {given.canvas}")
    try:
        from dllm_training.phases import Phases, is_there, name_of, timed
    except ImportError:
        raise TripathError("torch is not installed; pip install 'tripath[study]'") from None
    if not is_there(given.device):
        raise TripathError(f"--device: torch finds no {given.device} here; --device cpu measures this CPU")
    spec = compose_experiment(f"model={given.model}", "paths=[analytical]", "workload.prompt_length=1").model
    if given.canvas > spec.max_sequence:
        raise TripathError(f"--canvas: {given.canvas} exceeds model.max_sequence {spec.max_sequence}")
    sizes = {"batch": given.batch, "canvas": given.canvas, "block": given.block}
    phases = Phases(spec, **sizes, device=given.device, dtype=given.dtype)
    source = f"{name_of(given.device)}, {given.dtype}, median of {given.repeats}"
    rows = []
    for phase, call in phases.calls():
        seconds = timed(call, given.device, given.repeats)
        print(f"{phase:10} {format_seconds(median(seconds))}, at least {format_seconds(min(seconds))}", flush=True)
        rows.append([given.name or given.device, given.model, phase, *sizes.values(), f"{median(seconds):.6g}", source])
    with given.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    print(f"{given.out}: tripath validation.measurements={given.out} paths=[]")


if __name__ == "__main__":
    sys.exit(main())
