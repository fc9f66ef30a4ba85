"""Lifetimes of buffers: the stages from the first write of what is read later to the last read, in program order.

A buffer begins anew in every iteration of a loop if the first thing that an iteration does with it is to write it, at an address
that does not move with the loop. Else, and where it is used behind the loop, it lives through all of it. The slots of a stream
live through the loop in which it advances.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from npu_compiler.stages import Advance, Break, Buffer, Loop, Node, Op, Stage, ops_of

Span = tuple[int, int]
"""First and last stage, counted in program order."""


@dataclass(frozen=True, slots=True)
class _First:
    """The first access to a buffer in a node: only a write, and the loops with which its address moves."""

    writes: bool
    moves: frozenset[int]


def lifetimes(body: Sequence[Node]) -> dict[Buffer, list[Span]]:
    """The spans in which each buffer holds something that is read later."""
    walk = _Walk()
    walk.number(body, 0)
    walk.body(body, 0, set())
    return walk.alive


def overlap(first: Sequence[Span], second: Sequence[Span]) -> bool:
    """Two buffers are alive in one stage."""
    return any(a <= d and c <= b for a, b in first for c, d in second)


@dataclass(kw_only=True)
class _Walk:
    alive: dict[Buffer, list[Span]] = field(default_factory=dict)
    spans: dict[int, Span] = field(default_factory=dict)
    firsts: dict[int, Mapping[Buffer, _First]] = field(default_factory=dict)
    count: int = 0

    def number(self, body: Sequence[Node], depth: int) -> dict[Buffer, _First]:
        """Number the stages of a body, and note the first access to each buffer in every node."""
        turning = {node.stream for node in body if isinstance(node, Advance)}
        found: dict[Buffer, _First] = {}
        for node in body:
            begin = self.count
            match node:
                case Loop():
                    firsts = self.number(node.body, depth + 1)
                case Stage() | Break():
                    firsts = dict(_first_accesses(node))
                    self.count += 1
                case Advance() | Op():
                    continue
            for buffer, first in firsts.items():
                if buffer.stream in turning:
                    firsts[buffer] = _First(first.writes, first.moves | {depth - 1})
                found.setdefault(buffer, firsts[buffer])
            self.firsts[id(node)] = firsts
            self.spans[id(node)] = begin, self.count - 1
        return found

    def body(self, body: Sequence[Node], depth: int, live: set[Buffer]) -> set[Buffer]:
        """Go through a body backwards from what is live behind it; what is live before it."""
        live = set(live)
        for node in reversed(body):
            if isinstance(node, Advance | Op):
                continue
            firsts = self.firsts[id(node)]
            through = set(live)
            if isinstance(node, Loop):
                through |= self.exposed(node.body, depth + 1)
                self.body(node.body, depth + 1, through)
            else:
                through |= set(firsts)
            for buffer in through:
                self.alive.setdefault(buffer, []).append(self.spans[id(node)])
            for buffer, first in firsts.items():
                if begins_anew(first, depth):
                    live.discard(buffer)
                else:
                    live.add(buffer)
        return live

    def exposed(self, body: Sequence[Node], depth: int) -> set[Buffer]:
        """Buffers of which an iteration of a loop uses what an earlier one, or what came before the loop, has left."""
        firsts: dict[Buffer, _First] = {}
        for node in body:
            if not isinstance(node, Advance | Op):
                for buffer, first in self.firsts[id(node)].items():
                    firsts.setdefault(buffer, first)
        return {buffer for buffer, first in firsts.items() if not begins_anew(first, depth)}


def begins_anew(first: _First, depth: int) -> bool:
    """A first access, in a body inside of `depth` loops, needs nothing that was there before."""
    return first.writes and not any(level < depth for level in first.moves)


def _first_accesses(node: Stage | Break) -> Iterator[tuple[Buffer, _First]]:
    if isinstance(node, Break):
        assert isinstance(node.flag.target, Buffer)
        yield node.flag.target, _First(writes=False, moves=frozenset())
        return
    seen: set[Buffer] = set()
    for op in ops_of(node.body):
        read = {at.target for at in op.touched(written=False)}
        for written in (False, True):
            for at in op.touched(written=written):
                if isinstance(at.target, Buffer) and at.target not in seen:
                    moves = frozenset(level for level, _ in at.strides)
                    yield at.target, _First(written and at.target not in read, moves)
                    seen.add(at.target)
