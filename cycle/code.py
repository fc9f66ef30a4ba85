"""The program and the hardware as the compiled machine sees them: records of integers."""

import numpy as np

from cycle.memory import DescriptorCosts
from cycle.schema import record
from npu.errors import ProgramError
from npu.hardware import QUEUED_UNITS, FrontEnd, HardwareConfig
from npu.isa import TABLE, Memory, OpClass, Unit
from npu.isa.spec import SEMAPHORES, ControlKind
from npu.metrics import UNITS
from npu.program import Program
from npu.program.host import host_cycles
from npu.program.tables import QUEUE_OF_UNIT, address_registers, address_steps, bytes_moved, tabulate

VECTOR, DMA_IN, DMA_OUT = (QUEUED_UNITS.index(name) for name in ("vector", "dma_in", "dma_out"))
"""Queues."""
NEITHER, READ, WRITE = -1, 0, 1
"""Directions of a queue's accesses to HBM."""
DIRECTION_OF_QUEUE = {DMA_IN: READ, DMA_OUT: WRITE}
DMA_QUEUES = tuple(DIRECTION_OF_QUEUE)
COMPUTE_QUEUES = tuple(queue for queue in range(len(QUEUED_UNITS)) if queue not in DMA_QUEUES)

CAUSES = (
    "frontend", "semaphore_matrix", "semaphore_vector", "semaphore_dma_in", "semaphore_dma_out", "operand",
    "write_out", "dram_bandwidth", "dram_latency", "dram_row", "dram_refresh", "host", "queue_full", "serial",
    "shared_queue", "drained",
)  # fmt: skip
(FRONTEND, SEMAPHORE, _, _, _, OPERAND, WRITE_OUT, BANDWIDTH, LATENCY, ROW, REFRESH, HOST, QUEUE_FULL, SERIAL,
 SHARED_QUEUE, DRAINED) = range(len(CAUSES))  # fmt: skip
"""Why a unit stands still; a semaphore is named by the queue that gives it: SEMAPHORE + queue."""
BUSY, BEHIND = 0, 1
"""Columns of what a unit does: busy, then BEHIND + cause."""

UNIT_FRONTEND, UNIT_MATRIX, UNIT_VECTOR, UNIT_SCALAR, UNIT_DMA_IN, UNIT_DMA_OUT = range(len(UNITS))

HAND_OVER = int(ControlKind.HOST)

UNIT_OF_QUEUE = tuple(UNITS.index(name) for name in QUEUED_UNITS)

LOCKS = 5
"""Interlocked accesses of one vector or scalar instruction at most."""


LOCK = record("cell", "width", "size", "write")
"""An interlocked access: first cell of its memory in the scoreboard, addresses a cell, addresses touched, written or not."""

INSTRUCTION = record(
    "opcode", "control", "unit", "queue", "direction", "phase", "interval_cycles", "port_cycles", "latency_cycles",
    ("wait", (2,)), ("wait_cause", (2,)), ("signal", (2,)), "moves", "hbm_rows", "hbm_bytes", "period", "stop", "exits",
    "level", "cost", "exit_cost", "host_cost", ("host_bytes", (2,)), "address_cost",
    "addresses", ("register", (LOCKS,)), "locks", ("lock", LOCK, (LOCKS,)),
)  # fmt: skip
"""`control`: a ControlKind, 0 of what is queued. `direction`: READ, WRITE or NEITHER. `interval_cycles`, `port_cycles`: for
which it occupies its unit, and the write-out port. `wait`, `signal`: two semaphores (0: none); `wait_cause`: what waiting for
each counts as. `moves`: whether it accesses HBM (a DMA instruction may be only a sync), with so many rows of so many bytes.
`period` (of what closes a loop): see `periods`; `stop` (its row of STOP, counted from 1): see `stops`; `exits` (of what opens
it): the trace says in which trip it is left. `level`: first operand. `cost`: cycles of the front end; `exit_cost`: those of
what closes a loop and leaves it; `host_cost`: how long it waits for the host, which moves `host_bytes` of HBM by direction;
`address_cost`: how many of its cycles step addresses. `addresses`: how many addresses matter for time, and the `register`s
that they come from: of the access to HBM, or of the `locks` in order."""

FACTS = record("serial", "dispatch", "outstanding", "burst_bytes", ("turnaround", (2,)), "refresh_for",
               "refresh_every", ("depth", (len(QUEUED_UNITS),)))  # fmt: skip
"""The hardware: `turnaround`: cycles of HBM before a READ or WRITE that follows the other; `depth`: places of each queue."""


def code_of(program: Program, hardware: HardwareConfig) -> np.ndarray:
    """The program with the hardware's latencies: INSTRUCTION [n].

    Raises:
        ProgramError: an instruction has two accesses to HBM, for which the machine has one port.
    """
    tables = tabulate(program)
    code = np.zeros(len(program.words), INSTRUCTION)
    code["opcode"], code["control"], code["unit"] = tables.opcode, tables.control, tables.unit
    code["queue"] = QUEUE_OF_UNIT[tables.unit]
    code["phase"], code["level"], code["direction"] = program.phase_of(), tables.operands[:, 0], NEITHER
    for queue, direction in DIRECTION_OF_QUEUE.items():
        code["direction"][code["queue"] == queue] = direction
    for opcode in np.unique(tables.opcode):
        spec = TABLE[int(opcode)]
        if spec.unit in (Unit.MATRIX, Unit.VECTOR, Unit.SCALAR):
            beside = hardware.writes_out_beside and spec.op_class is OpClass.TILE_OUT
            held = "port_cycles" if beside else "interval_cycles"
            code[held][tables.opcode == opcode] = hardware.interval_cycles(spec.mnemonic)
            code["latency_cycles"][tables.opcode == opcode] = hardware.latency_cycles(spec.mnemonic)
    _control_costs(program, hardware.frontend, code)
    code["host_cost"] = host_cycles(program, hardware)
    for direction in (READ, WRITE):
        moved = bytes_moved(program, Memory.HBM, written=direction == WRITE)
        code["host_bytes"][:, direction] = np.where(tables.control == HAND_OVER, moved, 0)
    giver = np.zeros(SEMAPHORES + 1, np.int64)
    giver[tables.signals] = code["queue"][:, None]
    code["wait"], code["signal"] = tables.waits, tables.signals
    code["wait_cause"] = SEMAPHORE + giver[tables.waits]
    (first_cell, width), registers = scoreboard(program, hardware), address_registers(program)
    queues = code["queue"].tolist()
    for number, accesses in enumerate(tables.accesses.tolist()):
        if queues[number] == VECTOR:
            locks: dict[tuple[int, int, int, int], int] = {}  # reading and writing the same place is one access
            for memory, write, register, rows, size in accesses:
                if memory >= 0:
                    reach = (rows - 1) * registers[register].row_stride if rows > 1 else 0
                    place = register, first_cell[memory], width[memory], reach + size
                    locks[place] = locks.get(place, 0) | write
            if locks:
                row = code[number]
                row["addresses"] = row["locks"] = len(locks)
                row["register"][: len(locks)] = [place[0] for place in locks]
                row["lock"][: len(locks)] = [(*place[1:], write) for place, write in locks.items()]
        elif queues[number] in DMA_QUEUES:
            hbm = [(register, rows, size) for memory, _, register, rows, size in accesses if memory == Memory.HBM]
            if len(hbm) > 1:
                raise ProgramError(f"program: instruction {number} has two accesses to HBM")
            for register, rows, size in hbm:
                row = code[number]
                row["moves"], row["hbm_rows"], row["hbm_bytes"] = 1, rows, size
                row["addresses"], row["register"][0] = 1, register
    return code


def _control_costs(program: Program, frontend: FrontEnd, code: np.ndarray) -> None:
    """Fill in `cost`, `exit_cost` and `address_cost`."""
    code["cost"] = [
        frontend.issue_cycles
        if instruction.spec.control is None
        else frontend.control_cycles_of(instruction.spec.control)
        for instruction in program.instructions
    ]
    code["address_cost"] = frontend.address_step_cycles * address_steps(program)
    code["cost"] += code["address_cost"]
    code["exit_cost"] = frontend.exit_cycles + code["address_cost"]


def scoreboard(program: Program, hardware: HardwareConfig) -> tuple[dict[int, int], dict[int, int]]:
    """First cell and addresses per cell of each interlocked memory: rows of VLEN elements, single FP and Int entries."""
    rows = program.geometry["vector_bytes"] // (2 * hardware.vlen) + 1
    entries = program.geometry["fp_bytes"] // 4 + 1
    first = {int(Memory.VECTOR): 0, int(Memory.FP): rows, int(Memory.INT): rows + entries}
    return first, {int(Memory.VECTOR): hardware.vlen, int(Memory.FP): 1, int(Memory.INT): 1}


def facts_of(hardware: HardwareConfig, costs: DescriptorCosts) -> np.ndarray:
    """The hardware in integers: FACTS [1]."""
    facts = np.zeros(1, FACTS)
    facts["serial"] = hardware.execution == "serial"
    facts["dispatch"] = hardware.frontend.dispatch_cycles
    facts["outstanding"], facts["burst_bytes"] = hardware.dma_outstanding, hardware.hbm.burst_bytes
    facts["turnaround"] = costs.turnaround_cycles()
    facts["refresh_for"], facts["refresh_every"] = costs.refresh_cycles()
    facts["depth"] = [hardware.queue_depth[name] for name in QUEUED_UNITS]
    return facts
