"""Loop nests of one unit: how long they occupy it, given that dependent instructions wait for each other's latency.

A nest of one instruction issues at its interval, unless it writes the same place again and again (a running sum, a
running maximum): then it recurs at its latency. Nests that follow each other overlap as far as the rows of one are ready
for the next.

Which nests there are is a fact of the program; what they take follows from the costs of the instructions, from the inside
out, in compiled code.
"""

from collections import namedtuple
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numba import njit

from analytical.facts import DMA, Costs, queues
from npu.hardware import QUEUED_UNITS, HardwareConfig
from npu.isa import Memory
from npu.isa.spec import LOOP_LEVELS
from npu.program import Program, fact_of_program, loop_tree
from npu.program.looptree import Loop
from npu.program.tables import Access, address_registers, tabulate

INTERLOCKED = QUEUED_UNITS.index("vector")
"""The queue whose unit makes an instruction wait for its operands."""

COMPUTE = tuple(QUEUED_UNITS.index(name) for name in ("matrix", "vector"))
"""Queues whose places are given back as instructions start."""

VARYING = 0
"""Trip count of a nest that has another one at each entry."""
MOST_PLACES = 64
"""Iterations that are tried: enough for strides that are multiples of 32 in rows of 2,048 lanes."""

SETTLED = 3
MOST_ROUNDS = 8
"""Iterations of a nest beyond those that fill its queue until it repeats; and at most as many are followed. In deeper queues the
front end is so far ahead that what it loses in a part of an iteration does not show."""

Nests = namedtuple("Nests", "nests parts low high memory write first last strides")
"""`nests` int64 [m, 8]: node, its parts (from, to, in `parts`), loop level, trip count, `head` and `next` (-1 of a
run), queue; a nest stands behind those that are parts of it. A node is an instruction or a loop by
its number, or a run: nodes of one unit that follow each other, behind the instructions. `low`, `high` int64 [nodes]: the
touches of a node, which are accesses to on-chip memories: `memory`, `write`, addresses `first` to `last` (exclusive), and the
stride of each loop level."""

Values = namedtuple(
    "Values", "occupied period paced ideal tail least first entry front count taken flight port_from port_until"
)
"""float64 [nodes]: `occupied` cycles from the first issue until the unit is free, `paced` from when the first is there, where the
front end begins with the node; `ideal` with memory at its peak and nothing to wait for; `tail` from then to the last result, of
which `least` is the last instruction's own; `first` until the first result; `front` end cycles to issue all, once `entry` is
over; `count` of instructions; `taken` from the first issue until that of the instruction whose place in the queue the last one
takes; `flight`: for how long its descriptors are in flight, added up; `port_from`, `port_until`: when it first takes the
write-out port and when it last gives it back, inf and -inf of what never has it. A loop whose trip count varies has the values of
one iteration, and `period` cycles to the next."""


Runs = dict[int, tuple[int, int, int]]
"""By the number of the first node of a run: the run, how many nodes it has, and its queue."""


@fact_of_program
def nests_of(program: Program) -> tuple[Nests, Runs]:
    """The nests of a program, and the runs among them."""
    tables, queue = tabulate(program), queues(program)
    plain = ~np.hstack([tables.waits, tables.signals]).any(axis=1)
    units = np.where(plain, queue, -1).tolist()
    _unite(loop_tree(program).body, units)
    rows: list[list[int]] = []
    parts: list[int] = []
    runs: Runs = {}
    varying = _varying(loop_tree(program).body, units)

    def add(node: int, body: Sequence[int | Loop], place: Sequence[int], unit: int) -> None:
        """A nest, behind those that it consists of; `place` is level, trips, head, next."""
        for inner in body:
            if isinstance(inner, Loop):
                add(inner.head, inner.body, (inner.level, inner.trips.base, inner.head, inner.next), unit)
        first = len(parts)
        parts.extend(map(number_of, body))
        rows.append([node, first, len(parts), *place, unit])

    def walk(nodes: Sequence[int | Loop]) -> None:
        of_unit = [units[number_of(node)] for node in nodes]
        for place, unit in enumerate(of_unit):
            node = nodes[place]
            if isinstance(node, Loop) and node.head in varying:
                number = len(queue) + len(runs)
                add(number, node.body, (node.level, VARYING, node.head, node.next), varying[node.head])
                runs[node.head] = number, 1, varying[node.head]
            elif unit < 0 and isinstance(node, Loop):
                walk(node.body)
            elif unit >= 0 and (place == 0 or of_unit[place - 1] != unit):
                run = list(takewhile(lambda pair: pair[1] == unit, zip(nodes[place:], of_unit[place:], strict=True)))  # noqa: B023
                number = len(queue) + len(runs)
                add(number, [node for node, _ in run], (-1, 1, -1, -1), unit)
                runs[number_of(node)] = number, len(run), unit

    walk(loop_tree(program).body)
    return _with_touches(program, np.array(rows, np.int64).reshape(-1, 8), np.array(parts, np.int64), len(runs)), runs


def _varying(nodes: "Sequence[int | Loop]", units: Sequence[int]) -> dict[int, int]:
    """The queue of each loop, by the number of its C_LOOP, that is a nest of one unit but for a trip count that follows an outer
    loop; `units` as `_unite` leaves them."""
    found: dict[int, int] = {}
    for loop in nodes:
        if not isinstance(loop, Loop):
            continue
        inside = {units[number_of(inner)] for inner in loop.body}
        if (
            not loop.trips.constant
            and loop.trips.count < 0
            and not loop.leaves_early
            and len(inside) == 1
            and min(inside) >= 0
        ):
            found[loop.head] = inside.pop()
        else:
            found |= _varying(loop.body, units)
    return found


def number_of(node: "int | Loop") -> int:
    """The number of an instruction, or of a loop's head."""
    return node if isinstance(node, int) else node.head


def _unite(nodes: "Sequence[int | Loop]", units: list[int]) -> None:
    """Set the queue of each loop, at the number of its C_LOOP, where all its instructions go to one, without semaphores and a
    constant number of times; else -1. `units` has the queues of instructions."""
    for loop in nodes:
        if isinstance(loop, Loop):
            _unite(loop.body, units)
            found = {units[number_of(inner)] for inner in loop.body}
            fixed = not loop.leaves_early and loop.trips.constant and loop.trips.base >= 1
            units[loop.head] = found.pop() if fixed and len(found) == 1 else -1


def _with_touches(program: Program, rows: np.ndarray, parts: np.ndarray, runs: int) -> Nests:
    accesses, registers = tabulate(program).accesses, address_registers(program)
    base, pitch = np.zeros((2, 1 + max(registers, default=0)), np.int64)
    strides = np.zeros((len(base), LOOP_LEVELS), np.int64)
    for number, register in registers.items():
        base[number], pitch[number] = register.base, register.row_stride
        for level, stride in register.strides.items():
            strides[number, level] = stride
    on_chip = accesses[:, :, Access.MEMORY] > Memory.MATRIX
    touched = accesses[on_chip]
    name, first = touched[:, Access.REGISTER], base[touched[:, Access.REGISTER]]
    bounds = np.concatenate([[0], np.cumsum(on_chip.sum(axis=1)), np.zeros(runs, np.int64)])
    low, high = bounds[:-1], bounds[1:].copy()
    for _, _, _, _, _, head, after, _ in rows[rows[:, 5] >= 0].tolist():
        high[head] = bounds[after]
    return Nests(
        nests=rows, parts=parts, low=low, high=high, memory=touched[:, Access.MEMORY].copy(),
        write=touched[:, Access.WRITE] > 0, first=first, strides=strides[name],
        last=first + touched[:, Access.SIZE] + (touched[:, Access.ROWS] - 1) * np.abs(pitch[name]),
    )  # fmt: skip


def values_of(program: Program, costs: Costs, hardware: HardwareConfig) -> Values:
    """The `Values` of every node on a machine."""
    nests, runs = nests_of(program)
    latent = costs.latency - costs.interval
    flight = np.where(costs.ideal > 0, costs.latency, 0.0) * np.isin(queues(program), DMA)
    port = np.where(costs.port > 0, 0.0, np.inf), np.where(costs.port > 0, costs.port, -np.inf)
    columns = (
        costs.interval, np.zeros(len(latent)), costs.interval, costs.ideal, latent, latent, costs.latency, np.zeros(len(latent)),
        costs.front_end, np.ones(len(latent)), np.zeros(len(latent)), flight, *port,
    )  # fmt: skip
    values = Values(*(np.concatenate([column, np.zeros(len(runs))]) for column in columns))
    granule = np.ones(len(Memory), np.int64)
    granule[Memory.VECTOR] = hardware.vlen
    depth = np.array([hardware.queue_depth[name] for name in QUEUED_UNITS], float)
    frontend = hardware.frontend
    issue, dispatch = float(frontend.issue_cycles), float(frontend.dispatch_cycles)
    window = float(hardware.dma_outstanding)
    _fill_in(nests, nests.first.copy(), nests.last.copy(), granule, values, depth, window, issue, dispatch)
    return values


@njit(cache=True)
def _fill_in(nests, first, last, granule, values, depth, window, issue_cycles, dispatch):
    """Set the values of loops and runs, given those of instructions; `first`, `last` grow to what the loops sweep. An instruction
    starts at least a round trip behind the one that is the `depth` of its queue before it: the place becomes known, is taken.
    Of descriptors, `window` are in flight at most."""
    trip = issue_cycles + 2 * dispatch
    starts = np.empty(len(nests.parts))
    for row in range(len(nests.nests)):
        nest = nests.nests[row]
        node, parts, level, trips, head, after, unit = (
            nest[0], nests.parts[nest[1] : nest[2]], nest[3], nest[4], nest[5], nest[6], nest[7]
        )  # fmt: skip
        interlocked, places = unit == INTERLOCKED, depth[unit]
        varies, trips = trips == VARYING, max(trips, 1)
        queued = trip > places  # else a place is free again before the unit asks for more
        issue, ideal, count, front, done, occupied, flight = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        port_from, port_until = np.inf, -np.inf
        for j in range(len(parts)):
            part = parts[j]
            # A part starts when the one before has issued, and when what it needs is ready at its own pace.
            start = starts[j - 1] + values.occupied[parts[j - 1]] if j else 0.0
            if interlocked:
                for i in range(j):
                    earlier = parts[i]
                    if share_of_meetings(nests, first, last, granule, earlier, part, -1, 1) > 0:
                        over = starts[i] + values.occupied[earlier] + values.tail[earlier]
                        start = max(start, starts[i] + values.first[earlier], min(over - values.occupied[part], over))
                        if values.count[earlier] > 1 and _in_one_row(nests, first, last, granule, earlier, part):
                            start = max(start, over)
            start = max(start, port_until - values.port_from[part])
            if queued:
                start = max(start, _place_taken(values, starts, parts[:j], places)[0] + trip)
            port_from = min(port_from, start + values.port_from[part])
            port_until = max(port_until, start + values.port_until[part])
            starts[j] = start
            occupied = max(occupied, start + values.occupied[part])
            done = max(done, start + values.occupied[part] + values.tail[part])
            issue += values.occupied[part]
            ideal += values.ideal[part]
            count += values.count[part]
            flight += values.flight[part]
            front += values.front[part]
        if count > window:  # those beyond the window wait for those before
            done = max(done, flight * (count - window) / count / window + done - occupied)
            occupied = max(occupied, flight * (count - window) / count / window)
        period = max(issue, port_until - port_from, flight / window)
        if interlocked and (varies or trips > 1):
            for i in range(len(parts)):
                for j in range(i + 1):
                    wait = starts[i] + values.first[parts[i]] - starts[j] - issue
                    if wait > 0:
                        share = share_of_meetings(
                            nests, first, last, granule, parts[i], parts[j], level, MOST_PLACES if varies else trips
                        )
                        period = max(period, issue + wait * share)
        if queued and (varies or trips > 1) and count:
            for j in range(len(parts)):
                taken, ahead = _place_taken(values, starts, parts[:j], places)
                if ahead > 0:  # by an iteration before this one
                    rounds = (ahead - 1) // count
                    taken, _ = _place_taken(values, starts, parts, ahead - rounds * count)
                    period = max(period, (taken + trip - starts[j]) / (rounds + 1))
        values.occupied[node] = values.paced[node] = (trips - 1) * period + occupied
        if trips * count > places:
            rounds = -(-places // count)
            taken, _ = _place_taken(values, starts, parts, places - (rounds - 1) * count)
            values.taken[node] = (trips - rounds) * period + taken
        entry, exits = (values.front[head], values.front[after]) if head >= 0 else (0.0, 0.0)
        if varies:
            values.period[node], values.entry[node], values.front[node] = period, entry, front + exits
        else:
            values.front[node] = entry + trips * (front + exits)
        rounds = int(-(-places // max(count, 1))) + SETTLED
        if unit in COMPUTE and trips * count > places and rounds <= MOST_ROUNDS:
            apart = np.full((len(parts), len(parts)), -np.inf)
            for j in range(len(parts)):
                for i in range(j):
                    before, part = parts[i], parts[j]
                    apart[j, i] = values.port_until[before] - values.port_from[part]
                    if i == j - 1:
                        apart[j, i] = max(apart[j, i], values.occupied[before])
                    if interlocked and share_of_meetings(nests, first, last, granule, before, part, -1, 1) > 0:
                        over = values.occupied[before] + values.tail[before]
                        apart[j, i] = max(apart[j, i], values.first[before], min(over - values.occupied[part], over))
                        if values.count[before] > 1 and _in_one_row(nests, first, last, granule, before, part):
                            apart[j, i] = max(apart[j, i], over)
            values.paced[node], values.front[node] = _paced(
                values, parts, apart, period, trips, min(rounds, trips), entry, exits, places, issue_cycles, dispatch
            )
        values.port_from[node] = port_from
        values.port_until[node] = (trips - 1) * period + port_until
        values.ideal[node] = trips * ideal
        values.tail[node] = done - occupied
        values.least[node] = values.least[parts[-1]]
        values.first[node] = starts[0] + values.first[parts[0]]
        values.count[node] = trips * count
        values.flight[node] = trips * flight
        if head >= 0:
            for touch in range(nests.low[node], nests.high[node]):
                reach = nests.strides[touch, level] * (trips - 1)
                first[touch] += min(0, reach)
                last[touch] += max(0, reach)


@njit(cache=True)
def _paced(values, parts, apart, period, trips, rounds, entry, exits, places, issue, dispatch):
    """`paced` and `front` of a nest: `rounds` of its iterations with a front end that begins with it, the rest as the last."""
    size = rounds * len(parts)
    starts, lasts, numbers = np.zeros(size), np.zeros(size), np.zeros(size + 1)
    front, free, old = entry, 0.0, 0
    first_of_round, front_of_round = np.zeros(rounds), np.zeros(rounds)
    for at in range(size):
        turn, j = at // len(parts), at % len(parts)
        part = parts[j]
        count = values.count[part]
        numbers[at + 1] = numbers[at] + count
        if j == 0:
            front_of_round[turn] = front
        while numbers[old + 1] <= numbers[at] - places:
            old += 1
        if numbers[at] >= places:  # the place of the first instruction
            share = (numbers[at] - places - numbers[old]) / values.count[parts[old % len(parts)]]
            front = max(front, starts[old] + (lasts[old] - starts[old]) * share + dispatch)
        start = there = front + issue + dispatch
        for i in range(j):
            start = max(start, starts[at - j + i] + apart[j, i])
        if turn and j == 0:
            start = max(start, free, first_of_round[turn - 1] + period)
        if j == 0:
            first_of_round[turn] = start
        starts[at] = start
        front += values.front[part]
        each = values.occupied[part] / count if count else 0.0
        lasts[at] = max(start + values.occupied[part], there + values.paced[part], front + dispatch + each)
        free = max(free, lasts[at])
        if count > places:
            front = max(front, starts[at] + (lasts[at] - starts[at]) * (count - 1 - places) / count + dispatch + issue)
        if j == len(parts) - 1:
            front += exits
    left, paced = trips - rounds, free - entry - issue - dispatch
    if left > 0:
        paced += left * (first_of_round[-1] - first_of_round[-2])
        front += left * (front_of_round[-1] - front_of_round[-2])
    return paced, front


@njit(cache=True)
def _place_taken(values, starts, parts, places):
    """When the instruction started that is `places` before the end of these parts, and 0; else -inf, and by how many it stands
    before them."""
    for i in range(len(parts) - 1, -1, -1):
        count = values.count[parts[i]]
        if count >= places:
            return starts[i] + values.occupied[parts[i]] * (count - places) / count, 0.0
        places -= count
    return -np.inf, places


@njit(cache=True)
def _in_one_row(nests, first, last, granule, writer, reader):
    """True if `reader` touches a row that all iterations of `writer` write (a sum, a maximum), so it needs the last one."""
    for a in range(nests.low[writer], nests.high[writer]):
        row = granule[nests.memory[a]]
        if nests.write[a] and first[a] // row == (last[a] - 1) // row:
            for b in range(nests.low[reader], nests.high[reader]):
                if nests.memory[a] == nests.memory[b] and first[b] // row <= first[a] // row <= (last[b] - 1) // row:
                    return True
    return False


@njit(cache=True)
def share_of_meetings(nests, first, last, granule, writer, reader, level, trips):
    """Share of the iterations of `level` in which `reader` touches a row (of VLEN lanes) that `writer` wrote in the one before,
    read off the first iterations, after which places in a row come again. With level -1, of one iteration: 1 where they touch a
    row in common, else 0."""
    share = 0.0
    for a in range(nests.low[writer], nests.high[writer]):
        if not nests.write[a]:
            continue
        row = granule[nests.memory[a]]
        for b in range(nests.low[reader], nests.high[reader]):
            if nests.memory[a] != nests.memory[b]:
                continue
            of_writer, of_reader = (nests.strides[a, level], nests.strides[b, level]) if level >= 0 else (0, 0)
            different = of_writer % row or of_reader % row or of_writer != of_reader
            rounds = max(1, min(trips - 1, MOST_PLACES if different else 1))
            met = 0
            for i in range(rounds):
                written, read = i * of_writer, (i + 1) * of_reader
                if (first[a] + written) // row <= (last[b] - 1 + read) // row and (first[b] + read) // row <= (
                    last[a] - 1 + written
                ) // row:
                    met += 1
            share = max(share, met / rounds)
    return share
