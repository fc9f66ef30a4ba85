"""Builds the core with Verilator, runs programs on it, and reads back what happened."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from npu.errors import ProgramError, TripathError
from npu.hardware import QUEUED_UNITS, HardwareConfig
from npu.program import Program
from npu.sources import user_cache
from rtl.limits import BEHIND, PACKAGE, check_program
from rtl.package import package_text

FOLDER = Path(__file__).parent
SOURCES = tuple((FOLDER / "sources.txt").read_text().split())
"""In the order in which they depend on each other; the first is generated."""
READ_DELAY = 30
"""Cycles in which HBM answers a beat; the DMA needs the rest of `read_latency_cycles` at most."""
MOST_CYCLES = 1 << 30
FLAGS = ("--cc", "--exe", "--build", "-O3", "-Wno-fatal", "-Wno-WIDTH", "--unroll-count", "24", "--unroll-stmts",
         "100000", "--top", "core", "-MAKEFLAGS",
         "OPT_FAST=-O2 OPT_SLOW=-O0")  # fmt: skip
DONE, FAULT, TOO_LONG = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memories:
    """Contents of the memories: `hbm`, `matrix` uint8; `vector` float32 holding BF16 values; `fp` float32; `integer`
    int32; `accumulator` float32 [BLEN, BLEN]."""

    hbm: np.ndarray
    matrix: np.ndarray
    vector: np.ndarray
    fp: np.ndarray
    integer: np.ndarray
    accumulator: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The outcome of a job: `events`, int64 [n, 3] (instruction, start, end) of the queued instructions in order of their start;
    `retired`, int64 [words]; the memories at the end; and the cycle in which everything had finished."""

    makespan_cycles: int
    events: np.ndarray
    retired: np.ndarray
    memories: Memories


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A program and the memories that it starts from. `hardware` may differ from that of the build in what the host sets:
    execution, queue depths, outstanding descriptors."""

    program: Program
    hardware: HardwareConfig
    hbm: np.ndarray
    matrix: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    vector: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    fp: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    integer: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    accumulator: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def build(hardware: HardwareConfig, *, coverage: bool = False) -> Path:
    """The simulator of the core for a piece of hardware, built where the cache lacks it.

    With `coverage` it counts how often each line runs, and leaves the counts in the folder `$RTL_COVERAGE`.

    Raises:
        TripathError: Verilator is missing or fails, or the RTL cannot be built for this hardware.
    """
    verilator = shutil.which("verilator")
    if verilator is None:
        raise TripathError("rtl: needs verilator (Debian: apt install verilator)")
    texts = {PACKAGE: package_text(hardware), "harness.cpp": (FOLDER / "harness.cpp").read_text()}
    texts |= {name: (FOLDER / name).read_text() for name in SOURCES[1:]}
    hbm = hardware.hbm
    defines = f"-DREAD_LATENCY={hbm.read_latency_cycles} -DWRITE_LATENCY={hbm.write_latency_cycles} -DBEHIND={BEHIND}"
    flags = [*FLAGS, *(("--coverage-line",) if coverage else ()), "-CFLAGS", defines]
    version = subprocess.run([verilator, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    digest = hashlib.sha256(repr((sorted(texts.items()), flags, version)).encode()).hexdigest()[:16]
    folder = user_cache() / "rtl" / digest
    binary = folder / "obj" / "Vcore"
    with _locked(folder.with_suffix(".lock")):
        if binary.exists():
            return binary
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)
        command = [verilator, *flags, "-j", "2", "--Mdir", "obj", *SOURCES, "harness.cpp"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            (folder / "log").write_text(done.stdout + done.stderr)
            binary.unlink(missing_ok=True)
            raise TripathError(f"rtl: verilator failed, see {folder / 'log'}")
    return binary


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(binary: Path, jobs: Sequence[Job], *, most_cycles: int = MOST_CYCLES) -> list[Run]:
    """Run jobs one after the other in one process.

    Raises:
        TripathError: the RTL cannot run a program.
        ProgramError: a program does not end, or the core reports a fault.
    """
    for job in jobs:
        check_program(job.program, job.hardware)
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / str(number) for number in range(len(jobs))]
        for path, job in zip(paths, jobs, strict=True):
            path.write_bytes(_input(job, most_cycles))
        done = subprocess.run([binary, *paths], cwd=place, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise ProgramError(f"rtl: the simulation failed ({done.stderr.strip() or done.returncode})")
        return [_output(path.with_name(f"{path.name}.out"), job) for path, job in zip(paths, jobs, strict=True)]


def _sizes(job: Job) -> dict[str, int]:
    sram = job.hardware.sram
    return {"hbm": len(job.hbm), "matrix": sram.matrix_bytes, "vector": sram.vector_bytes // 2,
            "fp": sram.fp_bytes // 4, "integer": sram.int_bytes // 4}  # fmt: skip


def _input(job: Job, most_cycles: int) -> bytes:
    hardware, words = job.hardware, job.program.words.astype("<u8")
    facts = [hardware.execution == "serial", *(hardware.queue_depth[name] for name in QUEUED_UNITS),
             hardware.dma_outstanding, READ_DELAY, most_cycles, len(words), *_sizes(job).values()]  # fmt: skip
    size = _sizes(job)
    vector = (_padded(job.vector, size["vector"], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    accumulator = np.zeros((hardware.blen, hardware.blen), np.float32)
    rows, cols = job.accumulator.shape
    accumulator[:rows, :cols] = job.accumulator
    parts = [
        np.array(facts, np.int32), words, job.hbm.astype(np.uint8), _padded(job.matrix, size["matrix"], np.uint8),
        vector, _padded(job.fp, size["fp"], np.float32), _padded(job.integer, size["integer"], np.int32), accumulator,
    ]  # fmt: skip
    return b"".join(part.tobytes() for part in parts)


def _padded(values: np.ndarray, size: int, dtype: type) -> np.ndarray:
    result = np.zeros(size, dtype)
    result[: len(values)] = values
    return result


def _output(path: Path, job: Job) -> Run:
    data, at = path.read_bytes(), 0

    def take(count: int, dtype: type) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(data, dtype, count, at).copy()
        at += values.nbytes
        return values

    status, makespan, cycle, count = take(4, np.int64).tolist()
    if status != DONE:
        what = "the core reports a fault" if status == FAULT else "the program does not end"
        raise ProgramError(f"rtl: {what} (cycle {cycle})")
    events = take(3 * count, np.int32).reshape(-1, 3).astype(np.int64)
    retired, size = take(len(job.program.words), np.int64), _sizes(job)
    hbm, matrix = take(size["hbm"], np.uint8), take(size["matrix"], np.uint8)
    vector = (take(size["vector"], np.uint16).astype(np.uint32) << 16).view(np.float32)
    fp, integer = take(size["fp"], np.float32), take(size["integer"], np.int32)
    blen = job.hardware.blen
    memories = Memories(hbm=hbm, matrix=matrix, vector=vector, fp=fp, integer=integer,
                        accumulator=take(blen * blen, np.float32).reshape(blen, blen))  # fmt: skip
    return Run(makespan_cycles=makespan, events=events, retired=retired, memories=memories)
