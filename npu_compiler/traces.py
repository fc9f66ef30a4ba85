"""The trace of a program without data: the steps that a workload schedules, and a stated load of experts."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from dllm.canvas import Canvas
from dllm.experts import Experts
from dllm.workload import EXPERT_LOADS, Workload
from npu.errors import TripathError
from npu.program import Program, fact_of_program
from npu.program.exits import all_exits
from npu.program.reads import reads_of
from npu.program.trace import Trace

DRAWN = 512
"""Choices of all rows of a chunk that are drawn; they repeat then."""
MOST_BYTES = 1 << 20
"""Of a file of loads."""


def schedule(workload: Workload, canvas: Canvas | None = None, program: Program | None = None) -> Trace:
    """Trip counts without data: every block takes the denoising steps that its masks are scheduled for.

    Without a canvas every block is as long as the workload says. A program that may stop at the end token stops nowhere.
    """
    masks = [workload.block_length] * workload.blocks if canvas is None else canvas.most_masks
    steps = tuple(
        steps - (not loop.skips)
        for block, each in enumerate(masks)
        for loop, steps in zip(workload.step_loops(block), workload.scheduled_loops(block, max(1, each)), strict=True)
    )
    return Trace(breaks=all_exits(program, steps) if workload.stop_at_end and program is not None else steps)


def with_load(program: Program, experts: Experts | None, workload: Workload, trace: Trace) -> Trace:
    """The trace, where it lacks the rows of each expert with those of the stated load.

    Raises:
        TripathError: the file of the load cannot be read, or does not fit the model.
    """
    if experts is None or trace.counts or not len(reads_of(program, trace.breaks)):
        return trace
    shares = _shares(workload.expert_load, experts.count)
    counts = _counts(program, trace.breaks, experts, shares, workload.expert_seed)
    return Trace(breaks=trace.breaks, gathers=trace.gathers, counts=counts)


@fact_of_program
def _counts(
    program: Program, breaks: tuple[int, ...], experts: Experts, shares: tuple[int, ...], seed: int
) -> tuple[int, ...]:
    """Rows of each expert for every C_COUNT, in order."""
    order = reads_of(program, breaks)
    counts, random = np.zeros(len(order), np.int64), np.random.Generator(np.random.PCG64(seed))
    for instruction in np.unique(order):
        rows = program.instructions[instruction].operands["most"]
        chunks = int((order == instruction).sum()) // experts.count
        drawn = _draw(random, min(chunks, DRAWN), rows, experts, np.array(shares, np.int64))
        counts[order == instruction] = drawn[np.arange(chunks) % len(drawn)].reshape(-1)
    return tuple(counts.tolist())


def _draw(random: np.random.Generator, chunks: int, rows: int, experts: Experts, shares: np.ndarray) -> np.ndarray:
    """Rows of each expert [chunks, experts], where every row takes the experts of the smallest r / share, each r drawn from 32
    bits. Under block routing, a block has first kept those of the smallest r / share of any of its rows. Integers alone, so that
    it is the same on every machine."""
    count, found = experts.count, []
    for _ in range(chunks):
        keys = random.integers(1 << 32, size=(rows, count), dtype=np.int64) // shares * count + np.arange(count)
        if experts.block_capacity:
            by_block = keys.reshape(-1, experts.block_tokens, count)
            best = by_block.min(axis=1)
            kept = best <= _smallest(best, experts.block_capacity)
            keys = np.where(kept[:, None], by_block, np.iinfo(np.int64).max).reshape(keys.shape)
        found.append((keys <= _smallest(keys, experts.chosen)).sum(axis=0))
    return np.array(found)


def _smallest(keys: np.ndarray, count: int) -> np.ndarray:
    """The largest of the `count` smallest numbers of each row [rows, 1]."""
    return np.partition(keys, count - 1, axis=1)[:, count - 1 : count]


@lru_cache(maxsize=16)
def _shares(load: str, experts: int) -> tuple[int, ...]:
    """Relative demand for each expert, in whole numbers.

    Raises:
        TripathError: the file cannot be read, or does not fit the model.
    """
    match load:
        case "uniform":
            return (1,) * experts
        case "zipf":
            return tuple(round(65536 / (1 + rank)) for rank in range(experts))
    key = f"workload.expert_load: {load}"
    file = Path(load)
    if not file.is_file():
        raise TripathError(f"{key} is neither {' nor '.join(EXPERT_LOADS)}, nor a file")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise TripathError(f"{key} is larger than {MOST_BYTES} bytes")
        numbers = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TripathError(f"{key} is no list of numbers in JSON ({error})") from None
    right = isinstance(numbers, list) and all(type(each) in (int, float) and 0 < each < 1e18 for each in numbers)
    if not right or len(numbers) != experts:
        raise TripathError(f"{key} must be a list in JSON of {experts} numbers above 0, one for each expert")
    return tuple(max(1, round(each / max(numbers) * 65536)) for each in numbers)
