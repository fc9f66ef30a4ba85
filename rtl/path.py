"""The RTL as a path: what the core does with a program, and where that is not what `cycle` and `accuracy` say."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from npu.hardware import HardwareConfig
from npu.metrics import Result
from npu.program import Program
from npu.program.exits import generated_tokens, steps_of_blocks
from npu.program.tables import event_counts
from npu.program.trace import Trace
from rtl.simulator import Job, Memories, build, run

MEMORIES = tuple(field.name for field in fields(Memories))


@dataclass(frozen=True, kw_only=True, slots=True)
class RtlOutcome:
    """Result of the path, the trace that the core took, and what was generated: `token_ids` per sequence, `trip_counts`
    denoising steps per block."""

    result: Result
    trace: Trace
    token_ids: Sequence[Sequence[int]]
    trip_counts: Sequence[int]


def simulate(
    program: Program,
    *,
    hardware: HardwareConfig,
    trace: Trace,
    image: np.ndarray,
    expected: Memories,
    times: np.ndarray,
) -> RtlOutcome:
    """Run `program` on the core from the HBM contents `image` (uint8).

    `expected` holds the executor's memories after the same run (smaller where the program uses less), `times` [n, 3]
    every queued instruction with its start and end as the cycle path has them. Metrics: `makespan_cycles`, `seconds`,
    `tokens_per_second`; `differing_instructions` (starts or ends unlike those of `times`), `differing_bytes.<memory>`,
    `differing_tokens`.

    Raises:
        TripathError: Verilator is missing, or the core cannot be built or cannot run the program.
        ProgramError: the program does not end, or the core reports a fault.
    """
    (after,) = run(build(hardware), [Job(program=program, hardware=hardware, hbm=image)])
    seconds = after.makespan_cycles / hardware.clock_hz
    tokens, theirs = _tokens(after.memories.hbm, program), _tokens(expected.hbm, program)
    metrics: dict[str, float] = {
        "makespan_cycles": after.makespan_cycles, "seconds": seconds,
        "tokens_per_second": generated_tokens(program, trace.breaks) / seconds,
        "differing_instructions": differing_rows(times, after.events),
        **{f"differing_bytes.{name}": count for name, count in differing_bytes(expected, after.memories).items()},
        "differing_tokens": int((tokens != theirs).sum()),
    }  # fmt: skip
    result = Result(
        simulator="rtl", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics,
        counts=event_counts(program, after.retired),
    )  # fmt: skip
    trips = steps_of_blocks(program, trace.breaks)
    return RtlOutcome(result=result, trace=trace, token_ids=tokens.tolist(), trip_counts=trips)


def differing_rows(times: np.ndarray, events: np.ndarray) -> int:
    """Instructions of two lists [n, 3] of (instruction, start, end) that the other does not have, at most of one side."""
    (mine, one), (yours, other) = (np.unique(rows, axis=0, return_counts=True) for rows in (times, events))
    both, sides = np.unique(np.concatenate([mine, yours]), axis=0, return_inverse=True)
    counts = np.zeros((2, len(both)), np.int64)
    np.add.at(counts[0], sides.ravel()[: len(mine)], one)
    np.add.at(counts[1], sides.ravel()[len(mine) :], other)
    return int(max(np.maximum(counts[0] - counts[1], 0).sum(), np.maximum(counts[1] - counts[0], 0).sum()))


def differing_bytes(expected: Memories, found: Memories) -> dict[str, int]:
    """Bytes of each memory that differ, as far as the program uses it. Outside HBM a NaN equals a NaN."""
    result = {}
    for name in MEMORIES:
        mine = np.ascontiguousarray(getattr(expected, name)).ravel()
        yours = np.ascontiguousarray(getattr(found, name)).ravel()[: mine.size]
        unequal = mine.view(np.uint8) != yours.view(np.uint8)
        both_nan = np.isnan(mine) & np.isnan(yours)
        result[name] = int((unequal & ~np.repeat(both_nan, mine.itemsize)).sum())
    return result


def _tokens(hbm: np.ndarray, program: Program) -> np.ndarray:
    """Generated tokens [batch, length]."""
    tensor = program.tensor("tokens")
    raw = hbm[tensor.address : tensor.address + tensor.size_bytes]
    return (
        np.ascontiguousarray(raw)
        .view("<i4")
        .reshape(tensor.shape)[: program.layout["batch"], program.layout["prompt"] :]
    )
