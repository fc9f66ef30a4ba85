"""Lowering shared by all operators: addresses into buffers and tensors, loops over rows, moves, norms and projections."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dllm.constants import CONSTANTS, further_constants
from dllm.model import Geometry, ModelSpec
from dllm.network import Group
from dllm.numerics import Numerics
from dllm.workload import Workload
from npu.formats import FORMATS, MX_BLOCK
from npu.hardware import HardwareConfig
from npu.isa import Memory
from npu.program import Tensor
from npu_compiler.buffers import Buffers
from npu_compiler.flow import Flow
from npu_compiler.memory import BEFORE_X
from npu_compiler.rows import Chunk, Span, segments, times
from npu_compiler.stages import Place, Steps, Tree, place
from npu_compiler.tiling import Tiling

LOG2_ROW_BLOCK = MX_BLOCK.bit_length() - 1
"""Block of rows in BF16, which have no scale: any that divides the row would do."""


@dataclass(kw_only=True)
class Context:
    """Everything a lowering needs, and the tree that it builds; `vocab`: rows of the vocabulary without those that fill it up;
    `step`: strides in streams of random numbers that follow the block and its step, `cooling` those of its temperature; `clean`:
    a pass over finished tokens."""

    e: Tree
    model: ModelSpec
    vocab: int
    workload: Workload
    hardware: HardwareConfig
    numerics: Numerics
    tiling: Tiling
    tensors: dict[str, Tensor]
    buffers: Buffers
    geometry: Geometry
    step: Steps = ()
    cooling: Steps = ()
    clean: bool = False

    def within(self, group: Group) -> "Context":
        """The same inside of a group of layers, with the attention that these have."""
        (geometry,) = (each for each in self.model.geometries if each.name == group.geometry)
        return self if geometry == self.geometry else replace(self, geometry=geometry)

    @property
    def vlen(self) -> int:
        """Lanes of the vector unit."""
        return self.hardware.vlen

    @property
    def smooths(self) -> bool:
        """The cache is smoothed."""
        return bool(self.numerics.smoothing.sides)

    @property
    def centres(self) -> bool:
        """Each channel's mean is subtracted before."""
        return self.numerics.smoothing.centres

    @property
    def measures_entropy(self) -> bool:
        """Sampling also gives the entropy of each position."""
        return self.workload.commits.measures_entropy

    @property
    def conditions(self) -> bool:
        """A denoising pass reads the soft tokens of the step before."""
        return bool(self.model.network.conditioning)

    @property
    def stops(self) -> bool:
        """The generation may end before its last block."""
        return self.workload.stop_at_end and self.tiling.blocks > 1

    @property
    def log2_block(self) -> int:
        """Logarithm of the elements that share a scale."""
        return self.numerics.block_size.bit_length() - 1

    def tensor(self, name: str) -> Tensor:
        """The HBM tensor of that name, or that of the layers' kind of attention where each kind has its own."""
        return self.tensors.get(self.geometry.tensor(name)) or self.tensors[name]

    def vector(self, buffer: str, offset: int = 0, steps: Steps = (), *, rows: int = 0, slot_stride: int = 0) -> Place:
        """A place in a buffer of Vector SRAM; `slot_stride` lies between the slots of one that belongs to a stream."""
        return place(self.buffers[Memory.VECTOR, buffer], offset, steps, rows=rows, slot_stride=slot_stride)

    def fp(self, name: str, offset: int = 0, steps: Steps = ()) -> Place:
        """A place in FP SRAM; names of constants are known too."""
        if name in CONSTANTS:
            return place(self.buffers[Memory.FP, "constants"], list(CONSTANTS).index(name))
        if (Memory.FP, name) in self.buffers.by_name:
            return place(self.buffers[Memory.FP, name], offset, steps)
        further = list(further_constants(self.model))
        return place(self.buffers[Memory.FP, "further_constants"], further.index(name))

    def integer(self, name: str, offset: int = 0, steps: Steps = ()) -> Place:
        """A place in Int SRAM."""
        return place(self.buffers[Memory.INT, name], offset, steps)

    def matrix(self, name: str, offset: int = 0, steps: Steps = (), *, rows: int = 0) -> Place:
        """A place in a buffer of Matrix SRAM, in bytes."""
        buffer = self.buffers[Memory.MATRIX, name]
        slots = buffer.stream.slots if buffer.stream else 1
        return place(buffer, offset, steps, rows=rows, slot_stride=buffer.elements // slots)

    def hbm(self, name: str, offset: int = 0, steps: Steps = (), *, rows: int = 0) -> Place:
        """A place in a tensor in HBM; offsets and strides in bytes."""
        before = self.tensor(BEFORE_X).row_bytes if name == "x" and BEFORE_X in self.tensors else 0
        return place(self.tensor(name), offset, steps, rows=rows, before=before)

    def stream(self, positions: Steps) -> Place:
        """The stream of random numbers of a position of the batch's blocks, at the present step."""
        return self.number(0, [*times(positions, self.workload.streams), *self.step])

    def number(self, first: int, steps: Steps = ()) -> Place:
        """A plain number that follows the loops, in place of an address."""
        return place(None, first, steps)

    def advance(self, stream: str) -> None:
        """Go on to the next slot of a stream."""
        self.e.advance(self.buffers.streams[stream])

    def keeps(self, span: Span) -> bool:
        """The rows of a span stay in Vector SRAM from layer to layer: they are one chunk, of as many rows every time."""
        return self.tiling.arrangement.keeps_rows and span.is_one_chunk

    def chunks(self, span: Span) -> Iterator[Chunk]:
        """Loops over the chunks of a pass; yields once inside of each: emit the body every time."""
        for part in span.parts:
            with self.e.loop(part.sequence_chunks) as batch_loop, self.e.loop(part.row_chunks) as row_loop:
                yield Chunk(span=span, part=part, batch_loop=batch_loop, row_loop=row_loop)

    def wide(self, width: int) -> Iterator[tuple[int, Steps, int]]:
        """Emit the body once per kind of piece of a row of `width`: yields (offset, strides, lanes) inside a loop."""
        for first, count, lanes in segments(width, self.vlen):
            with self.e.loop(count) as piece:
                yield first, [(piece, lanes)], lanes

    def transfer_rows(
        self, chunk: Chunk, mnemonic: str, tensor: str, buffer: str, width: int, *, offset: int = 0,
        pitch: int | None = None,
    ) -> None:  # fmt: skip
        """Move rows of a [batch, canvas, width] BF16 tensor between HBM and a chunk buffer.

        In the buffer they lie `pitch` elements apart (None: `width`), from column `offset` on.
        """
        pitch = pitch or width
        facts = self.tensor(tensor)
        sequence_bytes = facts.stride_bytes(0)
        with chunk.runs(self.e) as (rows, local, canvas):
            steps = chunk.canvas_steps(facts.row_bytes, sequence_bytes)
            steps += [(level, seq * sequence_bytes + row * facts.row_bytes) for level, seq, row in canvas]
            outside = self.hbm(tensor, 0, steps, rows=facts.row_bytes)
            inside = self.vector(buffer, offset, times(local, pitch), rows=pitch)
            dst, src = (inside, outside) if mnemonic == "H_LOAD_V" else (outside, inside)
            self.e.emit(
                mnemonic, dst=dst, src=src, rows=rows, cols=width, format=FORMATS["bf16"].code,
                block=math.gcd(width, MX_BLOCK).bit_length() - 1,
            )  # fmt: skip

    def load_valid(self, chunk: Chunk) -> None:
        """1 for each row of a chunk, 0 for one of padding, to FP SRAM; where the span has padding."""
        if not chunk.has_padding:
            return
        valid = self.tensor("valid")
        with chunk.runs(self.e) as (rows, local, canvas):
            steps = chunk.canvas_steps(4, valid.row_bytes) + [(lv, s * valid.row_bytes + r * 4) for lv, s, r in canvas]
            self.e.emit("H_LOAD_F", dst=self.fp("valid", 0, local), src=self.hbm("valid", 0, steps), n=rows)

    def load_row(self, flow: Flow, weight: str, buffer: str, width: int, offset: int = 0) -> None:
        """Load one BF16 row of `width` elements, a weight of the operators, to a buffer from column `offset` on."""
        tensor = flow.tensor(weight)
        source = self.hbm(tensor, 0, flow.layers(self.tensor(tensor).row_bytes))
        self.e.emit(
            "H_LOAD_V", dst=self.vector(buffer, offset), src=source, rows=1, cols=width,
            format=FORMATS["bf16"].code, block=math.gcd(width, MX_BLOCK).bit_length() - 1,
        )  # fmt: skip

    def rms_norm(self, flow: Flow, source: str, target: str, weight: str = "", first: int = 0) -> None:
        """target := source / rms(source) * weight for each row, the weight from column `first` of its buffer on (none where it
        has no name); where the flow says so, rows of padding become zero."""
        e, width, chunk = self.e, self.model.hidden, flow.chunk

        each = e.one_by_one(lambda: chunk.each(e), lambda rows: {"sum": self.fp("square_sum", 0, rows)})
        each("S_MOV_FP", dst="sum", a=self.fp("zero"))
        for offset, piece, lanes in self.wide(width):
            with chunk.each(e) as rows:
                row = self.vector(source, offset, [*piece, *times(rows, width)])
                e.emit("V_RED_SUMSQ", dst=self.fp("square_sum", 0, rows), a=row, n=lanes)
        each("S_MUL_FP", dst="sum", a="sum", b=self.fp("inverse_hidden"))
        each("S_ADD_FP", dst="sum", a="sum", b=self.fp("epsilon"))
        each("S_RSQRT_FP", dst="sum", a="sum")
        if flow.zero_padding:
            with chunk.each(e) as rows:
                total = self.fp("square_sum", 0, rows)
                e.emit("S_MUL_FP", dst=total, a=total, b=self.fp("valid", 0, rows))
        for offset, piece, lanes in self.wide(width):
            with chunk.each(e) as rows:
                steps = [*piece, *times(rows, width)]
                e.emit("V_MUL_VF", dst=self.vector(target, offset, steps), a=self.vector(source, offset, steps),
                       scalar=self.fp("square_sum", 0, rows), n=lanes)  # fmt: skip
            if not weight:
                continue
            with chunk.each(e) as rows:
                normed = self.vector(target, offset, [*piece, *times(rows, width)])
                factor = self.vector(weight, first + offset, piece)
                e.emit("V_MUL_VV", dst=normed, a=normed, b=factor, n=lanes)

    def project(
        self, flow: Flow, *, weights: str, first_row: int = 0, outputs: int, inputs: int, dst: str, acts: str = "",
        steps: Steps = (), slot_stride: int = 0, activations: str = "", pitch: int | None = None,
    ) -> None:  # fmt: skip
        """dst[:, :outputs] := acts @ weights^T: panels of BLEN output columns stream through the array; rows of `dst` lie `pitch`
        elements apart (None: `outputs`).

        `acts` are the flow's value unless named, `activations` the format that the numerics say unless named; `steps` are
        strides of the weights in rows (slice, expert).
        """
        acts, name, pitch = acts or flow.value, flow.tensor(weights), pitch or outputs
        e, columns, facts = self.e, math.gcd(self.hardware.blen, outputs), self.tensor(name)
        moves = [*flow.layers(facts.stride_bytes(0)), *times(steps, facts.row_bytes)]
        panel, row_bytes = columns * facts.row_bytes, facts.row_bytes
        with e.loop(outputs // columns) as n:
            with e.stage(f"load {weights}"):
                source = self.hbm(name, first_row * row_bytes, [*moves, (n, panel)])
                e.emit("H_LOAD_M", dst=self.matrix("weights"), src=source, rows=1, row_bytes=panel)
            with e.stage(f"times {weights}"):
                for at, rows in flow.rows.tiles(e, self.hardware.blen):
                    self.accumulate(
                        name, rows=rows, columns=columns, inputs=inputs, activations=activations,
                        weights=lambda offset, step: self.matrix("weights", offset, step, rows=row_bytes),
                        acts=lambda offset, step, at=at: self.vector(
                            acts, offset, [*step, *times(at, inputs)], rows=inputs
                        ),
                    )  # fmt: skip
                    out = self.vector(dst, 0, [(n, columns), *times(at, pitch)], rows=pitch, slot_stride=slot_stride)
                    e.emit("M_OUT", dst=out, rows=rows, cols=columns)
            self.advance("weights")

    def accumulate(
        self, name: str, *, rows: int, columns: int, inputs: int, weights: Callable[[int, Steps], Place],
        acts: Callable[[int, Steps], Place], activations: str = "",
    ) -> None:  # fmt: skip
        """A tile of products into the accumulators, MLEN of the contraction at a time.

        `weights` and `acts` give the place of a piece: of the weight `name` in bytes, of activations in elements.
        """
        facts = self.tensor(name)
        size, quantised, block = FORMATS[facts.format], FORMATS[activations or self.numerics.activations], facts.block
        record = size.record_bytes(block)
        for offset, count, k in segments(inputs, self.hardware.mlen):
            with self.e.loop(count) as piece:
                self.e.emit(
                    "M_MM", weights=weights(offset // block * record, [(piece, k // block * record)]),
                    acts=acts(offset, [(piece, k)]), rows=rows, cols=columns, k=k, block=block.bit_length() - 1,
                    weight_format=size.code, act_format=quantised.code, block_stride=record,
                )  # fmt: skip

    def scale_rows(self, chunk: Chunk, target: str, width: int, factor: str) -> None:
        """target *= a number of FP SRAM for each row."""
        for offset, piece, lanes in self.wide(width):
            with chunk.each(self.e) as rows:
                row = self.vector(target, offset, [*piece, *times(rows, width)])
                self.e.emit("V_MUL_VF", dst=row, a=row, scalar=self.fp(factor), n=lanes)

    def add_rows(self, chunk: Chunk, target: str, source: str, width: int) -> None:
        """target += source for each row."""
        for offset, piece, lanes in self.wide(width):
            with chunk.each(self.e) as rows:
                steps = [*piece, *times(rows, width)]
                total = self.vector(target, offset, steps)
                self.e.emit("V_ADD_VV", dst=total, a=total, b=self.vector(source, offset, steps), n=lanes)
