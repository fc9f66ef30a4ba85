"""Interrupts commands at random moments: `python -m benchmarks.interruptions [--runs N] [--seed S] [--log FILE] [--standing]`.

Each try starts a small run or sweep, sends it SIGINT or SIGTERM at a random moment, sometimes a second one soon after, and looks
at what is left: the exit status, the output, processes, files, and the runs of the MLflow store. One try in eight then gives the
same command again, which must end well. Tries follow from the seed. Those that the log has are not run again, so an interrupted
measurement goes on where it ended. The folder of a try with a fault is kept beside the log. The status is 1 if there was any.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TRACKED = "tracking=sqlite"
TIMING = "paths=[analytical,cycle]"
KINDS: Mapping[str, Sequence[str]] = {
    "run, analytical": ("experiment=quick", "paths=[analytical]", "hydra.run.dir=out"),
    "run, analytical, tracked": ("experiment=quick", "paths=[analytical]", TRACKED, "hydra.run.dir=out"),
    "run, three paths, tracked": ("experiment=quick", TRACKED, "hydra.run.dir=out"),
    "sweep, analytical": ("--multirun", "experiment=quick", "paths=[analytical]", "hydra.sweep.dir=out",
                          "workload.cache=none,dual", "hardware.vlen=64,128"),
    "sweep, analytical, tracked": ("--multirun", "experiment=quick", "paths=[analytical]", TRACKED, "hydra.sweep.dir=out",
                                   "workload.cache=none,dual", "hardware.vlen=64,128"),
    "sweep, two paths, tracked": ("--multirun", "experiment=quick", TIMING, TRACKED, "hydra.sweep.dir=out",
                                  "workload.cache=none,prefix,dual"),
}  # fmt: skip
"""Commands to interrupt, as arguments of tripath."""
SIGNALS = {"SIGINT": (2,), "SIGINT twice": (2, 2), "SIGTERM": (15,), "SIGTERM, then SIGINT": (15, 2)}
"""Signals to send; a SIGINT goes to the process alone, or to its group, as a terminal sends it."""
SECOND_WITHIN = 2.0
"""Seconds in which a second signal follows."""
GRACE_SECONDS = 60.0
"""So long processes of the command may take to end after it."""
LIMIT_SECONDS, ATTEMPTS = 180.0, 3
RESUMED = 8
"""Of so many tries one is started again."""
MARK = "TRIPATH_INTERRUPTION"
"""The environment variable by which the processes of a try are known, whoever their parent is."""
CLUSTER = "TRIPATH_CLUSTER"
INTERRUPTED = 130
UNWANTED = ("Traceback", "Exception ignored", "Fatal Python error", "core dumped", "Aborted")
REPORT, NOTE = "report.json", "tracked.json"
OWN_OF_A_SWEEP = ("junit.xml", "summary.md")
"""Files that only a sweep has whose jobs have all ended."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """A command and how it is interrupted: after which share of the seconds that it takes by itself."""

    number: int
    kind: str
    signals: str
    share: float
    second_after: float
    to_group: bool
    new_store: bool

    @property
    def resumed(self) -> bool:
        """The command is given again."""
        return self.number % RESUMED == 0


def drawn(seed: int, number: int) -> Try:
    """The try of that number."""
    draw = random.Random(f"{seed} {number}")  # noqa: S311  no secret
    signals = draw.choices([*SIGNALS], weights=(4, 2, 2, 1))[0]
    return Try(
        number=number, kind=draw.choice([*KINDS]), signals=signals, share=draw.random(),
        second_after=draw.random() * SECOND_WITHIN, to_group=draw.random() < 1 / 2, new_store=draw.random() < 1 / 4,
    )  # fmt: skip


class Commands:
    """Starts commands, each in a folder of its own, and knows what they leave when nobody interrupts them."""

    def __init__(self, place: Path, *, standing: bool) -> None:
        self._cluster = place / "cluster" if standing else None
        self._place, self.seconds, self.files = place, dict[str, float](), dict[str, set[str]]()
        self._store, self._known = place / "new.db", place / "uninterrupted.json"
        if self._known.exists():
            for kind, (seconds, files) in json.loads(self._known.read_text()).items():
                self.seconds[kind], self.files[kind] = seconds, set(files)

    def start(self, kind: str, folder: Path, *, new_store: bool = True) -> tuple[subprocess.Popen, str]:
        """The command, in a group of its own, and its mark."""
        folder.mkdir(exist_ok=True, parents=True)
        if TRACKED in KINDS[kind] and self._store.exists() and not new_store and not (folder / "mlruns").exists():
            (folder / "mlruns").mkdir()
            shutil.copy(self._store, folder / "mlruns" / "mlflow.db")
        mark = uuid.uuid4().hex
        own = {"TRIPATH_CACHE": str(folder / "cache"), CLUSTER: str(self._cluster or folder / "c"), MARK: mark}
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(  # noqa: S603  ourselves
                [sys.executable, "-m", "tripath", *KINDS[kind]], cwd=folder, env={**os.environ, **own}, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return process, mark

    @contextlib.contextmanager
    def cluster(self) -> Iterator[None]:
        """The cluster that stands between the commands, where one is asked for."""
        if self._cluster is None:
            yield
            return
        tripath = [sys.executable, "-m", "tripath", "cluster"]
        environment = {**os.environ, CLUSTER: str(self._cluster)}
        subprocess.run([*tripath, "start"], env=environment, check=True)  # noqa: S603  ourselves
        try:
            yield
        finally:
            subprocess.run([*tripath, "stop"], env=environment, check=True)  # noqa: S603  ourselves

    def left(self, mark: str) -> list[int]:
        """Processes of a command that have not ended; on a standing cluster all but the keeper's first, which holds Ray."""
        if self._cluster is None:
            return marked(mark)
        keeper = json.loads((self._cluster / "state.json").read_text())["pid"]
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        return [*map(int, children[1:]), *marked(mark)]

    def measure(self, kind: str) -> None:
        """Run a command to its end, for its seconds and its files; the first command of all twice, since it may compile code."""
        folder = self._place / kind
        for _ in range(1 if self.seconds else 2):
            began = 0.0
            for attempt in range(ATTEMPTS):  # on a busy machine Ray may not start in time
                shutil.rmtree(folder, ignore_errors=True)
                began = time.perf_counter()
                process, _ = self.start(kind, folder)
                if not process.wait(10 * LIMIT_SECONDS):
                    break
                if attempt == ATTEMPTS - 1:
                    sys.exit((folder / "log").read_text())
            self.seconds[kind] = time.perf_counter() - began
            self.files[kind] = {str(path.relative_to(folder)) for path in (folder / "out").rglob("*") if path.is_file()}
        if not self._store.exists() and (folder / "mlruns").exists():
            _empty_copy(folder / "mlruns" / "mlflow.db", self._store)
        known = {each: (self.seconds[each], sorted(self.files[each])) for each in self.seconds}
        self._known.write_text(json.dumps(known))


def _empty_copy(database: Path, copy: Path) -> None:
    """A store without experiments and runs of ours: to make one takes seconds."""
    shutil.copy(database, copy)
    with contextlib.closing(sqlite3.connect(copy)) as link, link:
        tables = [name for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table in {"runs", "tags", "params", "metrics", "latest_metrics", "experiment_tags"}:
                link.execute(f"DELETE FROM {table}")  # noqa: S608  names of ours
        link.execute("DELETE FROM experiments WHERE experiment_id != 0")


def marked(mark: str) -> list[int]:
    """Processes that a command started and that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def interrupt(commands: Commands, given: Try, folder: Path) -> dict[str, object]:
    """Carry out a try; what it found."""
    process, mark = commands.start(given.kind, folder, new_store=given.new_store)
    began, sent = time.perf_counter(), 0
    waits = [given.share * commands.seconds[given.kind], given.second_after]
    for number, seconds in zip(SIGNALS[given.signals], waits, strict=False):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            to_group = given.to_group and number == signal.SIGINT
            os.killpg(process.pid, number) if to_group else process.send_signal(number)
            sent += 1
    faults: list[str] = []
    try:
        status: int | None = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        status = None
        faults.append(f"did not end in {LIMIT_SECONDS:.0f} s")
        process.kill()
    seconds = time.perf_counter() - began
    until = time.monotonic() + GRACE_SECONDS
    while (left := commands.left(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    for pid in left:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(bytes(1), b" ").strip()
            faults.append(f"left a process: {command[:100].decode(errors='replace')}")
            os.kill(pid, signal.SIGKILL)
    text = (folder / "log").read_text(errors="replace")
    faults += [f"printed {what}" for what in UNWANTED if what in text]
    whole = status == 0
    if status not in (0, INTERRUPTED):
        faults.append(f"status {status}")
    faults += [*of_files(folder, commands.files[given.kind], whole=whole), *of_store(folder, ended=int(whole))]
    if not faults and given.resumed:
        runs = 1 + (0 if given.kind.startswith("sweep") else finished(folder))  # a sweep goes on in the run that it has
        process, _ = commands.start(given.kind, folder)
        if again := process.wait(LIMIT_SECONDS):
            faults.append(f"given again: status {again}")
        faults += [f"given again: {fault}" for fault in (
            *of_files(folder, commands.files[given.kind], whole=True), *of_store(folder, ended=runs))]  # fmt: skip
    what = {**dataclasses.asdict(given), "sent": sent, "status": status, "seconds": round(seconds, 2)}
    return {**what, "ended before": not sent or whole, "faults": faults}


def of_files(folder: Path, expected: set[str], *, whole: bool) -> Iterator[str]:
    """Faults of the files: all are there where the command ended, or a run is absent or has no report, which is written last."""
    out = folder / "out"
    there = {str(path.relative_to(folder)) for path in out.rglob("*") if path.is_file()}
    if whole and expected - there:
        yield f"lacks {sorted(expected - there)}"
    for path in (out, *out.rglob("*")) if out.exists() else ():
        if path.is_dir() and not any(path.iterdir()):
            yield f"left an empty folder {path.relative_to(folder)}"
        if path.is_file() and path.name.startswith("."):
            yield f"left a partial file {path.relative_to(folder)}"
        if path.suffix == ".json":
            try:
                json.loads(path.read_bytes())
            except ValueError:
                yield f"left half a file {path.relative_to(folder)}"
    for report in out.rglob(REPORT):
        own = str(report.parent.relative_to(folder))
        of_run = {name for name in expected if name.rpartition("/")[0] == own}
        missing = sorted(of_run - there - {f"{own}/{NOTE}"})
        if missing or not of_run:
            yield f"a run looks whole and lacks {missing}"
    record = out / "record.json"
    content = json.loads(record.read_bytes()) if record.exists() else {"tags": {}, "status": ""}
    if content["tags"].get("kind") == "sweep":
        missing = sorted(expected - there)
        if content["status"] == "FINISHED" and missing:  # its jobs had ended, and the cluster was being closed
            yield f"the record of a sweep says FINISHED, and it lacks {missing}"
        if content["status"] != "FINISHED":
            yield from (f"looks whole: {name}" for name in OWN_OF_A_SWEEP if (out / name).exists())
            if content["tags"].get("verdict") == "passed":
                yield f"the record of a sweep says {content['status']}, passed"
    yield from (f"left {path.name}" for path in folder.glob("mlruns/mlflow.db.*"))


def of_store(folder: Path, *, ended: int) -> Iterator[str]:
    """Faults of the store where so many runs should have ended: no run goes on; one that is `passed` has ended, with all below
    it; an interrupted one is not."""
    database = folder / "mlruns" / "mlflow.db"
    if not database.exists():
        return
    with contextlib.closing(sqlite3.connect(database)) as link:
        try:
            runs = dict(link.execute("SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"))
            tags: dict[str, dict[str, str]] = {}
            for run, key, value in link.execute("SELECT run_uuid, key, value FROM tags"):
                tags.setdefault(run, {})[key] = value
        except sqlite3.Error as error:
            yield f"the store cannot be read ({error})"
            return
    parent_of = {run: tags.get(run, {}).get("mlflow.parentRunId") for run in runs}
    for run, status in runs.items():
        name, verdict = tags[run].get("mlflow.runName"), tags[run].get("verdict")
        if status not in {"FINISHED", "FAILED", "KILLED"}:
            yield f"MLflow: {name} is {status}"
        if verdict == "passed" and status != "FINISHED":
            yield f"MLflow: {name} is {status} and passed"
        if status == "FINISHED" and verdict != "passed":
            yield f"MLflow: {name} is FINISHED, its verdict {verdict}"
        if status == "FINISHED" and any(runs[child] != "FINISHED" for child in runs if parent_of[child] == run):
            yield f"MLflow: {name} is FINISHED, but not all below it"
        if status == "FINISHED" and not parent_of[run] and not any(parent_of[child] == run for child in runs):
            yield f"MLflow: {name} is FINISHED, and nothing is below it"
        if parent_of[run] and parent_of[run] not in runs:
            yield f"MLflow: the parent of {name} is gone"
    tops = [run for run in runs if not parent_of[run]]
    if ended and sum(runs[run] == "FINISHED" for run in tops) != ended:
        yield f"MLflow: {ended} should have ended, and of the runs are {[runs[run] for run in tops]}"


def finished(folder: Path) -> int:
    """Runs of the store that are FINISHED, those below others left out: one that was interrupted behind its end is one."""
    database = folder / "mlruns" / "mlflow.db"
    if not database.exists():
        return 0
    of_top = """SELECT COUNT(*) FROM runs WHERE status = 'FINISHED' AND run_uuid NOT IN
                (SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId')"""
    with contextlib.closing(sqlite3.connect(database)) as link:
        return link.execute(of_top).fetchone()[0]


def main() -> int:
    """Run the tries that the log lacks, and print what was found by kind and by signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("interruptions.jsonl"))
    parser.add_argument(
        "--standing", action="store_true", help="on a standing cluster, in place of one for each command"
    )
    parser.add_argument("--kind", choices=KINDS, help="tries of this kind alone")
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, which commands inherit
    place = asked.log.absolute().with_suffix("")
    place.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in asked.log.read_text().splitlines()] if asked.log.exists() else []
    known = {each["number"] for each in done}
    commands = Commands(place, standing=asked.standing)
    with commands.cluster():
        for given in (drawn(asked.seed, number) for number in range(asked.runs)):
            if given.number in known or asked.kind not in (None, given.kind):
                continue
            if given.kind not in commands.seconds:
                commands.measure(given.kind)
            folder = place / str(given.number)
            shutil.rmtree(folder, ignore_errors=True)
            found = interrupt(commands, given, folder)
            done.append(found)
            with asked.log.open("a") as log:
                log.write(json.dumps(found) + "\n")
            if not found["faults"]:
                shutil.rmtree(folder)
    show([each for each in done if asked.kind in (None, each["kind"])])
    return int(any(each["faults"] for each in done))


def show(done: Sequence[Mapping[str, object]]) -> None:
    """Print tries and faults by kind and by signal, then each fault with how often it was."""
    print("| what | tries | ended before the signal | 130 | with a fault |\n|---|---|---|---|---|")
    for by in ("kind", "signals"):
        for name in KINDS if by == "kind" else SIGNALS:
            own = [each for each in done if each[by] == name]
            early, fault = (sum(bool(each[what]) for each in own) for what in ("ended before", "faults"))
            ended = sum(each["status"] == INTERRUPTED and not each["ended before"] for each in own)
            print(f"| {name} | {len(own)} | {early} | {ended} | {fault} |")
    faults = Counter(str(fault) for each in done for fault in each["faults"])  # pyright: ignore[reportGeneralTypeIssues]
    for fault, number in faults.most_common():
        print(f"{number} x {fault}")


if __name__ == "__main__":
    sys.exit(main())
