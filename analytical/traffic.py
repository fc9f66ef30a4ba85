"""HBM traffic by tensor: which bytes of a run are weights, which are cache, which are logits."""

from bisect import bisect_right

import numpy as np

from npu.isa import Memory
from npu.metrics import Table
from npu.program import Program, fact_of_program
from npu.program.tables import Access, address_registers, tabulate


def traffic_of(program: Program, retired: np.ndarray) -> Table:
    """Bytes of each tensor in HBM, and bytes that a run reads and writes of it; instruction i retired `retired[i]` times."""
    number, tensor, written, moved = _accesses(program).T
    moved = moved * retired[number]
    rows = []
    for place, each in enumerate(program.hbm):
        read, wrote = (int(moved[(tensor == place) & (written == of)].sum()) for of in (0, 1))
        rows.append([each.name, each.size_bytes, read, wrote])
    return Table(
        columns=["tensor", "bytes", "bytes read", "bytes written"], rows=[row for row in rows if row[2] or row[3]]
    )


@fact_of_program
def _accesses(program: Program) -> np.ndarray:
    """The accesses to HBM (int64 [n, 4]): instruction, the tensor in whose bytes it begins, 1 of a write, bytes."""
    accesses, registers = tabulate(program).accesses, address_registers(program)
    inside = accesses[:, :, Access.MEMORY] == Memory.HBM
    starts = [tensor.address for tensor in program.hbm]
    found = []
    for number, slot in np.argwhere(inside).tolist():
        _, write, register, rows, size = accesses[number, slot].tolist()
        found.append((number, bisect_right(starts, registers[register].base) - 1, write, rows * size))
    return np.array(found, np.int64).reshape(-1, 4)
