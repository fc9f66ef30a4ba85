"""From the tree to instructions: loops, address registers, rings and synchronisation; the set-up of registers comes first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from npu.errors import ProgramError
from npu.isa import BY_MNEMONIC, Instruction
from npu.isa.spec import ADDRESS_REGISTERS, INTEGER_REGISTERS, RINGS
from npu.program import Phase, Tensor
from npu_compiler.knowledge import FRONTEND
from npu_compiler.stages import Advance, Break, Buffer, Count, HandOver, Loop, Node, Op, Place, Stage, Stream
from npu_compiler.tokens import Tokens

SYNC = {"matrix": "M_SYNC", "vector": "V_SYNC", "dma_in": "H_LOAD_SYNC", "dma_out": "H_STORE_SYNC"}
MOST = 2
"""Semaphores that one instruction can wait for, and those that it can signal."""


class RegisterError(ProgramError):
    """A program needs more address registers than there are."""


def emit(
    body: Sequence[Node], tokens: Tokens, addresses: Mapping[Buffer, int]
) -> tuple[list[Instruction], tuple[Phase, ...]]:
    """Instructions of a tree, set-up first and C_END last, and the phases with their places.

    Raises:
        ProgramError: more registers or rings are needed than there are.
    """
    emitter = _Emitter(tokens=tokens, addresses=addresses)
    emitter.nodes(body)
    return emitter.finish()


@dataclass(kw_only=True)
class _Emitter:
    tokens: Tokens
    addresses: Mapping[Buffer, int]
    code: list[Instruction] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    """The phase of each instruction."""
    registers: dict[tuple, int] = field(default_factory=dict)
    integers: dict[tuple, int] = field(default_factory=dict)
    rings: dict[Stream, int] = field(default_factory=dict)

    def nodes(self, body: Sequence[Node], phase: str = "") -> None:
        for node in body:
            match node:
                case Op():
                    self.op(node, phase)
                case Stage():
                    self.stage(node)
                case Loop():
                    self.loop(node, phase)
                case Break():
                    flag = {"level": node.level, "flag": self.register(node.flag)}
                    self.append("C_BREAK_IF", node.phase, flag, waits=self.tokens.waits(node, FRONTEND))
                case Count():
                    operands = {
                        "register": self.trip_register("count"),
                        "at": self.register(node.flag),
                        "most": node.most,
                    }
                    self.append("C_COUNT", node.phase, operands, waits=self.tokens.waits(node, FRONTEND))
                case HandOver():
                    self.op(node.op, node.phase, waits=self.tokens.waits(node, FRONTEND))
                case Advance():
                    self.append("A_NEXT", node.phase, {"ring": self.ring(node.stream)})
                case _:
                    assert_never(node)

    def stage(self, stage: Stage) -> None:
        """The body of a stage: its first instruction waits and its last one signals, or a sync before and behind a loop."""
        waits, signals = self.tokens.waits(stage, stage.unit), self.tokens.signals(stage, stage.unit)
        first, last = stage.body[0], stage.body[-1]
        waits_there = waits if isinstance(first, Op) and len(waits) <= MOST else ()
        signals_there = signals if isinstance(last, Op) and len(signals) <= MOST else ()
        if not waits_there:
            self.sync(stage.unit, stage.phase, waits=waits)
        for node in stage.body:
            if isinstance(node, Op):
                self.op(
                    node, stage.phase, waits=waits_there if node is first else (),
                    signals=signals_there if node is last else (),
                )  # fmt: skip
            else:
                self.nodes([node], stage.phase)
        if not signals_there:
            self.sync(stage.unit, stage.phase, signals=signals)

    def loop(self, loop: Loop, of_stage: str) -> None:
        """A loop and its body; `of_stage` is the phase of the stage that it is in, empty outside of stages."""
        phase = of_stage or loop.phase
        for unit in SYNC:
            self.sync(unit, phase, waits=self.tokens.waits(loop, unit))
        count, waits = loop.trips, self.tokens.waits(loop, FRONTEND)
        assert len(waits) <= MOST, f"the front end waits for {len(waits)} tokens before a loop"
        if count.fixed:
            start = len(self.code)
            self.append("C_LOOP", phase, {"level": loop.level, "trips": count.base, "length": 0}, waits=waits)
        elif count.count is not None:
            start = len(self.code)
            operands = {
                "level": loop.level,
                "register": self.trip_register("count"),
                "unit": count.unit.bit_length() - 1,
            }
            self.append("C_LOOP_N", phase, {**operands, "length": 0}, waits=waits)
        else:
            assert count.level is not None
            assert count.level.number is not None
            register = self.trip_register(count.base, count.factor, count.level.number)
            affine = {"register": register, "base": count.base, "factor": count.factor, "level": count.level.number}
            self.append("C_AFFINE", phase, affine)
            start = len(self.code)
            self.append("C_LOOP_R", phase, {"level": loop.level, "register": register, "length": 0}, waits=waits)
        self.nodes(loop.body, of_stage)
        self.append("C_NEXT", phase, {"level": loop.level})
        head = self.code[start]
        operands = {**head.operands, "length": len(self.code) - start - 1}
        self.code[start] = Instruction(mnemonic=head.mnemonic, operands=operands, waits=head.waits)
        for unit in SYNC:
            self.sync(unit, phase, signals=self.tokens.signals(loop, unit))

    def op(self, op: Op, phase: str, waits: Sequence[int] = (), signals: Sequence[int] = ()) -> None:
        operands = {name: self.register(v) if isinstance(v, Place) else v for name, v in op.operands.items()}
        self.append(op.mnemonic, phase, operands, waits=waits, signals=signals)

    def sync(self, unit: str, phase: str, waits: Sequence[int] = (), signals: Sequence[int] = ()) -> None:
        """Let `unit` take or give tokens, as many at a time as an instruction can."""
        for first in range(0, max(len(waits), len(signals)), MOST):
            part = slice(first, first + MOST)
            self.append(SYNC[unit], phase, {}, waits=waits[part], signals=signals[part])

    def append(
        self, mnemonic: str, phase: str, operands: Mapping[str, int], *, waits: Sequence[int] = (),
        signals: Sequence[int] = (),
    ) -> None:  # fmt: skip
        ordered = {name: operands[name] for name in BY_MNEMONIC[mnemonic].operands}
        self.code.append(Instruction(mnemonic=mnemonic, operands=ordered, waits=tuple(waits), signals=tuple(signals)))
        self.marks.append(phase)

    def register(self, at: Place) -> int:
        """Number of the address register for a place; equal ones are shared."""
        base = at.offset
        if isinstance(at.target, Tensor):
            base += at.target.address
        elif at.target is not None:
            base += self.addresses[at.target]
        stream = at.stream
        around = (self.ring(stream), stream.slots, at.slot_stride) if stream is not None and stream.slots > 1 else None
        register = self.registers.setdefault((base, at.strides, at.rows, around), len(self.registers))
        if register >= ADDRESS_REGISTERS:
            raise RegisterError(f"compiler: more than {ADDRESS_REGISTERS} address registers are needed")
        return register

    def trip_register(self, *count: object) -> int:
        """Number of the integer register for a trip count; equal ones share it, and so do numbers that are read in turn."""
        register = self.integers.setdefault(count, len(self.integers))
        if register >= INTEGER_REGISTERS:
            raise ProgramError(f"compiler: more than {INTEGER_REGISTERS} trip counts in registers")
        return register

    def ring(self, stream: Stream) -> int:
        """Number of a stream's ring."""
        number = self.rings.setdefault(stream, len(self.rings))
        if number >= RINGS:
            raise ProgramError(f"compiler: more than {RINGS} rings are needed")
        return number

    def finish(self) -> tuple[list[Instruction], tuple[Phase, ...]]:
        """Set-up, initial tokens, everything that was emitted, C_END; and the phases."""
        (body, marks), self.code, self.marks = (self.code, self.marks), [], []
        for (base, strides, rows, around), register in self.registers.items():
            self.append("A_BASE", "", {"register": register, "base": base})
            for level, stride in strides:
                self.append("A_STEP", "", {"register": register, "level": level, "stride": stride})
            if rows:
                self.append("A_ROWS", "", {"register": register, "stride": rows})
            if around:
                ring, length, stride = around
                self.append("A_RING", "", {"register": register, "ring": ring, "length": length, "stride": stride})
        for unit in SYNC:
            self.sync(unit, "", signals=self.tokens.initial(unit))
        offset = len(self.code)
        self.code += body
        self.append("C_END", "", {})
        phases, start = [], 0
        for place, mark in enumerate([*marks, None]):
            if place == len(marks) or mark != marks[start]:
                if place > start and marks[start]:
                    phases.append(Phase(name=marks[start], start=start + offset, stop=place + offset))
                start = place
        return self.code, tuple(phases)
