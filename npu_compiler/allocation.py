"""Addresses of the buffers in each SRAM, with capacity errors that name phase and limit."""

from collections.abc import Mapping
from dataclasses import dataclass

from npu.errors import CapacityError
from npu.hardware import HardwareConfig
from npu.isa import BYTES_PER_ADDRESS, Memory
from npu.units import format_bytes
from npu_compiler.buffers import Buffers
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


def allocate(buffers: Buffers, hardware: HardwareConfig) -> Allocation:
    """Every buffer behind the one before it.

    Raises:
        CapacityError: naming the phase whose buffer does not fit, the bytes, and the limit.
    """
    addresses: dict[Buffer, int] = {}
    used = dict.fromkeys(CAPACITIES, 0)
    for buffer in buffers.by_name.values():
        memory = buffer.memory
        addresses[buffer], used[memory] = used[memory], used[memory] + buffer.elements
        needed, limit = used[memory] * BYTES_PER_ADDRESS[memory], getattr(hardware.sram, CAPACITIES[memory])
        if needed > limit:
            raise CapacityError(
                f"hardware.sram.{CAPACITIES[memory]}: working set {format_bytes(needed)} exceeds {format_bytes(limit)} "
                f"(phase {buffer.phase}, hardware {hardware.name})"
            )
    used_bytes = {CAPACITIES[memory]: count * BYTES_PER_ADDRESS[memory] for memory, count in used.items()}
    return Allocation(addresses=addresses, used_bytes=used_bytes)
