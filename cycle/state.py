"""What the compiled machine works on: the program and the hardware as flat integers, its state, and what it counts.

Few and flat arrays, with named columns: handing an array to a compiled function costs as much as an instruction's work.
"""

from collections import namedtuple

import numpy as np

from npu.errors import ProgramError
from npu.hardware import QUEUED_UNITS, FrontEnd, HardwareConfig
from npu.isa import TABLE, Memory, Unit
from npu.isa.spec import SEMAPHORES
from npu.metrics import UNITS
from npu.program import Program
from npu.program.tables import QUEUE_OF_UNIT, address_steps, tabulate

MATRIX, VECTOR, DMA_IN, DMA_OUT = range(4)
"""Queues."""

CAUSES = (
    "frontend", "semaphore_matrix", "semaphore_vector", "semaphore_dma_in", "semaphore_dma_out", "operand",
    "dram_bandwidth", "dram_latency", "dram_row", "dram_refresh", "queue_full", "serial", "shared_queue", "drained",
)  # fmt: skip
(FRONTEND, SEMAPHORE, _, _, _, OPERAND, BANDWIDTH, LATENCY, ROW, REFRESH, QUEUE_FULL, SERIAL, SHARED_QUEUE,
 DRAINED) = range(len(CAUSES))  # fmt: skip
"""Why a unit stands still; a semaphore is named by the queue that gives it: SEMAPHORE + queue."""

UNIT_FRONTEND, UNIT_MATRIX, UNIT_VECTOR, UNIT_SCALAR, UNIT_DMA_IN, UNIT_DMA_OUT = range(len(UNITS))

# Columns of the code, one row an instruction.
LOCKS = 5
"""Interlocked accesses of one vector or scalar instruction at most."""
(OPCODE, UNIT, QUEUE, PHASE, INTERVAL_CYCLES, LATENCY_CYCLES, WAIT, _, WAIT_CAUSE, _, SIGNAL, _, MOVES, HBM, HBM_ROWS,
 HBM_BYTES, PERIOD, EXITS, LEVEL, COST, EXIT_COST, ADDRESS_COST, LOCK_COUNT, LOCK) = range(24)  # fmt: skip
"""WAIT, SIGNAL: two semaphores (0: none); WAIT_CAUSE: what waiting for each counts as. MOVES: whether a DMA instruction
moves data (and is not only a sync). HBM: the address register of its access to HBM, or -1, and the rows and bytes a row.
PERIOD, EXITS (C_NEXT only): see `fastforward`. LEVEL: first operand. COST: cycles of the front end; EXIT_COST: those of a
C_NEXT that leaves; ADDRESS_COST: how many of them step addresses. LOCK: LOCK_COUNT groups of the next five."""
LOCK_REGISTER, LOCK_CELL, LOCK_WIDTH, LOCK_SIZE, LOCK_WRITE, LOCK_COLUMNS = range(6)
"""Address register; first cell of the memory in the scoreboard; addresses a cell; addresses touched; written or not."""
CODE_COLUMNS = LOCK + LOCKS * LOCK_COLUMNS

# Places in the facts.
SERIAL_MODE, OUTSTANDING, BURST_BYTES, TURN_TO_WRITE, TURN_TO_READ, REFRESH_FOR, REFRESH_EVERY, DISPATCH, DEPTH = range(
    9
)
FACTS = DEPTH + len(QUEUED_UNITS)

# Places in the state's scalars.
(NOW, FRONTIER, ENTERED, EVENTS, LOGGED, PENDING, SKIPPED, BUS_FREE, BUS_WRITES, MISSING, WINDOW_FROM, WINDOW_TO,
 SCALARS) = range(13)  # fmt: skip
"""The front end's time; the latest end; trace entries used; events recorded; entries of the log; the queue of the
instruction that serial execution waits for (-1: none); instructions skipped; when HBM is free, and whether it wrote last;
the line of `memory.Memory` that is missing; the cycles whose instructions are recorded."""

# Columns of a unit, of a place in its queue, of a semaphore, of the log.
HEAD, COUNT, FREE, RETIRE, ISSUED, FLIGHTS, FLIGHT = range(7)
ENTRY, ARRIVAL, SLOT_FREE, PLACE = range(4)
GIVEN, TAKEN, TOKEN = range(3)
LOG_PC, LOG_END, LOG_RETIRE, LOG_PLACE = range(4)
TOKENS, LOG = 1024, 2048
"""Tokens that one semaphore can hold; results in flight that the log remembers."""

State = namedtuple("State", "scalars unit queue semaphore log ready")
"""`scalars`; `unit` [4]: HEAD and COUNT of what waits in its queue, when it is FREE, when all it began is retired, when
its last descriptor ISSUED, and a ring of the ends of descriptors in FLIGHT (the oldest is FLIGHTS); `queue` [4, depth]: a
ring of instruction (ENTRY), ARRIVAL, when the place was last given free, and addresses; `semaphore` [64]: how many tokens
were GIVEN and TAKEN, and a ring of their times; `log`: the last vector and scalar instructions, their ends, when
everything up to them is over, their addresses; `ready`: the scoreboard."""

# Columns of what is counted, one row a phase.
CYCLES, BUSY = 0, 1
STALL = BUSY + len(UNITS)
TRAFFIC_BYTES = STALL + len(UNITS) * len(CAUSES)
TRAFFIC_BURSTS = TRAFFIC_BYTES + 2
ADDRESS, COUNTERS = TRAFFIC_BURSTS + 2, TRAFFIC_BURSTS + 3
N_CAUSES = len(CAUSES)

Statistics = namedtuple("Statistics", "retired phase")
"""What is counted, all of it additive over time: `retired` [n]; `phase` [phases, COUNTERS]: its CYCLES; BUSY + unit;
STALL + unit * N_CAUSES + cause, in cycles; TRAFFIC_BYTES and TRAFFIC_BURSTS + direction; ADDRESS: cycles of the
front end that step addresses."""

EVENT_COLUMNS = ("instruction", "unit", "dispatched", "start", "end", "bytes")


def code_of(program: Program, hardware: HardwareConfig) -> np.ndarray:
    """The program as the machine sees it, with the hardware's latencies: int64 [n, CODE_COLUMNS].

    Raises:
        ProgramError: an instruction has two accesses to HBM, for which the machine has one port.
    """
    tables = tabulate(program)
    code = np.zeros((len(program.words), CODE_COLUMNS), np.int64)
    code[:, OPCODE], code[:, UNIT], code[:, QUEUE] = tables.opcode, tables.unit, QUEUE_OF_UNIT[tables.unit]
    code[:, PHASE], code[:, LEVEL], code[:, HBM] = program.phase_of(), tables.operands[:, 0], -1
    for opcode in np.unique(tables.opcode):
        spec = TABLE[int(opcode)]
        if spec.unit in (Unit.MATRIX, Unit.VECTOR, Unit.SCALAR):
            code[tables.opcode == opcode, INTERVAL_CYCLES] = hardware.interval_cycles(spec.mnemonic)
            code[tables.opcode == opcode, LATENCY_CYCLES] = hardware.latency_cycles(spec.mnemonic)
    _control_costs(program, hardware.frontend, code)
    giver = np.zeros(SEMAPHORES + 1, np.int64)
    giver[tables.signals] = code[:, QUEUE, None]
    code[:, WAIT : WAIT + 2], code[:, SIGNAL : SIGNAL + 2] = tables.waits, tables.signals
    code[:, WAIT_CAUSE : WAIT_CAUSE + 2] = SEMAPHORE + giver[tables.waits]
    first_cell, width = scoreboard(program, hardware)
    for number, accesses in enumerate(tables.accesses.tolist()):
        row = code[number]
        for memory, write, register, rows, size in accesses:
            if memory < 0:
                continue
            if row[QUEUE] == VECTOR:
                _lock(row, register, first_cell[memory], width[memory], size, write)
            elif row[QUEUE] >= DMA_IN:
                row[MOVES] = 1
                if memory == Memory.HBM:
                    if row[HBM] >= 0:
                        raise ProgramError(f"program: instruction {number} has two accesses to HBM")
                    row[HBM : HBM_BYTES + 1] = register, rows, size
    return code


def _control_costs(program: Program, frontend: FrontEnd, code: np.ndarray) -> None:
    """Fill the columns COST, EXIT_COST and ADDRESS_COST."""
    for number, instruction in enumerate(program.instructions):
        queued = instruction.spec.unit is not Unit.FRONTEND
        cost = frontend.issue_cycles if queued else frontend.control_cycles_of(instruction.mnemonic)
        code[number, COST], code[number, EXIT_COST] = cost, frontend.exit_cycles
    code[:, ADDRESS_COST] = frontend.address_step_cycles * address_steps(program)
    code[:, COST] += code[:, ADDRESS_COST]
    code[:, EXIT_COST] += code[:, ADDRESS_COST]


def _lock(row: np.ndarray, *access: int) -> None:
    """Add an interlocked access to a row of the code; reading and writing the same place is one access."""
    locks = row[LOCK:].reshape(LOCKS, LOCK_COLUMNS)
    for lock in locks[: row[LOCK_COUNT]]:
        if tuple(lock[:LOCK_WRITE]) == access[:LOCK_WRITE]:
            lock[LOCK_WRITE] |= access[LOCK_WRITE]
            return
    locks[row[LOCK_COUNT]] = access
    row[LOCK_COUNT] += 1


def scoreboard(program: Program, hardware: HardwareConfig) -> tuple[dict[int, int], dict[int, int]]:
    """First cell and addresses per cell of each interlocked memory: rows of VLEN elements, single FP and Int entries."""
    rows = program.geometry["vector_bytes"] // (2 * hardware.vlen) + 1
    entries = program.geometry["fp_bytes"] // 4 + 1
    first = {int(Memory.VECTOR): 0, int(Memory.FP): rows, int(Memory.INT): rows + entries}
    return first, {int(Memory.VECTOR): hardware.vlen, int(Memory.FP): 1, int(Memory.INT): 1}


def facts_of(hardware: HardwareConfig) -> np.ndarray:
    """The hardware in integers."""
    facts = np.zeros(FACTS, np.int64)
    facts[SERIAL_MODE] = hardware.execution == "serial"
    facts[DISPATCH] = hardware.frontend.dispatch_cycles
    facts[OUTSTANDING] = hardware.dma_outstanding
    facts[BURST_BYTES] = hardware.hbm.burst_bytes
    facts[DEPTH:] = [hardware.queue_depth[name] for name in QUEUED_UNITS]
    return facts


def new_state(program: Program, hardware: HardwareConfig, window: tuple[int, int]) -> State:
    """The machine before its first cycle."""
    first, _ = scoreboard(program, hardware)
    cells = first[int(Memory.INT)] + program.geometry["int_bytes"] // 4 + 1
    depth = max(hardware.queue_depth.values())

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    state = State(
        zeros(SCALARS), zeros(4, FLIGHT + hardware.dma_outstanding), zeros(4, depth, PLACE + LOCKS),
        zeros(SEMAPHORES + 1, TOKEN + TOKENS), zeros(LOG, LOG_PLACE + LOCKS), zeros(cells),
    )  # fmt: skip
    state.unit[:, ISSUED] = -1
    state.scalars[PENDING] = -1
    state.scalars[WINDOW_FROM], state.scalars[WINDOW_TO] = window
    return state


def new_statistics(program: Program) -> Statistics:
    """Nothing counted yet."""
    phases = len(program.phase_names)
    return Statistics(np.zeros(len(program.words), np.int64), np.zeros((phases, COUNTERS), np.int64))
