"""Measures the overhead of a sweep: 500 analytical jobs anew, from the cache, and killed half way and resumed.

`python benchmarks/sweep_overhead.py` prints a table; docs/sweeps.md has one. Overhead of a job: wall seconds minus those of the
simulators (divided by the processors that ran them), per job. CPU seconds of driver, workers and Ray do not depend on what else
the machine does; from the cache all of them are overhead.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AXES = {
    "hardware.vlen": "32,64,128,256,512", "hardware.hbm.channels": "1,2,4,8,16", "workload.batch": "1,2,3,4,5",
    "hardware.blen": "4,8,16,32",
}  # fmt: skip
FIXED = ("tracking=off", "paths=[analytical]", "hardware.sram.vector_bytes=16777216", "hardware.sram.matrix_bytes=1048576",
         "hardware.sram.fp_bytes=65536", "hardware.sram.int_bytes=65536")  # fmt: skip


def start(folder: Path, cache: Path, cpus: int) -> subprocess.Popen:
    """The sweep as a user starts it."""
    command = [sys.executable, "-m", "tripath", "--multirun", *FIXED, f"hydra.sweep.dir={folder}", f"launch.num_cpus={cpus}",
               *(f"{axis}={values}" for axis, values in AXES.items())]  # fmt: skip
    environment = {**os.environ, "TRIPATH_CACHE": str(cache)}
    log = (folder.parent / f"{folder.name}.log").open("w")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder.parent)  # noqa: S603


def cpu_seconds(root: int, seen: dict[int, float]) -> float:
    """CPU seconds of a process and all below it, those that have ended included as last `seen`."""
    parents, used = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents[int(entry.parent.name)] = int(fields[1])
            used[int(entry.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for pid in parents:
        above = pid
        while above not in (0, 1, root):
            above = parents.get(above, 0)
        if above == root:
            seen[pid] = used[pid]
    return sum(seen.values())


def finished(folder: Path) -> int:
    """Jobs that left a report."""
    return len(list(folder.glob("*/report.json")))


def main() -> None:
    """Run the sweep three times."""
    cpus = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        print("| sweep | jobs | wall s | simulators s | overhead s a job | CPU s a job | from the cache |")
        print("|---|---|---|---|---|---|---|")
        for name, cache in (("anew", "a"), ("again", "a"), ("killed half way", "b"), ("resumed", "b")):
            folder, began = root / name.replace(" ", "_"), time.perf_counter()
            process = start(folder, root / cache, cpus)
            seen: dict[int, float] = {}
            while process.poll() is None and not (name.startswith("killed") and finished(folder) >= 250):
                cpu = cpu_seconds(process.pid, seen)
                time.sleep(0.5)
            if name.startswith("killed"):
                process.send_signal(signal.SIGKILL)
            process.wait()
            wall, jobs = time.perf_counter() - began, finished(folder)
            if name.startswith("killed"):
                print(f"| {name} | {jobs} | {wall:.0f} | | | | |", flush=True)
                continue
            if process.returncode:
                sys.exit((root / f"{folder.name}.log").read_text())
            with (folder / "sweep.csv").open() as file:
                rows = list(csv.DictReader(file))
            hits = sum(row["cached"] == "analytical" for row in rows)
            seconds = sum(float(row["seconds"] or 0) for row in rows if not row["cached"])
            overhead = (wall - seconds / cpus) / jobs
            print(
                f"| {name} | {jobs} of {len(rows)} | {wall:.0f} | {seconds:.0f} | {overhead:.2f} | {cpu / jobs:.2f} | {hits} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
