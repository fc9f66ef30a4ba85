"""Building blocks of lowering: loops, address registers, semaphores and phases become instructions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from npu.errors import ProgramError
from npu.isa import BY_MNEMONIC, Instruction
from npu.isa.spec import ADDRESS_REGISTERS, INTEGER_REGISTERS, LOOP_LEVELS, RINGS, SEMAPHORES
from npu.program import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A running loop; `number` is None for a loop of one iteration, which costs no instruction.

    `first` is the index that its first trip stands for, where one loop goes on after another.
    """

    number: int | None
    first: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trips:
    """A trip count: `base`, plus `factor` for each index of an enclosing loop."""

    base: int
    factor: int = 0
    level: Level | None = None

    @property
    def fixed(self) -> bool:
        """Whether the count is the same for every index."""
        return self.factor == 0 or self.level is None or self.level.number is None

    def divided(self, unit: int) -> "Trips":
        """The same count in units of `unit` (which divides it)."""
        return Trips(base=self.base // unit, factor=self.factor // unit, level=self.level)


SYNC = {"matrix": "M_SYNC", "vector": "V_SYNC", "dma_in": "H_LOAD_SYNC", "dma_out": "H_STORE_SYNC"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """A buffer between two units: the producer takes `free` and gives `full`, the consumer the other way round.

    `ring` numbers the ring of its slots, -1 for a single one.
    """

    producer: str
    consumer: str
    full: int
    free: int
    ring: int


@dataclass(kw_only=True)
class Emitter:
    """Collects instructions; `finish` puts the set-up of the address registers in front."""

    code: list[Instruction] = field(default_factory=list)
    phases: list[tuple[str, int, int]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    _depth: int = 0
    _registers: dict[tuple, int] = field(default_factory=dict)
    _integers: dict[tuple, int] = field(default_factory=dict)
    _initial: list[tuple[str, int]] = field(default_factory=list)
    _rings: int = 0

    def emit(
        self, mnemonic: str, *, wait: int | tuple[int, ...] = (), signal: int | tuple[int, ...] = (), **operands: int
    ) -> None:
        """Append one instruction; `wait` and `signal` are semaphores."""
        waits = (wait,) if isinstance(wait, int) else wait
        signals = (signal,) if isinstance(signal, int) else signal
        ordered = {name: operands.pop(name) for name in BY_MNEMONIC[mnemonic].operands}
        if operands:
            raise ProgramError(f"compiler: {mnemonic} has no operands {sorted(operands)}")
        self.code.append(Instruction(mnemonic=mnemonic, operands=ordered, waits=waits, signals=signals))

    def sync(self, unit: str, *, wait: int | tuple[int, ...] = (), signal: int | tuple[int, ...] = ()) -> None:
        """Let `unit` take or give tokens between two loops."""
        self.emit(SYNC[unit], wait=wait, signal=signal)

    @contextmanager
    def loop(self, trips: int | Trips, *, keep: bool = False, first: int = 0) -> Iterator[Level]:
        """A hardware loop around what is emitted inside; one iteration needs no loop unless `keep`."""
        count = Trips(base=trips) if isinstance(trips, int) else trips
        if count.fixed and count.base == 1 and not keep:
            yield Level(number=None, first=first)
            return
        number = self._depth
        if number >= LOOP_LEVELS:
            raise ProgramError(f"compiler: loops nest deeper than {LOOP_LEVELS} levels")
        if count.fixed:
            start = len(self.code)
            self.emit("C_LOOP", level=number, trips=count.base, length=0)
        else:
            assert count.level is not None
            assert count.level.number is not None
            key = (count.base, count.factor, count.level.number)
            register = self._integers.setdefault(key, len(self._integers))
            if register >= INTEGER_REGISTERS:
                raise ProgramError(f"compiler: more than {INTEGER_REGISTERS} trip counts in registers")
            self.emit("C_AFFINE", register=register, base=count.base, factor=count.factor, level=count.level.number)
            start = len(self.code)
            self.emit("C_LOOP_R", level=number, register=register, length=0)
        self._depth += 1
        yield Level(number=number, first=first)
        self._depth -= 1
        self.emit("C_NEXT", level=number)
        head = self.code[start]
        operands = {**head.operands, "length": len(self.code) - start - 1}
        self.code[start] = Instruction(mnemonic=head.mnemonic, operands=operands)

    def address(
        self, base: int, steps: Sequence[tuple[Level, int]] = (), *, rows: int = 0,
        ring: int | None = None, length: int = 1, ring_stride: int = 0,
    ) -> int:  # fmt: skip
        """Number of the address register with this base, stride per level, row stride and ring; equal ones are shared."""
        strides: dict[int, int] = {}
        for level, stride in steps:
            base += level.first * stride
            if level.number is not None and stride:
                strides[level.number] = strides.get(level.number, 0) + stride
        around = (ring, length, ring_stride) if ring is not None and length > 1 else None
        key = (base, tuple(sorted(strides.items())), rows, around)
        register = self._registers.setdefault(key, len(self._registers))
        if register >= ADDRESS_REGISTERS:
            raise ProgramError(f"compiler: more than {ADDRESS_REGISTERS} address registers are needed")
        return register

    def semaphore(self, name: str, *, unit: str | None = None, initial: int = 0) -> int:
        """A new semaphore; `unit` gives it `initial` tokens before the program starts."""
        number = len(self.names) + 1
        if number > SEMAPHORES:
            raise ProgramError(f"compiler: more than {SEMAPHORES} semaphores are needed")
        self.names[number] = name
        if unit:
            self._initial += [(unit, number)] * initial
        return number

    def channel(self, name: str, producer: str, consumer: str, *, slots: int = 1) -> Channel:
        """A new channel of `slots` buffers; more than one buffer gets a ring."""
        ring = -1
        if slots > 1:
            ring = self._rings
            self._rings += 1
            if ring >= RINGS:
                raise ProgramError(f"compiler: more than {RINGS} rings are needed")
        return Channel(
            producer=producer, consumer=consumer, full=self.semaphore(f"{name}.full"),
            free=self.semaphore(f"{name}.free", unit=consumer, initial=slots), ring=ring,
        )  # fmt: skip

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is emitted inside belongs to the phase `name`."""
        start = len(self.code)
        yield
        self.phases.append((name, start, len(self.code)))

    def finish(self) -> tuple[list[Instruction], tuple[Phase, ...]]:
        """All instructions, set-up first and C_END last, and the phases with their places."""
        body, self.code = self.code, []
        for (base, strides, rows, around), register in self._registers.items():
            self.emit("A_BASE", register=register, base=base)
            for level, stride in strides:
                self.emit("A_STEP", register=register, level=level, stride=stride)
            if rows:
                self.emit("A_ROWS", register=register, stride=rows)
            if around:
                ring, length, stride = around
                self.emit("A_RING", register=register, ring=ring, length=length, stride=stride)
        pending = list(self._initial)
        while pending:
            unit, first = pending.pop(0)
            second = next((entry for entry in pending if entry[0] == unit), None)
            if second:
                pending.remove(second)
            self.sync(unit, signal=(first, second[1]) if second else first)
        offset = len(self.code)
        self.code += body
        self.emit("C_END")
        return self.code, tuple(Phase(name=n, start=a + offset, stop=b + offset) for n, a, b in self.phases)
