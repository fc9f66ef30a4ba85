"""Semaphores that are one: two between the same units whose tokens take turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npu_compiler.stages import Break, Loop, Node


@dataclass(kw_only=True, eq=False)
class Semaphore:
    """Who signals and who waits where; `initial` tokens are there before the program starts."""

    name: str
    giver: str
    taker: str
    initial: int
    signals: list[Node]
    waits: list[Node]
    resources: set[int] = field(default_factory=set)
    number: int = 0


@dataclass(kw_only=True)
class Order:
    """Where the nodes of a tree stand, by identity: the loop around each, its place there, and where each loop is left early.

    Nodes of the tree itself stand in none; a loop that is left behind its last node is not left early.
    """

    body: Sequence[Node]
    around: dict[int, Loop] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    left_at: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._note(self.body, None)

    def _note(self, body: Sequence[Node], loop: Loop | None) -> None:
        for place, node in enumerate(body):
            self.place[id(node)] = place
            if loop is not None:
                self.around[id(node)] = loop
                if isinstance(node, Break) and place < len(body) - 1:
                    self.left_at.setdefault(id(loop), place)
            if isinstance(node, Loop):
                self._note(node.body, node)


def merged(order: Order, semaphores: Sequence[Semaphore]) -> list[Semaphore]:
    """Semaphores of which those between the same units are one where their tokens take turns."""
    kept: list[Semaphore] = []
    for semaphore in semaphores:
        for other in kept:
            same = (other.giver, other.taker) == (semaphore.giver, semaphore.taker)
            if same and _take_turns(order, other, semaphore):
                other.signals += semaphore.signals
                other.waits += semaphore.waits
                other.initial = max(other.initial, semaphore.initial)
                other.resources |= semaphore.resources
                break
        else:
            kept.append(semaphore)
    return kept


def _take_turns(order: Order, first: Semaphore, second: Semaphore) -> bool:
    """One semaphore can do for two: signals and waits of both alternate, and no wait gets a later signal for nothing.

    With an initial token each, one is enough where both are about the same resource.
    """
    related = bool(first.resources & second.resources)
    if first.initial and second.initial and not related:
        return False
    return Alternation(order=order, semaphores=[first, second], related=related).holds


@dataclass(kw_only=True)
class Alternation:
    """A check that signals and waits of semaphores, taken as one, take turns in program order: there is one token at most.

    `related`: they are about the same resource, so that a wait may take the token of another's signal.
    """

    order: Order
    semaphores: Sequence[Semaphore]
    related: bool

    def __post_init__(self) -> None:
        self.waits = {id(node): each for each in self.semaphores for node in each.waits}
        self.signals = {id(node): each for each in self.semaphores for node in each.signals}
        self.distinct = all(
            len(by_node) == sum(map(len, lists))
            for by_node, lists in (
                (self.waits, [each.waits for each in self.semaphores]),
                (self.signals, [each.signals for each in self.semaphores]),
            )
        )
        self.token = next((each for each in self.semaphores if each.initial), None)

    @property
    def holds(self) -> bool:
        """There is never more than one token, and each wait finds one that is good for it."""
        if not self.distinct or any(each.initial > 1 for each in self.semaphores):
            return False
        bodies = self._eventful()
        return self._walk(bodies[0], bodies)

    def _eventful(self) -> dict[int, list[Node]]:
        """The nodes that wait, signal or hold such nodes, in order, by the identity of the loop around them (0: none)."""
        found: dict[int, dict[int, Node]] = {0: {}}
        for each in self.semaphores:
            for node in (*each.waits, *each.signals):
                inner: Node = node
                while (loop := self.order.around.get(id(inner))) is not None:
                    found.setdefault(id(loop), {})[id(inner)] = inner
                    inner = loop
                found[0][id(inner)] = inner
        place = self.order.place
        return {key: sorted(nodes.values(), key=lambda node: place[id(node)]) for key, nodes in found.items()}

    def _walk(self, body: Sequence[Node], bodies: Mapping[int, Sequence[Node]]) -> bool:
        """The rule holds in a body, walked in program order."""
        for node in body:
            if not self.take(node) or (id(node) in bodies and not self._around(node, bodies)) or not self.give(node):
                return False
        return True

    def _around(self, loop: Node, bodies: Mapping[int, Sequence[Node]]) -> bool:
        """The rule holds in two iterations of a loop and, where it is left early, on the way there."""
        body, empty = bodies[id(loop)], self.token is None
        for _ in range(2):
            if not self._walk(body, bodies) or (self.token is None) != empty:
                return False
        stop = self.order.left_at.get(id(loop))
        return stop is None or self._walk([node for node in body if self.order.place[id(node)] <= stop], bodies)

    def take(self, node: Node) -> bool:
        """A wait finds the token."""
        waiting = self.waits.get(id(node))
        if waiting is None:
            return True
        if self.token is None or not (self.token is waiting or self.related):
            return False
        self.token = None
        return True

    def give(self, node: Node) -> bool:
        """A signal comes after the token before it was taken."""
        signalling = self.signals.get(id(node))
        if signalling is None:
            return True
        if self.token is not None:
            return False
        self.token = signalling
        return True
