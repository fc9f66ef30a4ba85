"""The state of the compiled machine and what it counts: their schema, and both before the first cycle."""

from collections import namedtuple

import numpy as np

from cycle.code import BEHIND, CAUSES, LOCKS, scoreboard
from cycle.schema import (
    ADDRESS,
    CLIPPED,
    EXACT,
    IDLE,
    INSTRUCTION,
    STRICT,
    Field,
    Part,
    Watch,
    allocate,
    integers,
    record,
    watch_of,
)
from npu.hardware import QUEUED_UNITS, HardwareConfig
from npu.isa import Memory
from npu.isa.control import Control, new_control
from npu.isa.spec import INTEGER_REGISTERS, LOOP_LEVELS, RINGS, SEMAPHORES
from npu.metrics import UNITS
from npu.program import Program

TOKENS, LOG = 1024, 2048
"""Tokens that one semaphore can hold; results in flight that the log remembers."""

State = namedtuple("State", "words counted machine unit queue flight semaphore token log ready")
"""`words`: all of it but the scoreboard, control and statistics included; `counted`: those that only ever add up. By name, as
`parts_of` says: `machine` [1]; `unit` [queues]; `queue` [queues, depth]; `flight` [queues, outstanding]: ends of descriptors;
`semaphore` [semaphores + 1]; `token` [semaphores + 1, TOKENS]: times; `log` [1, LOG]: the last vector and scalar instructions.
`ready`: the scoreboard, when the last result of each cell is there."""

Statistics = namedtuple("Statistics", "entered used retired advanced phase left opened")
"""Counters, additive over time: `entered` [levels]: loops begun; `used` [2]: entries of breaks and of counts; `retired`,
`advanced` [n]: retirements of each instruction, and the cycles that it added to the run; `phase` [phases]. And `left` [breaks]:
when each loop that data decide was left, by its number in the trace; `opened` [levels] is that number while the loop runs."""

EVENT = record("instruction", "unit", "dispatched", "start", "end", "bytes")
"""An instruction that started in the recorded window."""


def parts_of(program: Program, hardware: HardwareConfig, facts: np.void) -> tuple[list[Part], list[Part]]:
    """The schema: what is compared, and what only ever adds up."""
    queues, semaphores = len(QUEUED_UNITS), SEMAPHORES + 1
    machine = (
        Field(name="frontier", kind=STRICT),  # the latest end
        Field(name="now", kind=STRICT),  # the front end's time
        Field(name="pending", kind=EXACT),  # the queue of the instruction that serial execution waits for (-1: none)
        Field(name="bus_free", kind=CLIPPED, lead=int(facts["turnaround"].max())),  # when HBM is free
        Field(name="bus_writes", kind=EXACT),  # whether HBM wrote last
        Field(name="port_free", kind=CLIPPED),  # when the write-out port is free
        Field(name="log", ring=True),  # in use: results that may not be there yet, as `fastforward` saw them last
        Field(name="logged"),  # entries that the log ever had
        Field(name="events"),  # events recorded
        Field(name="skipped"),  # instructions skipped
        Field(name="missing"),  # the line of the table of costs that is missing
        Field(name="window_from"),  # the cycles whose instructions are recorded
        Field(name="window_to"),
    )
    unit = (
        Field(name="free", kind=IDLE),  # when the next instruction can start
        Field(name="retire", kind=CLIPPED, lead=int(facts["dispatch"])),  # when all that it began is over
        Field(name="issued", kind=CLIPPED, lead=1),  # when its last descriptor was issued
        Field(name="waiting", ring=True),
        Field(name="flight", ring=True),
        Field(
            name="gap", shape=(3,)
        ),  # the phase, unit and cause that its first stand since `transitions` looked counts for
    )
    place = (
        Field(name="entry", kind=INSTRUCTION),
        Field(name="arrival", kind=STRICT),
        Field(name="free", spare=CLIPPED),  # when the place was last given free
        Field(name="address", kind=ADDRESS, shape=(LOCKS,)),
        Field(name="row_stride"),
    )
    result = (
        Field(name="entry", kind=INSTRUCTION),
        Field(name="retire", kind=STRICT),  # when everything up to it is over
        Field(name="end", kind=CLIPPED),
        Field(name="address", kind=ADDRESS, shape=(LOCKS,)),
    )
    time = (Field(name="", kind=CLIPPED),)
    compared = [
        Part(name="machine", shape=(1,), fields=machine),
        Part(name="unit", shape=(queues,), fields=unit),
        integers("ring_position", RINGS, EXACT),
        integers("register", INTEGER_REGISTERS, EXACT),
        Part(name="semaphore", shape=(semaphores,), fields=(Field(name="", ring=True),)),
        Part(name="queue", shape=(queues, int(facts["depth"].max())), fields=place, ring=("unit", "waiting")),
        Part(name="flight", shape=(queues, hardware.dma_outstanding), fields=time, ring=("unit", "flight")),
        Part(name="token", shape=(semaphores, TOKENS), fields=time, ring=("semaphore", "")),
        Part(name="log", shape=(1, LOG), fields=result, ring=("machine", "log")),
    ]
    phase = (
        Field(name="critical", shape=(len(UNITS), BEHIND + len(CAUSES))),  # cycles that its instructions add to the run
        Field(name="busy", shape=(len(UNITS),)),
        Field(name="stall", shape=(len(UNITS), len(CAUSES))),
        Field(name="traffic_bytes", shape=(2,)),  # by direction
        Field(name="traffic_bursts", shape=(2,)),
        Field(name="address_cycles"),  # of the front end, to step addresses
    )
    counted = [
        integers("index", LOOP_LEVELS),
        integers("entered", LOOP_LEVELS),
        integers("used", 2),
        integers("retired", len(program.words)),
        integers("advanced", len(program.words)),
        Part(name="phase", shape=(len(program.phase_names),), fields=phase),
    ]
    return compared, counted


def new_state(
    program: Program, hardware: HardwareConfig, facts: np.void, window: tuple[int, int], breaks: int
) -> tuple[State, Control, Statistics, Watch]:
    """The machine before its first cycle, its front end, nothing counted yet, and what `fastforward` compares of it.

    `breaks` is the number of loops that the trace leaves.
    """
    compared, counted = parts_of(program, hardware, facts)
    words, part = allocate([*compared, *counted])
    first, _ = scoreboard(program, hardware)
    ready = np.zeros(first[int(Memory.INT)] + program.geometry["int_bytes"] // 4 + 1, np.int64)
    machine, unit = part["machine"], part["unit"]
    machine["pending"], unit["issued"] = -1, -1
    machine["window_from"], machine["window_to"] = window
    machine["log"]["size"], part["semaphore"]["size"] = LOG, TOKENS
    unit["waiting"]["size"] = facts["depth"]
    unit["flight"]["size"] = unit["flight"]["count"] = hardware.dma_outstanding
    state = State(
        words, words[sum(item.words for item in compared) :], machine, unit, part["queue"], part["flight"],
        part["semaphore"], part["token"], part["log"], ready,
    )  # fmt: skip
    control = new_control()._replace(**{name: part[name] for name in ("index", "register", "ring_position")})
    exits = np.zeros(breaks, np.int64), np.zeros(LOOP_LEVELS, np.int64)
    statistics = Statistics(part["entered"], part["used"], part["retired"], part["advanced"], part["phase"], *exits)
    return state, control, statistics, watch_of(compared)
