"""The overlap of the units: the program as a max-plus linear map, composed over the loop tree and raised to trip counts.

The order in which units must proceed is a dependence graph: program order within a unit, pairs of signal and wait between units.
Each program part maps the times at which its inputs are ready to those of its outputs. In the algebra of max and plus such a map
is a matrix, a sequence is a product and a loop a power. So a loop costs the logarithm of its trip count, and the steady state
(its cycle mean), fill and drain follow without running an iteration (Baccelli et al., Synchronization and Linearity, 1992).

Which maps are composed, and in which order, depends on program and trip counts alone. They are written down once, as a score of a
few kinds of lines; the costs of the units then enter in one pass over the score, in compiled code.
"""

from array import array
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numba import njit

from analytical.chains import Runs, Values, nests_of, number_of
from analytical.facts import DMA, queues
from analytical.tree import TripCounts, indexed_loops, retired_and_read
from npu.errors import ProgramError
from npu.hardware import QUEUED_UNITS, HardwareConfig
from npu.program import Program, fact_of_program, loop_tree
from npu.program.host import host_turns
from npu.program.looptree import Loop, loops_of
from npu.program.reads import counting
from npu.program.tables import tabulate

NEVER = -np.inf
UNITS = len(QUEUED_UNITS)
FRONT, FREE, DONE, PORT, LINES = 0, 1, 1 + UNITS, 1 + 2 * UNITS, 2 + 2 * UNITS
"""Places in the state: front end; per queue, from when the unit is free and until when its results are out; from when the
write-out port is free; from LINES on, for each queue when instructions that fill it started, and for those of descriptors when
the last ones were complete, the oldest first.
Behind them stand dependences, which are signalled and not yet awaited."""
SHALLOW = 8
"""The deepest queue whose places are followed one by one."""
MARKS = (4, 4, 1, 1)
"""Of each queue that is deeper so many places are followed, evenly apart: fewer of descriptors, of which few come together."""
IN_FLIGHT = 4
"""So many descriptors in flight are followed one by one. Where there may be more, only a nest of many waits for them."""

UNIT, CONTROL, ENTER, LEAVE, APPLY, HAND_OVER = range(6)
"""Kinds of lines of a score:

- UNIT: a node goes to a queue (node, queue, two dependences awaited, two signalled, how often it goes round);
- CONTROL: the front end takes its time for a node (node, 0, two dependences awaited);
- ENTER: what follows is one iteration of a loop, as a map of (number of) inputs;
- LEAVE: the map is complete: its power is kept (map, C_NEXT, trips, from, to: the dependences that it hands on, in `places`);
- APPLY: a map that is kept is applied (map, 0, 0, from, to: the dependences that it takes and hands on, in `places`);
- HAND_OVER: as CONTROL, but the front end takes its time from when it has what it awaits.
"""
NONE = -1
LANES = 16
"""Rows of states and maps are filled up to a multiple of as many numbers as a processor handles at a time."""

Score = namedtuple("Score", "lines places fixed inputs depth rows")
"""`lines` int64 [n, 8]; `places` int64, to which lines refer: those of dependences, before which `fixed` places always are;
`inputs` int64 [maps]; how `depth` iterations nest, and how many places a state has at most."""


@dataclass(kw_only=True)
class _State:
    """Places of the dependences that are not yet awaited, per semaphore in order, and how many places were given away."""

    rows: int
    pending: dict[int, list[int]] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Writer:
    """Writes the score of a program."""

    program: Program
    trips: TripCounts
    fixed: int
    """Places of a state before its dependences."""
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    places: "array[int]" = field(default_factory=lambda: array("q"))
    inputs: list[int] = field(default_factory=list)
    depth: int = 1
    rows: int = 0

    def __post_init__(self) -> None:
        tables = tabulate(self.program)
        semaphores, queue = np.hstack([tables.waits, tables.signals]), queues(self.program)
        self._linked = {
            number: semaphores[number].tolist() for number in np.flatnonzero(semaphores.any(axis=1)).tolist()
        }
        kind = np.where(queue >= 0, UNIT, CONTROL)
        kind[list(host_turns(self.program))] = HAND_OVER
        self._begins = np.stack([kind, np.arange(len(queue)), queue], axis=1).tolist()
        self._runs: Runs = nests_of(self.program)[1]
        self._indices = indexed_loops(self.program)
        self._shapes: dict[int, tuple[list[int], list[Loop], int]] = {}
        self._maps: dict[tuple, int] = {}
        loops = list(loop_tree(self.program).loops)
        varying = [loop for loop in loops if loop.leaves_early or not (loop.trips.constant or loop.trips.count >= 0)]
        self._counts = {loop.head: self.trips.of(loop).tolist() for loop in varying}
        self._typical = {
            loop.head: typical_numbers(self.trips, count, loop)
            for loop in loops
            for count in counts_in(self.program, loop)
        }
        self._read: dict[int, int] = {}

    def walk(self, nodes: Sequence["int | Loop"], state: _State, index: int, depth: int = 1) -> None:
        """Nodes one after the other, at an `index` of the innermost indexed loop around them."""
        position = 0
        while position < len(nodes):
            node = nodes[position]
            run, length, queue = self._runs.get(number_of(node), (NONE, 1, NONE))
            if run >= 0:
                times = self._trips(node, index) if isinstance(node, Loop) and not node.trips.constant else 1
                if times:
                    self.lines.extend((UNIT, run, queue, NONE, NONE, NONE, NONE, times))
                else:
                    self._instruction(number_of(node), state)
            elif isinstance(node, Loop):
                self._loop(node, state, index, depth)
            else:
                self._instruction(node, state)
            position += length
        self.rows = max(self.rows, state.rows)

    def _instruction(self, number: int, state: _State) -> None:
        self.lines.extend(self._begins[number])
        if number not in self._linked:
            self.lines.extend((NONE, NONE, NONE, NONE, 1))
            return
        semaphores = self._linked[number]
        self.lines.extend([_awaited(state, semaphore) if semaphore else NONE for semaphore in semaphores[:2]])
        for semaphore in semaphores[2:]:
            if semaphore and self._begins[number][0] == UNIT:
                state.pending.setdefault(semaphore, []).append(state.rows)
                self.lines.append(state.rows)
                state.rows += 1
            else:
                self.lines.append(NONE)
        self.lines.append(1)

    def _loop(self, loop: Loop, state: _State, index: int, depth: int) -> None:
        self._instruction(loop.head, state)
        if loop.head in self._indices:
            begin, size = index * loop.trips.base, self._indices[loop.head]
            own = range(begin, begin + (self._trips(loop, index) if loop.leaves_early else loop.trips.base))
            for _, same in groupby(own, key=lambda each: self._inside(loop, each, size)):
                first, *others = same
                self._power(loop, 1 + len(others), state, first, depth)
            if loop.exit is not None:
                self.walk(loop.body[: loop.exit + 1], state, own.stop, depth)
            return
        if loop.head in self._typical:
            (count,) = counts_in(self.program, loop)
            for number, same in groupby(self._typical[loop.head][index]):
                self._read[count] = number
                self._power(loop, len(list(same)), state, index, depth)
            del self._read[count]
            return
        self._power(loop, self._trips(loop, index), state, index, depth)
        if loop.exit is not None:  # what stands before the break runs once more
            self.walk(loop.body[: loop.exit + 1], state, index, depth)

    def _trips(self, loop: Loop, index: int) -> int:
        if loop.trips.count >= 0:
            return -(-self._read[loop.trips.count] // loop.trips.unit)
        return self._counts[loop.head][index] if loop.head in self._counts else loop.trips.base

    def _power(self, loop: Loop, trips: int, state: _State, index: int, depth: int) -> None:
        """Apply `trips` iterations of a loop to the state."""
        if trips < 1:
            return
        used, _, size = self._shape(loop)
        pending = [state.pending.get(semaphore, []) for semaphore in used]
        shape = tuple(map(len, pending))
        key = (loop.head, trips, self._inside(loop, index, size), shape)
        if key not in self._maps:  # the same for every index of the outer loop that gives the same trip counts
            self._maps[key] = self._iterate(loop, trips, index, dict(zip(used, shape, strict=True)), depth + 1)
        self.lines.extend((APPLY, self._maps[key], 0, 0, *self._listed(pending), 0, 0))

    def _iterate(self, loop: Loop, trips: int, index: int, lengths: dict[int, int], depth: int) -> int:
        """The map of one iteration, raised to `trips`; its outputs are the state and the dependences that it hands on."""
        self.depth = max(self.depth, depth)
        state = _State(rows=self.fixed)
        for semaphore, length in lengths.items():
            state.pending[semaphore] = list(range(state.rows, state.rows + length))
            state.rows += length
        inputs = state.rows
        self.lines.extend((ENTER, inputs, 0, 0, 0, 0, 0, 0))
        self.walk(loop.body, state, index, depth)
        if any(len(state.pending[semaphore]) != length for semaphore, length in lengths.items()):
            raise ProgramError(
                f"program: the loop at instruction {loop.head} does not leave its semaphores as it found them"
            )
        self.inputs.append(inputs)
        handed_on = self._listed([state.pending[semaphore] for semaphore in lengths])
        self.lines.extend((LEAVE, len(self.inputs) - 1, loop.next, trips, *handed_on, 0, 0))
        return len(self.inputs) - 1

    def _listed(self, pending: Sequence[Sequence[int]]) -> tuple[int, int]:
        begin = len(self.places)
        for places in pending:
            self.places.extend(places)
        return begin, len(self.places)

    def _inside(self, loop: Loop, index: int, size: int) -> tuple[tuple[object, ...], ...]:
        """Trip counts of the loops inside that vary, at an index of `size`: one for each index of indexed loops inside; of those
        that data decide about what was read, or what is read typically."""
        found: list[tuple[object, ...]] = []
        for inner in self._shape(loop)[1]:
            if inner.trips.count >= 0:
                found.append((self._read.get(inner.trips.count),))
                continue
            counts: Sequence[object] = self._typical.get(inner.head) or self._counts[inner.head]
            each = len(counts) // size
            found.append(tuple(counts[index * each : (index + 1) * each]))
        return tuple(found)

    def _shape(self, loop: Loop) -> tuple[list[int], list[Loop], int]:
        """The semaphores used in a loop, the loops inside whose trip counts vary, and how many indices the innermost indexed
        loop has that is this one or around it."""
        if loop.head not in self._shapes:
            inside = range(loop.head, loop.next)
            used = {semaphore for number in inside if number in self._linked for semaphore in self._linked[number]} - {
                0
            }
            varying = [
                inner for inner in loops_of(loop.body)
                if inner.leaves_early or inner.head in self._typical or not inner.trips.constant
            ]  # fmt: skip
            own = [loop, *reversed(loop_tree(self.program).around[loop.head])]
            size = next((self._indices[each.head] for each in own if each.head in self._indices), 1)
            self._shapes[loop.head] = sorted(used), varying, size
        return self._shapes[loop.head]


def counts_in(program: Program, loop: Loop) -> list[int]:
    """The C_COUNTs that stand directly in a loop."""
    return [node for node in loop.body if isinstance(node, int) and node in counting(program)]


def typical_numbers(trips: TripCounts, count: int, loop: Loop) -> list[tuple[int, ...]]:
    """The typical numbers that a C_COUNT reads in the iterations of its loop, for each index of the innermost indexed loop around
    it: the mean over all entries of the loop, each with its numbers in ascending order; as whole numbers, rounded by their
    running sums.

    Raises:
        ProgramError: the loop has no constant number of iterations.
    """
    if not loop.trips.constant or loop.leaves_early:
        raise ProgramError(f"program: the loop at instruction {loop.head} reads numbers and varies, not analysed")
    reads, found = retired_and_read(trips.program, trips)[1][count], []
    for numbers in np.split(trips.read(count), np.cumsum(reads)[:-1]):
        entries = np.sort(numbers.reshape(-1, loop.trips.base), axis=1)
        mean = entries.mean(axis=0) if len(entries) else np.zeros(loop.trips.base)
        found.append(tuple(np.diff(np.rint(np.cumsum(mean)), prepend=0).astype(int).tolist()))
    return found


def _awaited(state: _State, semaphore: int) -> int:
    pending = state.pending.get(semaphore)
    if not pending:
        raise ProgramError(f"program: semaphore {semaphore} is awaited before it is signalled")
    return pending.pop(0)


def lines_of(hardware: HardwareConfig) -> tuple[int, ...]:
    """Marks that are kept of each queue, one for each place of a shallow one; then descriptors that are, for each queue."""
    depths = [hardware.queue_depth[name] for name in QUEUED_UNITS]
    marks = [depth if depth <= SHALLOW else few for depth, few in zip(depths, MARKS, strict=True)]
    window = hardware.dma_outstanding if hardware.dma_outstanding <= IN_FLIGHT else 0
    return (*marks, *(window if number in DMA else 0 for number in range(UNITS)))


@fact_of_program
def score_of(program: Program, trips: TripCounts, lines: tuple[int, ...]) -> Score:
    """The score of a program under these trip counts; `lines`: see `lines_of`.

    Raises:
        ProgramError: a semaphore is awaited before it is signalled, or a loop does not leave it as it found it.
    """
    fixed = LINES + sum(lines)
    writer = _Writer(program=program, trips=trips, fixed=fixed)
    writer.walk(loop_tree(program).body, _State(rows=fixed), 0)
    return Score(
        lines=np.array(writer.lines).reshape(-1, 8), places=np.array(writer.places), fixed=fixed,
        inputs=np.array(writer.inputs, np.int64), depth=writer.depth, rows=writer.rows,
    )  # fmt: skip


def estimate_cycles(score: Score, values: Values, hardware: HardwareConfig) -> float:
    """Cycles from the start of the program to its last result."""
    dispatch = float(hardware.frontend.dispatch_cycles)
    return float(makespan(score, values, *_followed(hardware), hardware.frontend.issue_cycles + dispatch, dispatch))


def bound_cycles(score: Score, values: Values, hardware: HardwareConfig, host: np.ndarray) -> float:
    """The same with only what no schedule can avoid: peak bandwidth, intervals, latency of what is awaited, and the `host`
    cycles of each instruction.

    Front end and write-out port cost nothing else: what the port takes at least is a bound of its own.
    """
    nothing = np.zeros(len(values.ideal))
    front = np.concatenate([host, nothing[len(host) :]])
    least = values._replace(
        occupied=values.ideal, period=values.ideal, paced=nothing, tail=values.least, entry=nothing, front=front,
        count=nothing, flight=nothing, port_from=nothing + np.inf, port_until=nothing - np.inf,
    )  # fmt: skip
    return float(makespan(score, least, *_followed(hardware), 0.0, 0.0))


def _followed(hardware: HardwareConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depths of the queues, and what `lines_of` says of each."""
    lines = lines_of(hardware)
    depths = [hardware.queue_depth[name] for name in QUEUED_UNITS]
    return np.array(depths), np.array(lines[:UNITS]), np.array(lines[UNITS:])


@njit(cache=True)
def makespan(score, values, depth, marks, windows, dispatch, back):
    """Play a score; `dispatch` cycles lie at least between the front end and the start of what it hands over, `back` cycles
    between a place that becomes free in a queue and the front end. `marks` are kept of each queue: when every so many-th of the
    instructions that fill it started; `windows` of the descriptors in flight: when the last so many were complete."""
    occupied, tail, front, count = values.occupied, values.tail, values.front, values.count
    port_from, port_until, least, paced = values.port_from, values.port_until, values.least, values.paced
    widest = score.inputs.max() if len(score.inputs) else 1
    states = np.empty((score.depth, score.rows, widest + LANES))
    maps = [np.empty((0, 0)) for _ in range(0)]
    widths = np.full(score.depth, LANES)
    begin = LINES + np.cumsum(np.concatenate((np.zeros(1, np.int64), marks, windows)))
    states[0, : begin[-1]] = 0.0
    grain = depth / marks
    behind = np.zeros((score.depth, len(depth)))  # instructions since the last mark
    # Of each queue when the last instruction of an iteration started that waits for another unit, and how many came behind it.
    waited, since = np.empty((score.depth, len(depth), widest + LANES)), np.full((score.depth, len(depth)), np.inf)
    at = 0
    for number in range(len(score.lines)):
        line, state, width = score.lines[number], states[at], widths[at]
        kind, node, second, third, fourth, fifth, sixth = line[0], line[1], line[2], line[3], line[4], line[5], line[6]
        if kind == UNIT:
            free, done = FREE + second, DONE + second
            rounds = line[7]
            more = (rounds - 1) * values.period[node]
            length, share, issuing = occupied[node] + more, 0.0, values.entry[node] + rounds * front[node]
            oldest, places, entered = begin[second], marks[second], rounds * count[node]
            if entered > depth[second]:  # the front end is at most a queue's depth ahead of the unit
                share = 1.0 - depth[second] / entered
            taken = length * share if rounds > 1 else values.taken[node]
            passed = int((behind[at, second] + entered) / grain[second])
            offset, known = behind[at, second] + 1, min(passed, places)
            behind[at, second] += entered - passed * grain[second]
            last = length / entered if entered else 0.0
            stood, left = waited[at, second], depth[second] - since[at, second]
            full = 0 < left <= entered  # among these is the one that needs the place of that which waited
            since[at, second] = 0 if third >= 0 or fourth >= 0 else since[at, second] + entered
            returned, window = begin[len(depth) + second], windows[second] if values.flight[node] > 0 else 0
            for i in range(width):
                if known and (grain[second] == 1 or entered == 1):
                    # The first instruction needs the place of the one that came so many before it.
                    state[FRONT, i] = max(state[FRONT, i], state[oldest, i] + back)
                there = state[FRONT, i] + dispatch
                start = max(state[free, i], there)
                if third >= 0:
                    start = max(start, state[third, i])
                if fourth >= 0:
                    start = max(start, state[fourth, i])
                if window:
                    start = max(start, state[returned, i])
                start = max(start, state[PORT, i] - port_from[node])
                state[PORT, i] = max(state[PORT, i], start + port_until[node] + more)
                state[FRONT, i] += issuing
                if share > 0:  # it goes on with the rest once the first has started
                    state[FRONT, i] = max(state[FRONT, i], start + max(taken, issuing * share) + back)
                elif known:
                    state[FRONT, i] = max(state[FRONT, i], state[oldest + known - 1, i] + back)
                if full:
                    state[FRONT, i] = max(state[FRONT, i], stood[i] + back + issuing * (1 - left / entered))
                if third >= 0 or fourth >= 0:
                    stood[i] = start
                # The last instruction starts when it is there, where the front end is slower than the unit.
                over = max(start + length, there + paced[node] + more, state[FRONT, i] + back + last)
                state[free, i] = over
                state[done, i] = max(state[done, i], start + (length + tail[node]), over + least[node])
                for j in range(places - known):
                    state[oldest + j, i] = state[oldest + known + j, i]
                for j in range(known):
                    index = (passed - known + j + 1) * grain[second] - offset
                    state[oldest + places - known + j, i] = start + length * index / entered
                passing = min(window, int(entered))
                for j in range(window - passing):
                    state[returned + j, i] = state[returned + passing + j, i]
                for j in range(passing):
                    state[returned + window - passing + j, i] = start + length - (passing - 1 - j) * last + tail[node]
                if fifth >= 0:
                    state[fifth, i] = state[done, i]
                if sixth >= 0:
                    state[sixth, i] = state[done, i]
        elif kind == CONTROL:
            for i in range(width):
                state[FRONT, i] += front[node]
                if third >= 0:
                    state[FRONT, i] = max(state[FRONT, i], state[third, i])
                if fourth >= 0:
                    state[FRONT, i] = max(state[FRONT, i], state[fourth, i])
        elif kind == HAND_OVER:
            for i in range(width):
                if third >= 0:
                    state[FRONT, i] = max(state[FRONT, i], state[third, i])
                if fourth >= 0:
                    state[FRONT, i] = max(state[FRONT, i], state[fourth, i])
                state[FRONT, i] += front[node]
        elif kind == ENTER:
            at += 1
            widths[at] = -(-node // LANES) * LANES
            states[at, :node, : widths[at]] = NEVER
            since[at] = np.inf
            behind[at] = (grain - 1) / 2  # an iteration passes the nearest whole number of marks
            for i in range(node):
                states[at, i, i] = 0.0
        elif kind == LEAVE:
            for i in range(width):
                state[FRONT, i] += front[second]
            maps.append(power(_gathered(score, node, state, fourth, width), third))
            at -= 1
        else:
            since[at] = np.inf
            outputs = product(maps[node], _gathered(score, node, state, fourth, width))
            state[: score.fixed, :width] = outputs[: score.fixed]
            for i in range(score.fixed, len(outputs)):
                state[score.places[fourth + i - score.fixed], :width] = outputs[i]
    return states[0, :LINES, 0].max()


@njit(cache=True)
def _gathered(score, node, state, begin, width):
    """The rows of a state that are a map's inputs or outputs, [inputs, width]: the fixed places, then the dependences listed from
    `begin` on."""
    size = score.inputs[node]
    taken = np.empty((size, width))
    taken[: score.fixed] = state[: score.fixed, :width]
    for i in range(score.fixed, size):
        taken[i] = state[score.places[begin + i - score.fixed], :width]
    return taken


@njit(cache=True)
def product(a, b):
    """Max-plus product: result[i, j] = max over k of a[i, k] + b[k, j]; the columns of `b` are a multiple of LANES."""
    result = np.full((len(a), b.shape[1]), NEVER)
    for i in range(len(a)):
        for k in range(len(b)):
            if a[i, k] != NEVER:
                for first in range(0, b.shape[1], LANES):
                    for lane in range(LANES):  # a constant, so that it becomes few vector instructions
                        result[i, first + lane] = max(result[i, first + lane], a[i, k] + b[k, first + lane])
    return result


@njit(cache=True)
def power(matrix, exponent):
    """Max-plus power by repeated squaring; exponent >= 1; columns as in `product`."""
    result, started = matrix, False
    while True:
        if exponent & 1:
            result = product(matrix, result) if started else matrix
            started = True
        exponent >>= 1
        if not exponent:
            return result
        matrix = product(matrix, matrix)
