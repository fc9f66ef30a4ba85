"""Why a run is as fast as it is: facts of its schedule and of what its array does, and where two runs differ.

What a change would save is an upper limit: the rest of the run would take over.
"""

from collections.abc import Iterator, Mapping, Sequence

from dllm.canvas import canvas_of
from npu.errors import TripathError
from npu.metrics import PHASES, Result, Table
from npu.program.steps import REFINE
from npu.units import format_bytes
from tripath.experiment import Experiment, Outcome
from tripath.paths import Fact, gives
from tripath.tracking.record import Record

NAME = "explanation"
"""Of the table in a record."""
FORWARDED = ("embed", "qkv", "smooth", "rotate", "attention", "out", "ffn")
"""Phases whose work grows with the rows that a step forwards."""
CAUSES = {
    "busy": "the array works", "frontend": "waits for the front end", "semaphore_vector": "waits for the vector unit",
    "semaphore_dma_in": "waits for data from HBM", "semaphore_dma_out": "waits for writes to HBM",
    "semaphore_matrix": "waits for its own results", "operand": "waits for an operand", "queue_full": "waits for a full queue",
    "write_out": "waits for the write-out port", "drained": "has no more to do", "serial": "waits for the instruction before",
    "shared_queue": "waits in a shared queue",
    "dram_bandwidth": "waits for HBM bandwidth", "dram_latency": "waits for HBM latency", "dram_row": "waits for an HBM row",
    "dram_refresh": "waits for HBM refresh", "host": "waits for the host",
}  # fmt: skip
"""Activities of the matrix unit in words, by the columns of the cycle path's tables."""
RELIEF = {
    "semaphore_dma_in": "data from HBM at no cost: more channels, more Matrix SRAM, earlier prefetch",
    "semaphore_vector": "vector work at no cost: more lanes, more heads in flight",
    "frontend": "a front end at no cost: fewer issue and dispatch cycles",
    "host": "sampling on the core: hardware.host=null",
}
"""Changes that would remove a cause."""
WEIGHTS = ("w_", "lm_head", "expert", "router")
"""Beginnings of the names of tensors that a forward streams whole."""


def explanation_of(experiment: Experiment, outcome: Outcome) -> Table | None:
    """Facts that say why the run takes as long as it does; None where no path has a time of a whole generation."""
    program = outcome.program
    if program is None or not outcome.prompt_lengths or experiment.workload.stage != "generation":
        return None
    rows: list[list[object]] = [list(row) for row in _schedule(experiment, outcome)]
    if outcome.choice:
        rows.insert(0, ["schedule", "auto", outcome.choice])
    forwards, share = _forwards(experiment, outcome), _kept_rows(experiment, outcome)
    for name, result in outcome.results.items():
        if Fact.ESTIMATE in gives(name):
            rows += _traffic(result, forwards)
            rows += _batch(experiment, result)
        if Fact.TIMES in gives(name):
            rows += _array(experiment, result, share)
    return Table(columns=["fact", "value", "meaning"], rows=rows)


def _steps(experiment: Experiment, outcome: Outcome) -> Sequence[int]:
    """Denoising steps of each block."""
    if outcome.generated is not None:
        return outcome.generated.trip_counts
    canvas = canvas_of(experiment.model, experiment.workload, outcome.prompt_lengths)
    return [sum(experiment.workload.scheduled_loops(n, max(1, masks))) for n, masks in enumerate(canvas.most_masks)]


def _forwards(experiment: Experiment, outcome: Outcome) -> int:
    canvas = canvas_of(experiment.model, experiment.workload, outcome.prompt_lengths)
    return canvas.forwards(_steps(experiment, outcome), appends=experiment.workload.caches.appends)


def _rows(experiment: Experiment, outcome: Outcome) -> tuple[int, int, int]:
    """Of one sequence the rows that all forwards carry, those of the blocks alone, and forwards of more than the block."""
    assert outcome.program is not None
    layout, policy, steps = outcome.program.layout, experiment.workload.caches, _steps(experiment, outcome)
    length, canvas, prompt = layout["block_length"], layout["canvas"], layout["prompt"]
    if policy.appends:
        own = length * sum(steps) - (length - experiment.workload.written_rows) * _steps_of_parts(outcome)
        return own + prompt + length * len(steps), own, int(prompt > 0)
    every = blocks = whole = 0
    for block, trips in enumerate(steps):
        for step in range(trips):
            part = policy.rows(block, step).of(prompt + block * length, length, canvas)
            every += part.stop - part.start
            blocks += length
            whole += part.stop - part.start > length
    return every, blocks, whole


def _steps_of_parts(outcome: Outcome) -> int:
    """Denoising steps that forward the part of a block that they fill alone, as a path that replays the trace counted them."""
    found = 0
    for table in (result.tables["steps"] for result in outcome.results.values() if "steps" in result.tables):
        if "passes" in table.columns:
            step, passes = table.columns.index("step"), table.columns.index("passes")
            found = max(found, *(int(str(row[passes])) for row in table.rows if row[step] == REFINE), 0)
    return found


def _kept_rows(experiment: Experiment, outcome: Outcome) -> float:
    """The share of the forwarded rows that a perfect cache would leave."""
    every, blocks, _ = _rows(experiment, outcome)
    return blocks / every


def _schedule(experiment: Experiment, outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    steps, forwards = _steps(experiment, outcome), _forwards(experiment, outcome)
    every, blocks, whole = _rows(experiment, outcome)
    made, longest = outcome.generated, experiment.workload.generation_length
    tokens = longest if made is None else max(map(len, made.token_ids), default=longest)
    yield (
        "forwards per token", f"{forwards / tokens:.3g}",
        f"{forwards} forwards for {tokens} tokens of a sequence, {sum(steps)} denoising steps in {len(steps)} blocks",
    )  # fmt: skip
    yield (
        "forwards beyond the block", f"{whole / forwards:.1%}",
        f"{whole} of {forwards} forward more than the block: what workload.cache={experiment.workload.cache} refreshes",
    )  # fmt: skip
    yield (
        "rows that are the block's", f"{blocks / every:.1%}",
        f"{blocks:,} of {every:,} rows of a sequence; the others renew the cache",
    )  # fmt: skip


def _moved(result: Result) -> list[tuple[str, int, int, int]]:
    """Of each tensor in HBM its name, its bytes, those read and those written."""
    numbers = [[int(str(value)) for value in row[1:]] for row in result.tables["traffic"].rows]
    names = [str(row[0]) for row in result.tables["traffic"].rows]
    return [(name, size, read, written) for name, (size, read, written) in zip(names, numbers, strict=True)]


def _traffic(result: Result, forwards: int) -> Iterator[list[object]]:
    traffic = _moved(result)
    moved = sum(read + written for _, _, read, written in traffic)
    weights = [row for row in traffic if row[0].startswith(WEIGHTS)]
    size, read = sum(row[1] for row in weights), sum(row[2] for row in weights)
    if size:
        share = f"{format_bytes(read)} are read, {read / moved:.0%} of the HBM traffic"
        stay = any(name == "passing" and read for name, _, read, _ in traffic)
        chunks = "once for each chunk of rows that Vector SRAM holds"
        meaning = f"{share}; {chunks}, but for weights that stay while rows pass" if stay else f"{share}; {chunks}"
        yield ["weights streamed per forward", f"{read / size / forwards:.3g}", meaning]
    logits = sum(read + written for name, _, read, written in traffic if name == "logits")
    meaning = f"written and read again; {logits / moved:.1%} of the HBM traffic" if logits else "sampled as they come"
    yield ["logits per forward", format_bytes(round(logits / forwards)), meaning]


def _batch(experiment: Experiment, result: Result) -> list[list[object]]:
    """The batch at which array and memory are equally busy, if weights are read once for all sequences."""
    batch = experiment.workload.batch or 1
    traffic = _moved(result)
    shared = sum(read for name, _, read, _ in traffic if name.startswith(WEIGHTS))
    own = sum(read + written for _, _, read, written in traffic) - shared
    per_cycle = experiment.hardware.peak_bytes_per_cycle
    matrix, memory = result.metrics["bound_cycles.matrix"], result.metrics["bound_cycles.memory"]
    gain = matrix / batch - own / batch / per_cycle
    now = "memory" if memory > matrix else "the array"
    if gain <= 0:
        return [["batch at which the bound changes", "none", "each sequence adds more HBM traffic than array work"]]
    turn = shared / per_cycle / gain
    meaning = f"now {batch}, bound by {now}: from there on the array is busier than HBM, if weights are streamed no more often"
    return [["batch at which the bound changes", f"{turn:.3g}", meaning]]


def _array(experiment: Experiment, result: Result, kept: float) -> list[list[object]]:
    """The use of the array's time, and the most that each change would save."""
    makespan, units = result.metrics["makespan_cycles"], result.tables["units"]
    matrix = next(row for row in units.rows if row[0] == "matrix")
    spent = dict(zip(units.columns[1:], (float(str(value)) for value in matrix[1:]), strict=True))
    peak = experiment.hardware.blen * experiment.hardware.mlen
    ideal = result.counts["macs"] / peak
    rows: list[list[object]] = [
        ["array use", f"{ideal / makespan:.1%}", f"{result.counts['macs']:,} MACs of {peak} a cycle"],
        [
            "matrix unit busy", f"{spent['busy'] / makespan:.1%}",
            "what it is busy beyond the array's use is fill, write-out and rows or columns that are padding",
        ],
    ]  # fmt: skip
    cycles = sum(result.metrics.get(f"phase_cycles.{phase}", 0.0) for phase in FORWARDED)
    saved = {
        "no fill, write-out or padding in the array": spent["busy"] - ideal,
        "a cache that is never refreshed": cycles * (1 - kept),
        **{change: spent[cause] for cause, change in RELIEF.items() if spent[cause]},
    }
    for change, value in sorted(saved.items(), key=lambda item: -item[1]):
        what, _, how = change.partition(": ")
        meaning = f"at most, {value:,.0f} cycles" + f" ({how})" * bool(how)
        rows.append([f"saved by {what}", f"{value / makespan:.1%}", meaning])
    return rows


def by_phase(a: Record, b: Record) -> Table:
    """Cycles of each phase in two runs by the path that both have times or else estimates of, the largest difference first."""
    path, first, second = _both(a, b, "phases")
    cycles = [_cycles_by_phase(table) for table in (first, second)]
    names = [name for name in PHASES if any(name in each for each in cycles)]
    rows = [[name, *(each.get(name, 0.0) for each in cycles)] for name in names]
    rows.sort(key=lambda row: -abs(float(row[2]) - float(row[1])))
    total = ["all", *(sum(each.values()) for each in cycles)]
    shown = [[name, f"{x:,.0f}", f"{y:,.0f}", f"{y - x:+,.0f}"] for name, x, y in (total, *rows)]
    return Table(columns=[f"phase ({path})", "A", "B", "B - A"], rows=shown)


def by_cause(a: Record, b: Record) -> Table | None:
    """The cycles of the matrix unit by phase and activity in two runs, largest difference first; None without the cycle path.

    The differences of all rows add up to the difference of the makespans: in each cycle the unit does one thing.
    """
    cells = [_cells(record) for record in (a, b)]
    if None in cells:
        return None
    first, second = ({} if each is None else each for each in cells)
    keys = dict.fromkeys([*first, *second])
    rows = sorted(((key, first.get(key, 0), second.get(key, 0)) for key in keys), key=lambda row: -abs(row[2] - row[1]))
    return Table(
        columns=["phase", "matrix unit", "A", "B", "B - A"],
        rows=[[key[0], CAUSES[key[1]], f"{x:,}", f"{y:,}", f"{y - x:+,}"] for key, x, y in rows if x != y],
    )


def _cells(record: Record) -> dict[tuple[str, str], int] | None:
    """Cycles of the matrix unit by phase and cause, as the cycle path found them."""
    table = next((table for name, table in record.tables.items() if name.endswith("_stalls")), None)
    if table is None:
        return None
    return {
        (str(phase), cause): int(str(table[cause][row]))
        for row, (phase, unit) in enumerate(zip(table["phase"], table["unit"], strict=True))
        if unit == "matrix"
        for cause in CAUSES
        if cause in table
    }


def _both(
    a: Record, b: Record, title: str
) -> tuple[str, Mapping[str, Sequence[object]], Mapping[str, Sequence[object]]]:
    names = [name for name in a.tables if name.endswith(f"_{title}") and name in b.tables]
    path = next((name for name in names if "cycles" in a.tables[name]), names[0] if names else None)
    if path is None:
        raise TripathError("explain: the two runs have no path with a time in common")
    return path.removesuffix(f"_{title}"), a.tables[path], b.tables[path]


def _cycles_by_phase(table: Mapping[str, Sequence[object]]) -> dict[str, float]:
    """Cycles of each phase; of an estimate those of what bounds it."""
    of = [name for name in table if name == "cycles"] or [name for name in table if name.endswith(" cycles")]
    columns = [[float(str(value)) for value in table[name]] for name in of]
    return dict(zip(map(str, table["phase"]), map(max, zip(*columns, strict=True)), strict=True))
