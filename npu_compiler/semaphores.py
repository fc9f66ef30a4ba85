"""Semaphores that are one: two between the same units whose tokens take turns."""

from collections.abc import Sequence
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


def merged(body: Sequence[Node], semaphores: Sequence[Semaphore]) -> list[Semaphore]:
    """Semaphores of which those between the same units are one where their tokens take turns."""
    kept: list[Semaphore] = []
    for semaphore in semaphores:
        for other in kept:
            same = (other.giver, other.taker) == (semaphore.giver, semaphore.taker)
            if same and _take_turns(body, other, semaphore):
                other.signals += semaphore.signals
                other.waits += semaphore.waits
                other.initial = max(other.initial, semaphore.initial)
                other.resources |= semaphore.resources
                break
        else:
            kept.append(semaphore)
    return kept


def _take_turns(body: Sequence[Node], first: Semaphore, second: Semaphore) -> bool:
    """One semaphore can do for two: signals and waits of both alternate, and no wait gets a later signal for nothing.

    With an initial token each, one is enough where both are about the same resource.
    """
    related = bool(first.resources & second.resources)
    if first.initial and second.initial and not related:
        return False
    return Alternation(semaphores=[first, second], related=related).holds(body)


@dataclass(kw_only=True)
class Alternation:
    """A check that signals and waits of semaphores, taken as one, take turns in program order: there is one token at most.

    `related`: they are about the same resource, so that a wait may take the token of another's signal.
    """

    semaphores: Sequence[Semaphore]
    related: bool

    def __post_init__(self) -> None:
        self.eventful: dict[int, bool] = {}
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

    def holds(self, body: Sequence[Node]) -> bool:
        """There is never more than one token, and each wait finds one that is good for it."""
        return self.distinct and all(each.initial <= 1 for each in self.semaphores) and self.walk(body)

    def walk(self, body: Sequence[Node]) -> bool:
        """The rule holds in a body, walked in program order."""
        for node in body:
            if not self.take(node) or (isinstance(node, Loop) and not self.around(node)) or not self.give(node):
                return False
        return True

    def has_events(self, loop: Loop) -> bool:
        """Something in a loop waits or signals."""
        if id(loop) not in self.eventful:
            self.eventful[id(loop)] = any(
                id(node) in self.waits or id(node) in self.signals or (isinstance(node, Loop) and self.has_events(node))
                for node in loop.body
            )
        return self.eventful[id(loop)]

    def around(self, loop: Loop) -> bool:
        """The rule holds in two iterations of a loop and, where it is left in the middle, on the way there."""
        if not self.has_events(loop):
            return True
        stop = next((number for number, node in enumerate(loop.body) if isinstance(node, Break)), None)
        empty = self.token is None
        for _ in range(2):
            if not self.walk(loop.body) or (self.token is None) != empty:
                return False
        middle = stop is not None and stop < len(loop.body) - 1
        return not middle or self.walk(loop.body[: (stop or 0) + 1])

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
