"""How the units overlap: the program as a max-plus linear map, composed over the loop tree and raised to trip counts.

The order in which units must proceed is a dependence graph: within a unit by program order, between units by the pairs of
signal and wait. Each program part maps the times at which its inputs are ready to those of its outputs; in the algebra
of max and plus such a map is a matrix, a sequence is a product and a loop a power. So a loop costs the logarithm of its
trip count, and the steady state (its cycle mean), fill and drain follow without running an iteration
(Baccelli et al., Synchronization and Linearity, 1992).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from analytical.chains import Nest, nest_of, sequence, single_unit
from analytical.facts import FRONT_END, Costs
from analytical.tree import Loop, TripCounts, loops_of
from tripath.errors import ProgramError

NEVER = -np.inf
FRONT, FREE, DONE = 0, 1, 5
"""Places in the state: front end; per queue, from when the unit is free and until when its results are out."""
UNITS = 4
VECTOR_QUEUE = 1


@dataclass(kw_only=True)
class State:
    """Rows of a max-plus map: each value is a linear form over the inputs. Dependences not yet awaited are kept per
    semaphore in order."""

    rows: list[np.ndarray]
    pending: dict[int, list[np.ndarray]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Overlap:
    """Evaluates a loop tree. `bound`: only what no schedule can avoid (peak bandwidth, intervals, the latency of what is
    awaited, no front end); else the estimate."""

    costs: Costs
    trips: TripCounts
    outer: Loop | None
    bound: bool
    _powers: dict[tuple, np.ndarray] = field(default_factory=dict)
    _runs: dict[tuple, Nest] = field(default_factory=dict)
    _units: dict[int, int | None] = field(default_factory=dict)
    _shapes: dict[int, tuple[list[int], list[Loop]]] = field(default_factory=dict)

    def makespan(self, root: Sequence["int | Loop"]) -> float:
        """Cycles from the start of the program to its last result."""
        start = np.zeros(1)
        state = State(rows=[start.copy() for _ in range(1 + 2 * UNITS)])
        self._walk(list(root), state, 0)
        return float(max(row[0] for row in state.rows))

    def _walk(self, nodes: list["int | Loop"], state: State, index: int) -> None:
        position = 0
        while position < len(nodes):
            queue = self._unit(nodes[position])
            if queue is None or queue < 0:
                self._mixed(nodes[position], state, index)
                position += 1
                continue
            stop = position + 1
            while stop < len(nodes) and self._unit(nodes[stop]) == queue:
                stop += 1
            self._nests(nodes[position:stop], queue, state)
            position = stop

    def _unit(self, node: "int | Loop") -> int | None:
        """`single_unit`, once for each loop."""
        if isinstance(node, int):
            return single_unit(node, self.costs)
        if node.head not in self._units:
            self._units[node.head] = single_unit(node, self.costs)
        return self._units[node.head]

    def _nests(self, nodes: list["int | Loop"], queue: int, state: State) -> None:
        """A run of nests of one unit."""
        if self.bound:
            occupied = sum(self._ideal(node) for node in nodes)
            self._apply(state, queue, occupied=occupied, tail=self._least_tail(nodes[-1]), front_end=0.0, count=0.0)
            return
        key = tuple(node if isinstance(node, int) else node.head for node in nodes)
        if key not in self._runs:
            lock = queue == VECTOR_QUEUE
            parts = [nest_of(node, self.costs, interlocked=lock) for node in nodes]
            self._runs[key] = sequence(parts, self.costs, interlocked=lock)
        nest = self._runs[key]
        self._apply(
            state, queue, occupied=nest.occupied, tail=nest.tail, front_end=nest.front_end, count=nest.instructions
        )

    def _ideal(self, node: "int | Loop") -> float:
        if isinstance(node, int):
            return self.costs.ideal[node]
        return node.base * sum(self._ideal(inner) for inner in node.body)

    def _least_tail(self, node: "int | Loop") -> float:
        """Latency of the last instruction beyond its interval."""
        while isinstance(node, Loop):
            node = node.body[-1]
        return self.costs.latency[node] - self.costs.interval[node]

    def _apply(
        self, state: State, queue: int, *, occupied: float, tail: float, front_end: float, count: float,
        waits: tuple[int, ...] = (), signals: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        rows = state.rows
        start = np.maximum(rows[FREE + queue], rows[FRONT] + (0.0 if self.bound else 1.0))
        for semaphore in waits:
            start = np.maximum(start, self._awaited(state, semaphore))
        rows[FREE + queue] = start + occupied
        rows[DONE + queue] = np.maximum(rows[DONE + queue], start + (occupied + tail))
        rows[FRONT] = rows[FRONT] + front_end
        depth = self.costs.depth[queue]
        if count > depth:  # the front end is at most a queue's depth ahead of the unit
            rows[FRONT] = np.maximum(rows[FRONT], start + occupied * (1.0 - depth / count))
        for semaphore in signals:
            state.pending.setdefault(semaphore, []).append(rows[DONE + queue].copy())

    @staticmethod
    def _awaited(state: State, semaphore: int) -> np.ndarray:
        pending = state.pending.get(semaphore)
        if not pending:
            raise ProgramError(f"program: semaphore {semaphore} is awaited before it is signalled")
        return pending.pop(0)

    def _mixed(self, node: "int | Loop", state: State, index: int) -> None:
        costs = self.costs
        if isinstance(node, int):
            if costs.queue[node] == FRONT_END:
                if not self.bound:
                    state.rows[FRONT] = state.rows[FRONT] + costs.front_end[node]
                for semaphore in costs.waits[node]:
                    state.rows[FRONT] = np.maximum(state.rows[FRONT], self._awaited(state, semaphore))
                return
            interval = costs.ideal[node] if self.bound else costs.interval[node]
            self._apply(
                state, costs.queue[node], occupied=interval, tail=costs.latency[node] - costs.interval[node],
                front_end=0.0 if self.bound else costs.front_end[node], count=1.0, waits=costs.waits[node],
                signals=costs.signals[node],
            )  # fmt: skip
            return
        if not self.bound:
            state.rows[FRONT] = state.rows[FRONT] + costs.front_end[node.head]
        if node is self.outer:
            counts = [self.trips.of(inner) for inner in self._shape(node)[1]]
            for _, same in groupby(range(node.base), key=lambda i: [int(count[i]) for count in counts]):
                first, *others = same
                self._power(node, node.body, 1 + len(others), state, first)
            return
        trips = int(self.trips.of(node)[index])
        if node.exit is None:
            self._power(node, node.body, trips, state, index)
        else:
            before, after = node.body[: node.exit + 1], node.body[node.exit + 1 :]
            self._power(node, [*before, *after], trips, state, index)
            self._walk(before, state, index)

    def _power(self, loop: Loop, body: list["int | Loop"], trips: int, state: State, index: int) -> None:
        """Apply `trips` iterations of a body to the state."""
        if trips < 1:
            return
        used, varying = self._shape(loop)
        slots = [(semaphore, i) for semaphore in used for i in range(len(state.pending.get(semaphore, [])))]
        key = (loop.head, trips, *(int(self.trips.of(inner)[index]) for inner in varying), *slots)
        if key not in self._powers:  # the same for every index of the outer loop that gives the same trip counts
            lengths = {semaphore: len(state.pending.get(semaphore, [])) for semaphore in used}
            self._powers[key] = power(self._iteration(loop, body, index, lengths, slots), trips)
        inputs = np.array([*state.rows, *(state.pending[semaphore][i] for semaphore, i in slots)])
        outputs = product(self._powers[key], inputs)
        state.rows = list(outputs[: len(state.rows)])
        for row, (semaphore, i) in enumerate(slots, len(state.rows)):
            state.pending[semaphore][i] = outputs[row]

    def _shape(self, loop: Loop) -> tuple[list[int], list[Loop]]:
        """The semaphores used in a loop, and the loops inside whose trip counts vary with the outer loop."""
        if loop.head not in self._shapes:
            varying = [inner for inner in loops_of(loop.body) if inner.leaves_early or inner.of_level >= 0]
            self._shapes[loop.head] = sorted(_semaphores(loop.body, self.costs)), varying
        return self._shapes[loop.head]

    def _iteration(
        self, loop: Loop, body: list["int | Loop"], index: int, lengths: dict[int, int], slots: list[tuple[int, int]]
    ) -> np.ndarray:
        """The map of one iteration: rows are the state after it and the dependences that it hands on."""
        places = 1 + 2 * UNITS
        size = places + len(slots)
        unit = np.where(np.eye(size, dtype=bool), 0.0, NEVER)
        inner = State(rows=list(unit[:places]))
        for row, (semaphore, _) in enumerate(slots, places):
            inner.pending.setdefault(semaphore, []).append(unit[row])
        self._walk(body, inner, index)
        if not self.bound:
            inner.rows[FRONT] = inner.rows[FRONT] + self.costs.front_end[loop.next]
        if any(len(inner.pending.get(semaphore, [])) != length for semaphore, length in lengths.items()):
            raise ProgramError(
                f"program: the loop at instruction {loop.head} does not leave its semaphores as it found them"
            )
        return np.array([*inner.rows, *(inner.pending[semaphore][i] for semaphore, i in slots)])


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Max-plus product: result[i, j] = max over k of a[i, k] + b[k, j]."""
    return (a[:, :, None] + b[None, :, :]).max(axis=1)


def power(matrix: np.ndarray, exponent: int) -> np.ndarray:
    """Max-plus power by repeated squaring; exponent >= 1."""
    result: np.ndarray | None = None
    while exponent:
        if exponent & 1:
            result = matrix if result is None else product(matrix, result)
        exponent >>= 1
        if exponent:
            matrix = product(matrix, matrix)
    assert result is not None
    return result


def _semaphores(body: Sequence["int | Loop"], costs: Costs) -> set[int]:
    found: set[int] = set()
    for node in body:
        if isinstance(node, Loop):
            found |= _semaphores(node.body, costs)
        else:
            found |= {*costs.waits[node], *costs.signals[node]}
    return found
