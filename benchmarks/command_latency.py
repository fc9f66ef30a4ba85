"""Wall seconds of one job, and CPU seconds of its driver: on a cluster of its own, and on the standing one.

`python benchmarks/command_latency.py --against DIR` alternates with another commit's worktree, so that what else the machine does
falls on both; docs/sweeps.md has a table. The driver is the process that a user starts and, on the standing cluster, its
fork of the keeper. Results are computed anew (`launch.cache=off`), the store exists; a round ahead of the first is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = ("launch.cache=off",)
TICKS = os.sysconf("SC_CLK_TCK")
OWN, OF_CHILDREN = slice(11, 13), slice(13, 15)
"""Fields of /proc/PID/stat after the name: user and system time of a process, and of its children that have ended."""


def cpu_seconds(pid: int, fields: slice) -> float:
    """CPU seconds of a process, as the kernel counts them."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, values[fields])) / TICKS


class Tree:
    """A checkout, with a folder in which its commands run."""

    def __init__(self, root: Path, place: Path) -> None:
        self.root, self.place = root, place
        place.mkdir()
        self.environment = {**os.environ, "PYTHONPATH": str(root), "TRIPATH_CLUSTER": str(place / "c")}
        self.standing = (root / "tripath" / "command" / "cluster.py").exists()

    def tripath(self, *arguments: str) -> subprocess.Popen:
        """A command."""
        command = [sys.executable, "-m", "tripath", *arguments]
        return subprocess.Popen(command, env=self.environment, cwd=self.place, stdout=subprocess.DEVNULL)  # noqa: S603

    def job(self) -> tuple[float, float]:
        """Wall seconds of a job, and CPU seconds of its driver."""
        state = self.place / "c" / "state.json"
        keeper = json.loads(state.read_text())["pid"] if state.exists() else None
        before = cpu_seconds(keeper, OF_CHILDREN) if keeper else 0.0
        began = time.perf_counter()
        process = self.tripath(*JOB)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its times can be read until it is waited for
        wall, cpu = time.perf_counter() - began, cpu_seconds(process.pid, OWN)
        if process.wait():
            sys.exit(f"{self.root}: the job failed")
        if keeper:
            time.sleep(1.0)  # the keeper waits for its fork
            cpu += cpu_seconds(keeper, OF_CHILDREN) - before
        return wall, cpu


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the worktree of another commit")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as place:
        trees = {"this commit": Tree(here, Path(place) / "this")}
        if given.against:
            trees["the other"] = Tree(given.against.resolve(), Path(place) / "that")
        print(
            "| cluster | commit | wall s, median | least | driver's CPU s, median | least |\n|---|---|---|---|---|---|"
        )
        for cluster in ("of its own", "standing"):
            chosen = {name: tree for name, tree in trees.items() if cluster == "of its own" or tree.standing}
            try:
                if cluster == "standing":
                    for tree in chosen.values():
                        tree.tripath("cluster", "start").wait()
                measured: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
                for number in range(given.rounds + 1):
                    for name, tree in chosen.items():
                        found = tree.job()
                        measured[name] += [found] if number else []
            finally:
                for tree in chosen.values():
                    if tree.standing:
                        tree.tripath("cluster", "stop").wait()
            for name, rows in measured.items():
                wall, cpu = zip(*rows, strict=True)
                print(
                    f"| {cluster} | {name} | {statistics.median(wall):.1f} | {min(wall):.1f} | {statistics.median(cpu):.1f} | "
                    f"{min(cpu):.1f} |",
                    flush=True,
                )
        print(f"\nload of the machine in the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
