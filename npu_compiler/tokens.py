"""Tokens: every dependence between stages of different units becomes a signal and a wait, the fewest that order them all.

Two stages depend on each other where one writes what the other touches: a buffer, one that shares its bytes, a tensor in HBM.
Their innermost common body holds an *edge*: the unit that comes first signals behind the child of that body in which its stage
is, the other waits before the child with its own. Where the second comes first in the body, the edge is carried by the
loop and begins with a token. The slots of a stream are handed over by a pair of semaphores for all its fills and drains.

An edge is left out where the others imply it (`knowledge`), and semaphores whose tokens take turns are one (`semaphores`).

The race check (`cycle/races.py`) shares nothing with this module: it judges the program.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from npu.errors import ProgramError
from npu.isa import Memory
from npu.isa.spec import SEMAPHORES
from npu.program import Tensor
from npu_compiler.knowledge import FRONTEND, SELF_ORDERED, UNITS, Access, Edge, Flow, Resource, Summary
from npu_compiler.semaphores import Alternation, Order, Semaphore, merged
from npu_compiler.stages import Advance, Break, Buffer, Count, HandOver, Loop, Node, Op, Stage, Stream, ops_of

Leaf = Stage | Break | Count | HandOver
Child = Loop | Leaf


@dataclass(kw_only=True)
class Tokens:
    """The semaphores of a program, by the nodes at which they are given and taken."""

    semaphores: list[Semaphore]

    def __post_init__(self) -> None:
        self._waits, self._signals = defaultdict(list), defaultdict(list)
        for semaphore in self.semaphores:
            for node in semaphore.waits:
                self._waits[id(node), semaphore.taker].append(semaphore.number)
            for node in semaphore.signals:
                self._signals[id(node), semaphore.giver].append(semaphore.number)

    def waits(self, node: Node, unit: str) -> list[int]:
        """Semaphores that `unit` waits for before a node."""
        return self._waits.get((id(node), unit), [])

    def signals(self, node: Node, unit: str) -> list[int]:
        """Semaphores that `unit` signals behind a node."""
        return self._signals.get((id(node), unit), [])

    def initial(self, unit: str) -> list[int]:
        """Semaphores that `unit` signals before the program starts, each once for each of its tokens."""
        return [s.number for s in self.semaphores if s.giver == unit for _ in range(s.initial)]


def place_tokens(body: Sequence[Node], shared: Callable[[Buffer, Buffer], bool]) -> Tokens:
    """The semaphores of a tree; `shared` says of two buffers whether they have bytes in common.

    Trees of one shape have the same semaphores, which are found once.

    Raises:
        ProgramError: more semaphores are needed than there are.
    """
    nodes = list(_all_nodes(body))
    shape = _shape(body), _overlaps(body, shared)
    if shape not in _FOUND:
        if len(_FOUND) >= MOST_SHAPES:
            _FOUND.clear()
        place = {id(node): number for number, node in enumerate(nodes)}
        _FOUND[shape] = tuple(
            _Found(each.name, each.giver, each.taker, each.initial, tuple(place[id(node)] for node in each.signals),
                   tuple(place[id(node)] for node in each.waits))
            for each in _semaphores(body, shared)
        )  # fmt: skip
    return Tokens(semaphores=[
        Semaphore(
            name=each.name, giver=each.giver, taker=each.taker, initial=each.initial,
            signals=[nodes[number] for number in each.signals], waits=[nodes[number] for number in each.waits], number=number,
        )
        for number, each in enumerate(_FOUND[shape], 1)
    ])  # fmt: skip


class _Found(NamedTuple):
    """A semaphore of all trees of a shape, its nodes as their numbers in program order."""

    name: str
    giver: str
    taker: str
    initial: int
    signals: tuple[int, ...]
    waits: tuple[int, ...]


_FOUND: dict[object, tuple[_Found, ...]] = {}
MOST_SHAPES = 256


def _semaphores(body: Sequence[Node], shared: Callable[[Buffer, Buffer], bool]) -> list[Semaphore]:
    order = Order(body=body)
    placer = _Placer(shared=shared, order=order)
    placer.analyse(body, None)
    semaphores = [*placer.streams(body), *merged(order, placer.rotated(body))]
    if len(semaphores) > SEMAPHORES:
        raise ProgramError(f"compiler: {len(semaphores)} semaphores are needed, there are {SEMAPHORES}")
    return semaphores


def _all_nodes(body: Sequence[Node]) -> Iterator[Node]:
    """Nodes outside of stages in program order."""
    for node in body:
        yield node
        if isinstance(node, Loop):
            yield from _all_nodes(node.body)


def _shape(body: Sequence[Node]) -> tuple[object, ...]:
    """All of a tree that its semaphores depend on, but for the bytes that buffers share."""
    found: list[object] = []
    for node in body:
        match node:
            case Loop():
                found.append((node.level, node.may_be_skipped, _shape(node.body)))
            case Stage():
                found.append(
                    (node.unit, frozenset((r.name, isinstance(r, Buffer), *rest) for r, *rest in _touched(node.ops())))
                )
            case HandOver():
                found.append((HandOver, frozenset((r.name, *rest) for r, *rest in _touched([node.op]))))
            case Advance():
                found.append((node.stream.name, node.stream.slots))
            case Break() | Count():
                assert node.flag.target is not None
                found.append((type(node), node.flag.target.name))
            case Op():
                raise AssertionError(f"{node.mnemonic} outside of a stage")
    return tuple(found)


def _overlaps(body: Sequence[Node], shared: Callable[[Buffer, Buffer], bool]) -> frozenset[tuple[str, str, Memory]]:
    """The pairs of buffers of one memory that have bytes in common."""
    used = {id(at.target): at.target for op in ops_of(body) for w in (False, True) for at in op.touched(written=w)}
    buffers = [each for each in used.values() if isinstance(each, Buffer)]
    return frozenset(
        (a.name, b.name, a.memory)
        for a in buffers
        for b in buffers
        if a is not b and a.memory is b.memory and shared(a, b)
    )


def _children(body: Sequence[Node]) -> list[Child]:
    return [node for node in body if isinstance(node, Child)]


def _break_of(children: Sequence[Child]) -> int | None:
    return next((number for number, child in enumerate(children) if isinstance(child, Break)), None)


@dataclass(kw_only=True)
class _Turn:
    """A slot of a stream in one body: the children that fill it and those that drain it, by number."""

    stream: Stream
    producer: str
    fills: list[int]
    consumer: str
    drains: list[int]


@dataclass(kw_only=True)
class _Placer:
    shared: Callable[[Buffer, Buffer], bool]
    order: Order
    edges: dict[int, list[Edge]] = field(default_factory=dict)
    """Of each body, by the identity of its loop (0: the whole tree)."""
    bodies: dict[int, list[Child]] = field(default_factory=dict)
    inside: dict[int, int] = field(default_factory=dict)
    """The body in which a loop stands."""
    leaves: dict[int, Summary] = field(default_factory=dict)
    """Summaries of all nodes but loops, by the node's identity."""
    meeting: dict[tuple[int, int], bool] = field(default_factory=dict)
    """Pairs of resources, by identity, that have bytes in common."""

    def analyse(self, body: Sequence[Node], loop: Loop | None) -> Summary:
        """Find the edges of a body and of all bodies in it."""
        children, key = _children(body), id(loop) if loop else 0
        self.bodies[key] = children
        parts = []
        for child in children:
            if isinstance(child, Loop):
                self.inside[id(child)] = key
            parts.append(self.summary(child))
        streams = [
            Edge(turn.producer, turn.fills[-1], turn.consumer, turn.drains[0], carried=False, resource=_ANY)
            for turn in _turns(body, children)
        ]
        level = loop.level if loop else None
        flow = Flow(
            parts=parts, level=level, leaves_at=_break_of(children), skipped=loop is not None and loop.may_be_skipped,
            conflict=self.conflict,
        )  # fmt: skip
        self.edges[key] = flow.needed(streams)
        return flow.summary([*streams, *self.edges[key]])

    def summary(self, child: Child) -> Summary:
        """A child's accesses and the knowledge that goes from unit to unit in it."""
        if isinstance(child, Loop):
            return self.analyse(child.body, child)
        if id(child) not in self.leaves:
            self.leaves[id(child)] = self._leaf(child)
        return self.leaves[id(child)]

    def _leaf(self, child: Leaf) -> Summary:
        match child:
            case Stage():
                known = frozenset([child.unit] if child.unit in SELF_ORDERED else [])
                own = frozenset([child.unit])
                accesses = (
                    Access(child.unit, at, written, known, own, moves) for at, written, moves in _touched(child.ops())
                )
                return Summary(tuple(dict.fromkeys(accesses)), frozenset())
            case Break() | Count():
                assert child.flag.target is not None
                return _of_front_end([(child.flag.target, False, frozenset())])
            case HandOver():
                return _of_front_end(_touched([child.op]))

    def conflict(self, first: Access, second: Access) -> bool:
        """The order of two accesses matters, and nothing else than an edge gives it."""
        if not (first.write or second.write):
            return False
        key = id(first.resource), id(second.resource)
        if key not in self.meeting:
            self.meeting[key] = self._meet(first.resource, second.resource)
        return self.meeting[key]

    def _meet(self, a: Resource, b: Resource) -> bool:
        """Two resources have bytes in common."""
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return a is b
        if a.stream is not None and a.stream is b.stream:
            return False  # its fills and drains take turns
        return a is b or (a.memory is b.memory and self.shared(a, b))

    def streams(self, body: Sequence[Node]) -> list[Semaphore]:
        """Two semaphores for each stream: a slot is full, a slot is free."""
        found: dict[Stream, tuple[Semaphore, Semaphore]] = {}
        for nodes in _all_bodies(body):
            children = _children(nodes)
            for turn in _turns(nodes, children):
                name, slots = turn.stream.name, turn.stream.slots
                full, free = found.setdefault(turn.stream, (
                    Semaphore(name=f"{name}.full", giver=turn.producer, taker=turn.consumer, initial=0, signals=[], waits=[]),
                    Semaphore(name=f"{name}.free", giver=turn.consumer, taker=turn.producer, initial=slots, signals=[], waits=[]),
                ))  # fmt: skip
                assert (full.giver, full.taker) == (turn.producer, turn.consumer), f"stream {name} changes its units"
                free.waits.append(children[turn.fills[0]])
                full.signals.append(children[turn.fills[-1]])
                full.waits.append(children[turn.drains[0]])
                free.signals.append(children[turn.drains[-1]])
        return [semaphore for pair in found.values() for semaphore in pair]

    def rotated(self, body: Sequence[Node]) -> list[Semaphore]:
        """A semaphore for each edge; a token that enters a loop, goes round in it and leaves it is one."""
        made: dict[Edge, Semaphore] = {}
        for key, edges in self.edges.items():
            children = self.bodies[key]
            for edge in edges:
                made[edge] = Semaphore(
                    name=_name(edge), giver=edge.giver, taker=edge.taker, initial=int(edge.carried),
                    signals=[children[edge.after]], waits=[children[edge.before]], resources={id(edge.resource)},
                )  # fmt: skip
        for key, edges in self.edges.items():
            for edge in edges:
                if edge.carried and key in self.inside:
                    self._rotate(body, made, key, edge)
        return list(dict.fromkeys(made.values()))

    def _rotate(self, body: Sequence[Node], made: dict[Edge, Semaphore], key: int, edge: Edge) -> None:
        """Let the token of a carried edge come from the edge into its loop, and go on to the edge out of it."""
        outer, children = self.inside[key], self.bodies[key]
        loop = next(child for child in self.bodies[outer] if id(child) == key)
        at = self.bodies[outer].index(loop)
        around = [each for each in self.edges[outer] if (each.giver, each.taker) == (edge.giver, edge.taker)]
        enter = next((each for each in around if each.before == at), None)
        leave = next((each for each in around if each.after == at), None)
        stop = _break_of(children)
        once_more = stop is not None and edge.before <= stop < edge.after
        early = any(edge.taker in _units(child) for child in children[: edge.before])
        # What the giver does in the loop behind its signal, the token that leaves would not tell of.
        late = leave is not None and self._matters(body, key, children[edge.after + 1 :], edge.giver)
        if enter is None or (leave is None) != once_more or early or late:
            assert not once_more, f"{_name(edge)}: nothing gives the token for the way out of the loop"
            return
        parts: list[Semaphore] = list(dict.fromkeys([made[edge], made[enter], *([made[leave]] if leave else [])]))
        signals: list[Node] = [node for part in parts for node in part.signals]
        waits: list[Node] = [node for part in parts for node in part.waits]
        waits.remove(loop)
        if leave is not None:
            signals.remove(loop)
        whole = Semaphore(
            name=made[edge].name, giver=edge.giver, taker=edge.taker, initial=sum(part.initial for part in parts) - 1,
            signals=signals, waits=waits, resources={each for part in parts for each in part.resources},
        )  # fmt: skip
        if Alternation(order=self.order, semaphores=[whole], related=True).holds:
            made.update({each: whole for each, semaphore in made.items() if semaphore in parts})
        else:
            assert not once_more, f"{_name(edge)}: the token for the way out of the loop does not take turns"

    def _matters(self, body: Sequence[Node], loop: int, behind: Sequence[Child], unit: str) -> bool:
        """Something outside of a loop (its identity) conflicts with what a unit does in the last children of its body."""
        done = [a for leaf in _leaves(behind) for a in self.summary(leaf).accesses if a.unit == unit]
        others = [b for leaf in _leaves(body, loop) for b in self.summary(leaf).accesses if b.unit != unit]
        return any(self.conflict(a, b) for a in done for b in others)


def _of_front_end(touched: Iterable[tuple[Resource, bool, frozenset[int]]]) -> Summary:
    """The accesses of the front end, which waits for each: all that it dispatches later knows them complete."""
    own, known = frozenset([FRONTEND]), frozenset(UNITS)
    accesses = tuple(Access(FRONTEND, at, written, known, own, moves) for at, written, moves in touched)
    return Summary(accesses, frozenset((FRONTEND, unit) for unit in UNITS))


def _leaves(body: Sequence[Node], besides: int = 0) -> Iterator[Leaf]:
    """The nodes of a tree that are no loops, in order, without those in the loop whose identity is `besides`."""
    for node in _children(body):
        if not isinstance(node, Loop):
            yield node
        elif id(node) != besides:
            yield from _leaves(node.body, besides)


def _units(child: Child) -> set[str]:
    """Units that have something to do in a child."""
    match child:
        case Stage():
            return {child.unit}
        case Break() | Count() | HandOver():
            return {FRONTEND}
        case Loop():
            return set().union(*map(_units, _children(child.body)))


_ANY = Tensor(name="slots", address=0, shape=(), format="int32", block=1, writable=True)
"""The resource of a stream's own hand-over."""


def _name(edge: Edge) -> str:
    return f"{edge.resource.name}: {edge.giver} to {edge.taker}"


def _touched(ops: Iterable[Op]) -> Iterator[tuple[Resource, bool, frozenset[int]]]:
    """Resources that instructions touch: the resource, whether it is written, and the levels of the loops that move the address.
    Tensors that no program writes are left out."""
    for op in ops:
        for written in (False, True):
            for at in op.touched(written=written):
                if at.target is not None and (isinstance(at.target, Buffer) or at.target.writable):
                    yield at.target, written, frozenset(level for level, _ in at.strides)


def _all_bodies(body: Sequence[Node]) -> Iterator[Sequence[Node]]:
    yield body
    for node in body:
        if isinstance(node, Loop):
            yield from _all_bodies(node.body)


def _turns(body: Sequence[Node], children: Sequence[Child]) -> list[_Turn]:
    """The turns of all streams that advance in a body, in their order."""
    found, starts = [], defaultdict(int)
    numbers = {id(child): number for number, child in enumerate(children)}
    for end, node in enumerate(body):
        if not isinstance(node, Advance):
            continue
        start, starts[node.stream] = starts[node.stream], end + 1
        writers: dict[str, list[int]] = defaultdict(list)
        readers: dict[str, list[int]] = defaultdict(list)
        for child in body[start:end]:
            if isinstance(child, Loop | Stage):
                for unit, written in _stream_accesses(child, node.stream):
                    (writers if written else readers)[unit].append(numbers[id(child)])
        (producer, fills), *more = writers.items()
        drains = {unit: at for unit, at in readers.items() if unit != producer}
        assert len(drains) == 1, f"stream {node.stream.name} has {len(drains)} consumers"
        assert not [unit for unit, _ in more if unit not in drains], f"stream {node.stream.name} has two producers"
        ((consumer, places),) = drains.items()
        places = sorted({*places, *(at for unit, numbers_of in more for at in numbers_of if unit == consumer)})
        found.append(
            _Turn(stream=node.stream, producer=producer, fills=sorted(set(fills)), consumer=consumer, drains=places)
        )
    return found


def _stream_accesses(child: Loop | Stage, stream: Stream) -> Iterator[tuple[str, bool]]:
    """Units that touch the buffers of a stream in a child, in order; a turn inside of a deeper loop counts there."""
    if isinstance(child, Stage):
        for op in child.ops():
            for written in (True, False):
                if any(at.stream is stream for at in op.touched(written=written)):
                    yield child.unit, written
        return
    if any(isinstance(node, Advance) and node.stream is stream for node in child.body):
        return
    for node in child.body:
        if isinstance(node, Loop | Stage):
            yield from _stream_accesses(node, stream)
