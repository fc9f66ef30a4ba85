"""Addresses of the buffers in each SRAM: one behind the other where they fit, else those never alive together share bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npu.errors import CapacityError
from npu.hardware import HardwareConfig
from npu.isa import BYTES_PER_ADDRESS, Memory
from npu.units import format_bytes
from npu_compiler.buffers import IN_ATTENTION, Buffers
from npu_compiler.lifetimes import Span, stages_in
from npu_compiler.stages import Buffer

CAPACITIES = {
    Memory.MATRIX: "matrix_bytes", Memory.VECTOR: "vector_bytes", Memory.FP: "fp_bytes", Memory.INT: "int_bytes",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """The address of each buffer, and the bytes used of each SRAM by the name of its capacity."""

    addresses: Mapping[Buffer, int]
    used_bytes: Mapping[str, int]

    def shared(self, first: Buffer, second: Buffer) -> bool:
        """Two buffers of one memory have bytes in common."""
        a, b = self.addresses[first], self.addresses[second]
        return a < b + second.elements and b < a + first.elements


def allocate(
    buffers: Buffers, hardware: HardwareConfig, alive: Mapping[Buffer, Sequence[Span]] | None = None
) -> Allocation:
    """Every buffer behind the one before it; where a memory is too small, by `alive`, the spans in which each is alive.

    Raises:
        CapacityError: naming the phase whose buffer does not fit, the bytes, and the limit.
    """
    addresses: dict[Buffer, int] = {}
    used: dict[str, int] = {}
    for memory, name in CAPACITIES.items():
        members = [each for each in buffers.by_name.values() if each.memory is memory]
        limit = getattr(hardware.sram, name) // BYTES_PER_ADDRESS[memory]
        places = _in_a_row(members)
        if alive is not None and _end(places) > limit:
            places = _by_lifetime(members, alive)
        addresses |= places
        used[name] = _end(places) * BYTES_PER_ADDRESS[memory]
        if _end(places) > limit:
            over = next(each for each in members if places[each] + each.elements > limit)
            raise CapacityError(
                f"hardware.sram.{name}: working set {format_bytes(used[name])} exceeds "
                f"{format_bytes(getattr(hardware.sram, name))} (phase {over.phase}, hardware {hardware.name})"
            )
    return Allocation(addresses=addresses, used_bytes=used)


def matrix_fits(buffers: Buffers, hardware: HardwareConfig) -> bool:
    """Matrix SRAM, whose buffers do not depend on the rows of a chunk, holds them side by side."""
    used = sum(each.elements for each in buffers.by_name.values() if each.memory is Memory.MATRIX)
    return used <= hardware.sram.matrix_bytes


def could_fit(buffers: Buffers, hardware: HardwareConfig) -> bool:
    """FP SRAM holds what every program has alive together in attention, which is known before there is a tree."""
    needed = sum(buffers[Memory.FP, name].elements for name in IN_ATTENTION if (Memory.FP, name) in buffers.by_name)
    return needed <= hardware.sram.fp_bytes // BYTES_PER_ADDRESS[Memory.FP]


def _end(places: Mapping[Buffer, int]) -> int:
    return max((at + buffer.elements for buffer, at in places.items()), default=0)


def _in_a_row(members: Sequence[Buffer]) -> dict[Buffer, int]:
    places, end = {}, 0
    for buffer in members:
        places[buffer], end = end, end + buffer.elements
    return places


def _by_lifetime(members: Sequence[Buffer], alive: Mapping[Buffer, Sequence[Span]]) -> dict[Buffer, int]:
    """The largest first, each at the lowest address at which nothing lies that is alive with it."""
    places: dict[Buffer, int] = {}
    stages = {buffer: stages_in(alive.get(buffer, ())) for buffer in members}
    for buffer in sorted(members, key=lambda each: -each.elements):
        taken = sorted(
            (at, at + other.elements)
            for other, at in places.items()
            if other.elements and stages[buffer] & stages[other]
        )
        at = 0
        for begin, end in taken:
            if at + buffer.elements <= begin:
                break
            at = max(at, end)
        places[buffer] = at
    return places
