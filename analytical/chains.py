"""Loop nests of one unit: how long they occupy it, given that dependent instructions wait for each other's latency.

A nest of one instruction issues at its interval, unless it writes the same place again and again (a running sum, a
running maximum): then it recurs at its latency. Nests that follow each other overlap as far as the rows of one are ready
for the next.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analytical.facts import Costs, Touch

if TYPE_CHECKING:
    from analytical.tree import Loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Nest:
    """A nest of one unit: `occupied` cycles from its first issue until the unit is free, `first` until its first result,
    `tail` from the end of occupation to its last result; `instructions` retired; `front_end` cycles to issue them all."""

    occupied: float
    first: float
    tail: float
    instructions: float
    front_end: float
    touches: list[Touch]


def single_unit(node: "int | Loop", costs: Costs) -> int | None:
    """Queue of a nest without semaphores whose instructions all go to one queue and whose trip counts are constants."""
    if isinstance(node, int):
        free = not costs.waits[node] and not costs.signals[node]
        return costs.queue[node] if free and costs.queue[node] >= 0 else None
    if node.leaves_early or node.of_level >= 0 or node.base < 1:
        return None
    queues = {single_unit(inner, costs) for inner in node.body}
    return queues.pop() if len(queues) == 1 else None


def nest_of(node: "int | Loop", costs: Costs, *, interlocked: bool) -> Nest:
    """Closed form of a node for which `single_unit` holds; `interlocked` units wait for operands."""
    if isinstance(node, int):
        interval, latency = costs.interval[node], costs.latency[node]
        return Nest(occupied=interval, first=latency, tail=latency - interval, instructions=1,
                    front_end=costs.front_end[node], touches=costs.touches[node])  # fmt: skip
    parts = [nest_of(inner, costs, interlocked=interlocked) for inner in node.body]
    starts = _starts(parts, costs, interlocked=interlocked)
    body = sequence(parts, costs, interlocked=interlocked)
    period = issue = sum(part.occupied for part in parts)
    if interlocked:
        for i, writer in enumerate(parts):
            for j, reader in enumerate(parts[: i + 1]):
                wait = starts[i] + writer.first - starts[j] - issue
                if wait > 0:
                    period = max(period, issue + wait * _recurrence(writer, reader, node.level, costs))
    trips = node.base
    touches = [_swept(touch, node.level, trips) for part in parts for touch in part.touches]
    return Nest(
        occupied=(trips - 1) * period + body.occupied, first=body.first, tail=body.tail,
        instructions=trips * body.instructions, touches=touches,
        front_end=costs.front_end[node.head] + trips * (body.front_end + costs.front_end[node.next]),
    )  # fmt: skip


def sequence(parts: list[Nest], costs: Costs, *, interlocked: bool) -> Nest:
    """Nests one after the other in the same unit."""
    starts = _starts(parts, costs, interlocked=interlocked)
    ends = [start + part.occupied for start, part in zip(starts, parts, strict=True)]
    occupied = max(ends)
    return Nest(
        occupied=occupied, first=starts[0] + parts[0].first,
        tail=max(end + part.tail for end, part in zip(ends, parts, strict=True)) - occupied,
        instructions=sum(part.instructions for part in parts), front_end=sum(part.front_end for part in parts),
        touches=[touch for part in parts for touch in part.touches],
    )  # fmt: skip


def _starts(parts: list[Nest], costs: Costs, *, interlocked: bool) -> list[float]:
    """When each part starts: after the one before has issued, and when what it needs is ready at its own pace."""
    starts: list[float] = []
    for j, part in enumerate(parts):
        start = starts[j - 1] + parts[j - 1].occupied if j else 0.0
        if interlocked:
            for i, earlier in enumerate(parts[:j]):
                if _depends(earlier, part, costs):
                    last = starts[i] + earlier.occupied + earlier.tail - part.occupied
                    start = max(
                        start, starts[i] + earlier.first, min(last, starts[i] + earlier.occupied + earlier.tail)
                    )
        starts.append(start)
    return starts


def _overlap(a: Touch, b: Touch, costs: Costs) -> bool:
    granule = costs.granule[a.memory]
    return (
        a.memory == b.memory
        and a.first // granule <= (b.last - 1) // granule
        and b.first // granule <= (a.last - 1) // granule
    )


def _depends(earlier: Nest, later: Nest, costs: Costs) -> bool:
    return any(a.write and _overlap(a, b, costs) for a in earlier.touches for b in later.touches)


def _recurrence(writer: Nest, reader: Nest, level: int, costs: Costs) -> float:
    """Share of iterations of `level` in which `reader` touches the row (of VLEN lanes) that `writer` wrote in the one before:
    all where both stay in place, none where they move on by a row, and between the two where several places share a row."""
    share = 0.0
    for a in writer.touches:
        for b in reader.touches:
            if a.write and _overlap(a, b, costs):
                moved = max(abs(a.strides.get(level, 0)), abs(b.strides.get(level, 0)))
                share = max(share, 1 - moved / costs.granule[a.memory])
    return share


def _swept(touch: Touch, level: int, trips: int) -> Touch:
    """The addresses that a touch covers over all iterations of a loop."""
    reach = touch.strides.get(level, 0) * (trips - 1)
    return Touch(memory=touch.memory, write=touch.write, first=touch.first + min(0, reach),
                 last=touch.last + max(0, reach), strides=touch.strides)  # fmt: skip
