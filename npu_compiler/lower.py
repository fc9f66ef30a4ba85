"""Lowering shared by all phases: the builder's context, projections, RMSNorm, and loops over wide rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from dllm.model import ModelSpec
from dllm.workload import Numerics, Workload
from npu.formats import FORMATS, MX_BLOCK
from npu.hardware import HardwareConfig
from npu_compiler.emit import Channel, Emitter, Level
from npu_compiler.layout import CONSTANTS, STREAM_SLOTS, Layout
from npu_compiler.rows import Chunk, Span, times

Steps = Sequence[tuple[Level, int]]
LOG2_ROW_BLOCK = MX_BLOCK.bit_length() - 1
"""Block of rows in BF16, which have no scale: any that divides the row would do."""


def segments(width: int, limit: int) -> list[tuple[int, int, int]]:
    """A row of `width` elements in pieces of at most `limit`: (first element, pieces, elements each)."""
    whole, rest = divmod(width, limit)
    return [part for part in ((0, whole, limit), (whole * limit, 1, rest)) if part[1] * part[2]]


@dataclass(kw_only=True)
class Context:
    """Everything a lowering needs, and the channels between the units."""

    e: Emitter
    model: ModelSpec
    workload: Workload
    hardware: HardwareConfig
    numerics: Numerics
    layout: Layout
    channels: dict[str, Channel]
    semaphores: dict[str, int]

    @property
    def vlen(self) -> int:
        """Lanes of the vector unit."""
        return self.hardware.vlen

    @property
    def smooths(self) -> bool:
        """Whether the cache is smoothed."""
        return bool(self.numerics.smoothing.sides)

    @property
    def centres(self) -> bool:
        """Whether each channel's mean is subtracted before."""
        return self.numerics.smoothing.centres

    @property
    def log2_block(self) -> int:
        """Logarithm of the elements that share a scale."""
        return self.numerics.block_size.bit_length() - 1

    def vector(self, buffer: str, offset: int = 0, steps: Steps = (), *, rows: int = 0, ring: str | None = None,
               ring_stride: int = 0) -> int:  # fmt: skip
        """Address register into a buffer of Vector SRAM."""
        number = self.channels[ring].ring if ring else None
        return self.e.address(
            self.layout.vector[buffer] + offset, list(steps), rows=rows, ring=number, length=STREAM_SLOTS,
            ring_stride=ring_stride,
        )  # fmt: skip

    def fp(self, name: str, offset: int = 0, steps: Steps = ()) -> int:
        """Address register into FP SRAM; names of constants are known too."""
        if name in CONSTANTS:
            return self.e.address(self.layout.fp["constants"] + CONSTANTS.index(name))
        return self.e.address(self.layout.fp[name] + offset, list(steps))

    def integer(self, name: str, offset: int = 0, steps: Steps = ()) -> int:
        """Address register into Int SRAM."""
        return self.e.address(self.layout.integer[name] + offset, list(steps))

    def hbm(self, name: str, offset: int = 0, steps: Steps = (), *, rows: int = 0) -> int:
        """Address register into a tensor in HBM; offsets and strides in bytes."""
        return self.e.address(self.layout.tensor(name).address + offset, list(steps), rows=rows)

    @contextmanager
    def chunks(self, span: Span, block: Level) -> Iterator[Chunk]:
        """Loops over the chunks of a pass."""
        with self.e.loop(span.sequence_chunks) as batch_loop, self.e.loop(span.row_chunks) as row_loop:
            yield Chunk(span=span, block=block, batch_loop=batch_loop, row_loop=row_loop)

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
        facts, unit = self.layout.tensor(tensor), self.workload.block_length
        sequence_bytes = facts.stride_bytes(0)
        with chunk.runs(self.e, unit) as (rows, local, canvas):
            steps = chunk.canvas_steps(facts.row_bytes, sequence_bytes)
            steps += [(level, seq * sequence_bytes + row * facts.row_bytes) for level, seq, row in canvas]
            outside = self.hbm(tensor, chunk.span.first * facts.row_bytes, steps, rows=facts.row_bytes)
            inside = self.vector(buffer, offset, times(local, pitch), rows=pitch)
            dst, src = (inside, outside) if mnemonic == "H_LOAD_V" else (outside, inside)
            self.e.emit(
                mnemonic, dst=dst, src=src, rows=rows, cols=width, format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK,
            )  # fmt: skip

    def load_valid(self, chunk: Chunk) -> None:
        """1 for each row of a chunk, 0 for one of padding, to FP SRAM; where the span has padding."""
        if not chunk.span.has_padding:
            return
        valid = self.layout.tensor("valid")
        with chunk.runs(self.e, self.workload.block_length) as (rows, local, canvas):
            steps = chunk.canvas_steps(4, valid.row_bytes) + [(lv, s * valid.row_bytes + r * 4) for lv, s, r in canvas]
            self.e.emit("H_LOAD_F", dst=self.fp("valid", 0, local), src=self.hbm("valid", chunk.span.first * 4, steps),
                        n=rows)  # fmt: skip

    def load_row(self, tensor: str, buffer: str, width: int, steps: Steps = ()) -> None:
        """Load one BF16 row of `width` elements (norm weights)."""
        self.e.emit(
            "H_LOAD_V", dst=self.vector(buffer), src=self.hbm(tensor, 0, steps), rows=1, cols=width,
            format=FORMATS["bf16"].code, block=LOG2_ROW_BLOCK,
        )  # fmt: skip

    def rms_norm(self, chunk: Chunk, source: str, target: str, *, zero_padding: bool = False) -> None:
        """target := source / rms(source) * norm_weight for each row; rows of padding become zero if asked for."""
        e, width, tile = self.e, self.model.hidden, self.layout.tiling.row_tile

        def each(mnemonic: str, **operands: int | str) -> None:
            with chunk.each(e, tile) as rows:
                total = self.fp("square_sum", 0, rows)
                e.emit(
                    mnemonic, **{name: total if isinstance(value, str) else value for name, value in operands.items()}
                )

        each("S_MOV_FP", dst="sum", a=self.fp("zero"))
        for offset, piece, lanes in self.wide(width):
            with chunk.each(e, tile) as rows:
                row = self.vector(source, offset, [*piece, *times(rows, width)])
                e.emit("V_RED_SUMSQ", dst=self.fp("square_sum", 0, rows), a=row, n=lanes)
        each("S_MUL_FP", dst="sum", a="sum", b=self.fp("inverse_hidden"))
        each("S_ADD_FP", dst="sum", a="sum", b=self.fp("epsilon"))
        each("S_RSQRT_FP", dst="sum", a="sum")
        if zero_padding:
            with chunk.each(e, tile) as rows:
                total = self.fp("square_sum", 0, rows)
                e.emit("S_MUL_FP", dst=total, a=total, b=self.fp("valid", 0, rows))
        for offset, piece, lanes in self.wide(width):
            with chunk.each(e, tile) as rows:
                steps = [*piece, *times(rows, width)]
                e.emit("V_MUL_VF", dst=self.vector(target, offset, steps), a=self.vector(source, offset, steps),
                       scalar=self.fp("square_sum", 0, rows), n=lanes)  # fmt: skip
            with chunk.each(e, tile) as rows:
                normed = self.vector(target, offset, [*piece, *times(rows, width)])
                weight = self.vector("norm_weight", offset, piece)
                e.emit("V_MUL_VV", dst=normed, a=normed, b=weight, n=lanes)

    def project(
        self, chunk: Chunk, *, weights: str, first_row: int = 0, outputs: int, inputs: int, acts: str, dst: str,
        dst_width: int, steps: Steps = (), ring: str | None = None, ring_stride: int = 0,
    ) -> None:  # fmt: skip
        """dst[:, :outputs] := acts @ weights^T: panels of BLEN output columns stream through the array.

        `steps` are strides of the weights in bytes (layer, slice); `ring` alternates dst between stream buffers.
        """
        e, tiling, channel = self.e, self.layout.tiling, self.channels["weights"]
        columns, facts = self.hardware.blen, self.layout.tensor(weights)
        panel, row_bytes, size = columns * facts.row_bytes, facts.row_bytes, FORMATS[self.numerics.weights]
        block = self.numerics.block_size
        record = size.record_bytes(block)
        slot = self.layout.matrix["weights"]
        buffer_stride = columns * max(self.layout.tensor(name).row_bytes for name in ("w_qkv", "w_out", "w_down"))
        slotted = partial(e.address, ring=channel.ring, length=STREAM_SLOTS, ring_stride=buffer_stride)
        with e.loop(outputs // columns) as n:
            source = self.hbm(weights, first_row * row_bytes, [*steps, (n, panel)])
            e.emit("H_LOAD_M", dst=slotted(slot), src=source, rows=1, row_bytes=panel,
                   wait=channel.free, signal=channel.full)  # fmt: skip
            e.sync("matrix", wait=channel.full)
            with chunk.tiles(e, tiling.row_tile) as rows:
                for offset, count, k in segments(inputs, self.hardware.mlen):
                    with e.loop(count) as piece:
                        e.emit(
                            "M_MM",
                            weights=slotted(
                                slot + offset // block * record,
                                [(piece, k // block * record)],
                                rows=row_bytes,
                            ),
                            acts=self.vector(acts, offset, [(piece, k), *times(rows, inputs)], rows=inputs),
                            rows=tiling.row_tile, cols=columns, k=k, block=self.log2_block, weight_format=size.code,
                            act_format=FORMATS[self.numerics.activations].code, block_stride=record,
                        )  # fmt: skip
                out = self.vector(dst, 0, [(n, columns), *times(rows, dst_width)], rows=dst_width, ring=ring,
                                  ring_stride=ring_stride)  # fmt: skip
                e.emit("M_OUT", dst=out, rows=tiling.row_tile, cols=columns)
            e.sync("matrix", signal=channel.free)
            e.emit("A_NEXT", ring=channel.ring)

    def add_rows(self, chunk: Chunk, target: str, source: str, width: int) -> None:
        """target += source for each row."""
        for offset, piece, lanes in self.wide(width):
            with chunk.each(self.e, self.layout.tiling.row_tile) as rows:
                steps = [*piece, *times(rows, width)]
                total = self.vector(target, offset, steps)
                self.e.emit("V_ADD_VV", dst=total, a=total, b=self.vector(source, offset, steps), n=lanes)
