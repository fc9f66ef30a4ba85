"""Lifetimes of buffers: the stages from the first write of what is read later to the last read, in program order.

A buffer is filled, by one stage or several, and then used. The first write after a use begins it anew; so does the first write
of an iteration of a loop, at an address that does not move with the loop. Else, and where it is used behind a loop, a buffer
lives through all of it. The slots of a stream live through the loop in which it advances.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from npu_compiler.stages import Advance, Break, Buffer, Count, HandOver, Loop, Node, Op, Stage, ops_of

Span = tuple[int, int]
"""First and last stage, counted in program order."""


@dataclass(frozen=True, slots=True)
class _Use:
    """Accesses to a buffer in a node: whether the first one and the last one only write, and the loops that move the first."""

    writes: bool
    moves: frozenset[int]
    fills: bool


def lifetimes(body: Sequence[Node]) -> dict[Buffer, list[Span]]:
    """The spans in which each buffer holds something that is read later."""
    walk = _Walk()
    walk.number(body, 0)
    walk.body(body, 0, set())
    return walk.alive


def stages_in(spans: Sequence[Span]) -> int:
    """The stages of spans as bits of a number, so that two buffers are alive together where they have one in common."""
    found = 0
    for first, last in spans:
        found |= (1 << last + 1) - (1 << first)
    return found


@dataclass(kw_only=True)
class _Walk:
    alive: dict[Buffer, list[Span]] = field(default_factory=dict)
    spans: dict[int, Span] = field(default_factory=dict)
    uses: dict[int, Mapping[Buffer, _Use]] = field(default_factory=dict)
    count: int = 0

    def number(self, body: Sequence[Node], depth: int) -> dict[Buffer, _Use]:
        """Number the stages of a body, and note the accesses to each buffer in every node."""
        turning = {node.stream for node in body if isinstance(node, Advance)}
        found: dict[Buffer, _Use] = {}
        for node in body:
            begin = self.count
            match node:
                case Loop():
                    uses = self.number(node.body, depth + 1)
                case Stage() | Break() | Count() | HandOver():
                    uses = dict(_uses(node))
                    self.count += 1
                case Advance() | Op():
                    continue
            for buffer, use in uses.items():
                before = found.get(buffer)
                writes = use.writes and not (before is not None and before.fills)
                moves = use.moves | {depth - 1} if buffer.stream in turning else use.moves
                uses[buffer] = _Use(writes, moves, use.fills)
                first = before or uses[buffer]
                found[buffer] = _Use(first.writes, first.moves, use.fills)
            self.uses[id(node)] = uses
            self.spans[id(node)] = begin, self.count - 1
        return found

    def body(self, body: Sequence[Node], depth: int, live: set[Buffer]) -> None:
        """Go through a body backwards from what is live behind it."""
        live = set(live)
        for node in reversed(body):
            if isinstance(node, Advance | Op):
                continue
            uses = self.uses[id(node)]
            through = set(live)
            if isinstance(node, Loop):
                through |= self.exposed(node.body, depth + 1)
                self.body(node.body, depth + 1, through)
            else:
                through |= set(uses)
            for buffer in through:
                self.alive.setdefault(buffer, []).append(self.spans[id(node)])
            if not (isinstance(node, Loop) and node.may_be_skipped):
                live -= {buffer for buffer, use in uses.items() if begins_anew(use, depth)}
            live |= {buffer for buffer, use in uses.items() if not begins_anew(use, depth)}

    def exposed(self, body: Sequence[Node], depth: int) -> set[Buffer]:
        """Buffers of which an iteration of a loop uses what an earlier one, or what came before the loop, has left."""
        first: dict[Buffer, _Use] = {}
        for node in body:
            if not isinstance(node, Advance | Op):
                for buffer, use in self.uses[id(node)].items():
                    first.setdefault(buffer, use)
        return {buffer for buffer, use in first.items() if not begins_anew(use, depth)}


def begins_anew(use: _Use, depth: int) -> bool:
    """Accesses in a body inside of `depth` loops need nothing that was there before."""
    return use.writes and not any(level < depth for level in use.moves)


def _uses(node: Stage | Break | Count | HandOver) -> Iterator[tuple[Buffer, _Use]]:
    if isinstance(node, Break | Count):
        assert isinstance(node.flag.target, Buffer)
        yield node.flag.target, _Use(writes=False, moves=frozenset(), fills=False)
        return
    found: dict[Buffer, _Use] = {}
    for op in ops_of([node]):
        read = {at.target for at in op.touched(written=False)}
        for written in (False, True):
            for at in op.touched(written=written):
                if isinstance(at.target, Buffer):
                    moves = frozenset(level for level, _ in at.strides)
                    own = written and at.target not in read
                    first = found.get(at.target) or _Use(own, moves, fills=True)
                    found[at.target] = _Use(first.writes, first.moves, fills=first.fills and own)
    yield from found.items()
