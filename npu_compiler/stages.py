"""The form between a model and words: stages of one unit each over typed buffers, in a tree of loops.

A stage is what one unit does at a time: instructions, and loops of its own around them. What it reads and writes follows from its
instructions. There are no addresses of SRAM yet (`allocation`), and no semaphores (`tokens`): a stage may begin when everything
that it touches is as the order of the tree says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from npu.errors import ProgramError
from npu.isa import BY_MNEMONIC, Memory, Unit
from npu.isa.spec import LOOP_LEVELS
from npu.program import Tensor

QUEUES = {
    Unit.FRONTEND: "frontend", Unit.MATRIX: "matrix", Unit.VECTOR: "vector", Unit.SCALAR: "vector", Unit.DMA_IN: "dma_in",
    Unit.DMA_OUT: "dma_out",
}  # fmt: skip
"""Who carries an instruction out; scalar instructions share the queue of the vector unit."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stream:
    """Buffers that a producer fills and a consumer drains in turns: the slots of all of them advance together."""

    name: str
    slots: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Buffer:
    """A working set in an SRAM: `elements` addresses in all slots together; `phase` names it where it does not fit."""

    name: str
    memory: Memory
    elements: int
    phase: str
    stream: Stream | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A running loop; `number` is None for a loop of one iteration, which costs no instruction.

    `first` is the number that such a loop stands for.
    """

    number: int | None
    first: int = 0


Steps = Sequence[tuple[Level, int]]
"""Strides by loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trips:
    """A trip count: `base`, plus `factor` for each index of an enclosing loop; or, where data decide, one for each `unit` of what
    `count` reads or part of it, `base` at most."""

    base: int
    factor: int = 0
    level: Level | None = None
    count: "Count | None" = None
    unit: int = 1

    @property
    def fixed(self) -> bool:
        """The count is the same every time."""
        return self.count is None and (self.factor == 0 or self.level is None or self.level.number is None)

    def divided(self, unit: int) -> "Trips":
        """The same count in units of `unit` (which divides it)."""
        return Trips(base=self.base // unit, factor=self.factor // unit, level=self.level)

    def times(self, number: int) -> "Trips":
        """The count `number` times."""
        return Trips(base=self.base * number, factor=self.factor * number, level=self.level)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An address that follows the loops: in a buffer, a tensor in HBM, or (None) a plain number.

    `offset` and strides are in addresses of the memory, bytes in HBM; `strides` are sorted by level number; `rows` is the
    stride between rows; where the buffer belongs to a stream, its slots lie `slot_stride` apart.
    """

    target: Buffer | Tensor | None
    offset: int
    strides: tuple[tuple[int, int], ...] = ()
    rows: int = 0
    slot_stride: int = 0

    @property
    def stream(self) -> Stream | None:
        """The stream whose slot the address follows."""
        return self.target.stream if isinstance(self.target, Buffer) else None


def place(
    target: Buffer | Tensor | None,
    offset: int = 0,
    steps: Steps = (),
    *,
    rows: int = 0,
    slot_stride: int = 0,
    before: int = 0,
) -> Place:
    """An address with these strides; those of the same loop add up, loops of one iteration have none.

    Raises:
        ProgramError: it lies more than `before` in front of its target.
    """
    strides: dict[int, int] = {}
    for level, stride in steps:
        offset += level.first * stride
        if level.number is not None and stride:
            strides[level.number] = strides.get(level.number, 0) + stride
    if target is not None and offset < -before:
        raise ProgramError(f"compiler: an address lies {-offset} before {target.name}")
    ordered = tuple(sorted(strides.items()))
    return Place(target=target, offset=offset, strides=ordered, rows=rows, slot_stride=slot_stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """One instruction, its addresses as places."""

    mnemonic: str
    operands: Mapping[str, int | Place]

    def touched(self, *, written: bool) -> Iterator[Place]:
        """Places in memories that the instruction writes, or those that it reads."""
        spec = BY_MNEMONIC[self.mnemonic]
        for footprint in spec.writes if written else spec.reads:
            found = self.operands[footprint.operand]
            if isinstance(found, Place) and found.target is not None:
                yield found


@dataclass(kw_only=True, slots=True, eq=False)
class Loop:
    """A hardware loop; inside of a stage all of it belongs to that stage."""

    level: int
    trips: Trips
    phase: str
    body: "list[Node]" = field(default_factory=list)

    @property
    def may_be_skipped(self) -> bool:
        """Data may decide that it is not run at all."""
        return self.trips.count is not None


@dataclass(kw_only=True, slots=True, eq=False)
class Stage:
    """A piece of work of one unit."""

    name: str
    phase: str
    unit: str = ""
    body: "list[Node]" = field(default_factory=list)

    def ops(self) -> Iterator[Op]:
        """Its instructions, each once."""
        yield from ops_of(self.body)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Break:
    """The front end leaves the loop `level` when the integer at `flag` is zero."""

    level: int
    flag: Place
    phase: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Count:
    """The front end reads the integer at `flag`, `most` at most, from which loops behind it take their trips."""

    flag: Place
    most: int
    phase: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandOver:
    """The front end hands over to the host, and waits for it."""

    op: Op
    phase: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Advance:
    """From here on, addresses of a stream's buffers mean the next slot."""

    stream: Stream
    phase: str


Inside = TypeVar("Inside")
"""The levels inside of loops."""
Node: TypeAlias = Op | Loop | Stage | Break | Count | HandOver | Advance


def ops_of(body: Sequence[Node]) -> Iterator[Op]:
    """All instructions of nodes, each once."""
    for node in body:
        if isinstance(node, Op):
            yield node
        elif isinstance(node, HandOver):
            yield node.op
        elif isinstance(node, Loop | Stage):
            yield from ops_of(node.body)


def _op(mnemonic: str, operands: Mapping[str, int | Place]) -> Op:
    """An instruction, its operands in their order."""
    known = BY_MNEMONIC[mnemonic].operands
    if unknown := sorted(set(operands) - set(known)):
        raise ProgramError(f"compiler: {mnemonic} has no operands {unknown}")
    return Op(mnemonic=mnemonic, operands={name: operands[name] for name in known})


@dataclass(kw_only=True)
class Tree:
    """Builds the tree: what is emitted goes into the innermost loop or stage that is open."""

    body: list[Node] = field(default_factory=list)
    _open: list[list[Node]] = field(default_factory=list)
    _stage: Stage | None = None
    _depth: int = 0
    _phase: str = ""

    def __post_init__(self) -> None:
        self._open.append(self.body)

    def emit(self, mnemonic: str, **operands: int | Place) -> None:
        """Append one instruction to the stage."""
        assert self._stage is not None, f"{mnemonic} outside of a stage"
        spec = BY_MNEMONIC[mnemonic]
        unit = QUEUES[spec.unit]
        assert self._stage.unit in ("", unit), f"stage {self._stage.name} of {self._stage.unit} has {mnemonic}"
        self._stage.unit = unit
        self._open[-1].append(_op(mnemonic, operands))

    def hand_over(self, **operands: int | Place) -> None:
        """Hand over to the host."""
        assert self._stage is None, f"a hand-over inside of {self._stage}"
        self._open[-1].append(HandOver(op=_op("C_HOST", operands), phase=self._phase))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Make one stage of what is emitted inside; without an instruction there is none."""
        assert self._stage is None, f"stage {name} inside of {self._stage}"
        self._stage = Stage(name=name, phase=self._phase)
        self._open.append(self._stage.body)
        yield
        self._open.pop()
        if self._stage.unit:
            self._open[-1].append(self._stage)
        self._stage = None

    @contextmanager
    def loop(self, trips: int | Trips, *, keep: bool = False) -> Iterator[Level]:
        """A hardware loop around what is emitted inside; one iteration needs no loop unless `keep`."""
        count = Trips(base=trips) if isinstance(trips, int) else trips
        if count.fixed and count.base == 1 and not keep:
            yield Level(number=None)
            return
        if self._depth >= LOOP_LEVELS:
            raise ProgramError(f"compiler: loops nest deeper than {LOOP_LEVELS} levels")
        loop = Loop(level=self._depth, trips=count, phase=self._phase)
        self._open[-1].append(loop)
        self._open.append(loop.body)
        self._depth += 1
        yield Level(number=loop.level)
        self._depth -= 1
        self._open.pop()

    def one_by_one(
        self, loops: Callable[[], AbstractContextManager[Inside]], places: Callable[[Inside], Mapping[str, Place]]
    ) -> Callable[..., None]:
        """Emits one instruction for all iterations of `loops`, a loop for each instruction, so that none waits for the one before
        it; texts among its operands name `places`, which follow the loops."""

        def each(mnemonic: str, **operands: int | Place | str) -> None:
            with loops() as inside:
                named = places(inside)
                self.emit(
                    mnemonic,
                    **{key: named[value] if isinstance(value, str) else value for key, value in operands.items()},
                )

        return each

    def leave_if_zero(self, level: Level, flag: Place) -> None:
        """Leave the loop that runs at `level` when the integer at `flag` is zero."""
        assert level.number is not None
        self._open[-1].append(Break(level=level.number, flag=flag, phase=self._phase))

    def count(self, flag: Place, most: int) -> Count:
        """The integer at `flag`, which decides about loops behind it."""
        found = Count(flag=flag, most=most, phase=self._phase)
        self._open[-1].append(found)
        return found

    def advance(self, stream: Stream) -> None:
        """Go on to the next slot of a stream."""
        self._open[-1].append(Advance(stream=stream, phase=self._phase))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Assign what is emitted inside to the phase `name`."""
        before, self._phase = self._phase, name
        yield
        self._phase = before
