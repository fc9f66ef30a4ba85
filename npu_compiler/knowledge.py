"""Knowledge: who knows, at which point of a loop's body, that an access is complete, and which edges that leaves to be needed.

A unit that waited for a signal knows everything complete that the signalling unit had done, or knew, when it signalled, since
units retire in order. DMA units do not order what they have in flight themselves, so they may have to wait for their own
signal; the front end dispatches in order, so what it waited for all units know.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from npu.program import Tensor
from npu_compiler.stages import Buffer

FRONTEND = "frontend"
SELF_ORDERED = ("matrix", "vector", FRONTEND)
"""Units that complete in order what they start in order, as far as their own next instruction can see."""
UNITS = (FRONTEND, "matrix", "vector", "dma_in", "dma_out")
Resource = Buffer | Tensor


@dataclass(frozen=True, slots=True)
class Access:
    """A unit touches a resource, in a child of a body.

    `known`: units that know it complete when the child is over; `learns`: units from whose knowledge at the child's begin its
    unit knows before it. `moves`: levels of loops whose every iteration touches a part of its own.
    """

    unit: str
    resource: Resource
    write: bool
    known: frozenset[str]
    learns: frozenset[str]
    moves: frozenset[int]

    @property
    def _key(self) -> tuple[object, ...]:
        return self.unit, id(self.resource), self.write, self.known, self.learns, self.moves

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Access) and self._key == other._key


@dataclass(frozen=True, slots=True)
class Summary:
    """A child as its body sees it: its accesses in program order, and which unit's knowledge becomes whose inside of it."""

    accesses: tuple[Access, ...]
    passes: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """In one body: `giver` signals behind child `after`, `taker` waits before child `before`."""

    giver: str
    after: int
    taker: str
    before: int
    carried: bool
    resource: Resource


@dataclass(kw_only=True)
class Flow:
    """The children of one body, and who knows what of them at which point of an iteration and of the next.

    `level` is that of the body's loop; None: the body is run once. `skipped`: it may be not run at all.
    """

    parts: Sequence[Summary]
    level: int | None
    leaves_at: int | None
    skipped: bool
    conflict: Callable[[Access, Access], bool]

    def __post_init__(self) -> None:
        self.count = len(self.parts)
        self.pairs = list(self._pairs())

    def _pairs(self) -> Iterator[tuple[int, int, Access, Access]]:
        """Conflicts as (child, later child in this or (plus `count`) the next iteration, access, access), the nearest first."""
        count = self.count
        found: dict[tuple[int, int, bool, str], list[Access]] = {}
        for later in range(1, count if self.level is None else 2 * count):
            for first in range(min(later, count) - 1, max(-1, later - count - 1), -1):
                for b in self.parts[later % count].accesses:
                    key = first, id(b.resource), b.write, b.unit
                    if key not in found:
                        found[key] = [
                            a
                            for a in self.parts[first].accesses
                            if not (a.unit == b.unit and a.unit in SELF_ORDERED) and self.conflict(a, b)
                        ]
                    for a in found[key]:
                        if not (later >= count and self.level in a.moves and self.level in b.moves):
                            yield first, later, a, b

    def needed(self, streams: Sequence[Edge]) -> list[Edge]:
        """The edges that order every conflict together with those of streams, none of which the others imply."""
        edges: list[Edge] = []
        while (missing := self.unordered([*streams, *edges])) is not None:
            first, later, a, b = missing
            edges.append(Edge(a.unit, first, b.unit, later % self.count, later >= self.count, a.resource))
        for edge in list(edges):
            rest = [each for each in edges if each is not edge]
            if self.unordered([*streams, *rest]) is None:
                edges = rest
        return edges

    def unordered(self, edges: Sequence[Edge]) -> tuple[int, int, Access, Access] | None:
        """The first conflict that edges leave without an order."""
        known: dict[tuple[int, str, frozenset[str]], list[frozenset[str]]] = {}
        for pair in self.pairs:
            first, later, a, b = pair
            key = first, a.unit, a.known
            if key not in known:
                known[key], _ = self.knowing(first, a.unit, a.known, edges)
            heard = a.unit in b.learns and a.unit != b.unit  # by a signal of its own inside of the child
            if not heard and not b.learns & known[key][later]:
                return pair
        return None

    def knowing(
        self, first: int, own: str, known: frozenset[str], edges: Sequence[Edge]
    ) -> tuple[list[frozenset[str]], list[frozenset[str]]]:
        """Who knows, before and behind each child of two iterations, that an access in child `first` is complete.

        Signals of `own`, whose access it is, tell of it even while `own` itself may not rely on it. `first` is -1 for what
        was complete before the iteration.
        """
        count = self.count
        knows, told = set(known), set()
        before, behind = ([frozenset()] * (2 * count) for _ in range(2))
        for time in range(max(first, 0), 2 * count):
            at = time % count
            if time > first:
                for edge in edges:
                    if edge.before == at:
                        given = time - at + edge.after - (count if edge.carried else 0)
                        if (edge, given) in told:
                            knows.add(edge.taker)
                before[time] = frozenset(knows)
                for source, target in self.parts[at].passes:
                    if source in knows or source == own:
                        knows.add(target)
            behind[time] = frozenset(knows)
            told |= {(edge, time) for edge in edges if edge.after == at and (edge.giver in knows or edge.giver == own)}
        return before, behind

    def summary(self, edges: Sequence[Edge]) -> Summary:
        """The whole body as a child of the one around it."""
        stop = self.leaves_at
        head = stop is not None and stop < self.count - 1
        # A loop that is left in the middle ends there, one iteration later; before that it may not run at all.
        over = self.count + stop if head and stop is not None else self.count - 1
        certain = stop if head and stop is not None else self.count - 1
        begun = {unit: self.knowing(-1, "", frozenset([unit]), edges) for unit in UNITS}
        passes = {
            (unit, other) for unit, (_, behind) in begun.items() for other in behind[certain]
            if other != unit and not self.skipped
        }  # fmt: skip
        accesses: dict[Access, None] = {}
        known: dict[tuple[int, str, frozenset[str]], frozenset[str]] = {}
        for number, part in enumerate(self.parts):
            for a in part.accesses:
                if (key := (number, a.unit, a.known)) not in known:
                    known[key] = self.knowing(number, a.unit, a.known, edges)[1][over]
                learns = frozenset(unit for unit, (before, _) in begun.items() if before[number] & a.learns)
                accesses[Access(a.unit, a.resource, a.write, known[key], learns, a.moves)] = None
        return Summary(tuple(accesses), frozenset(passes))
