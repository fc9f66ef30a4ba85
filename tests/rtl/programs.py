"""Random programs three ways: the core, `cycle` and `accuracy`.

Serial ones draw from all that the core has of the table (tests/accuracy/random_programs.py); in serial execution program order
rules, so every bit can be compared. Decoupled ones (tests/cycle) overlap; their times are compared, and bits where
no unit touches what another one does.
"""

import dataclasses

import numpy as np

import cycle
from accuracy.executor import Machine
from npu.formats import FORMATS
from npu.formats.rounding import encode_rows
from npu.hardware import QUEUED_UNITS
from npu.isa import BY_MNEMONIC, TABLE, Instruction, Unit
from npu.program import Program, Tensor, words_of
from npu.program.tables import QUEUE_OF_UNIT
from npu.program.trace import Trace
from rtl.limits import built
from rtl.simulator import Job
from tests.accuracy import random_programs

ARRAY = (FORMATS["mxint8"], FORMATS["mxint4"])
STORED = (FORMATS["fp32"], FORMATS["bf16"], *ARRAY)
LACKING = {spec.mnemonic for spec in TABLE.values() if spec.operands and spec.mnemonic not in built()}
"""Mnemonics that the core refuses by name."""


def supported(instruction, rng):
    """The instruction with formats that the core has, in place of those that it lacks."""
    o, unit = dict(instruction.operands), instruction.spec.unit
    if instruction.mnemonic == "M_MM":
        weights = ARRAY[rng.integers(2)]
        o |= {"weight_format": weights.code, "act_format": ARRAY[rng.integers(2)].code,
              "block_stride": weights.record_bytes(1 << o["block"])}  # fmt: skip
    elif "format" in o and unit is Unit.DMA_OUT:
        o["format"] = STORED[rng.integers(4)].code
    elif (
        instruction.mnemonic == "V_ROPE_V"
    ):  # where what is written overlaps what is read, the order of lanes would count
        o |= {
            "table": random_programs.REGISTERS["vector"][-1],
            "dst": int(rng.choice(random_programs.REGISTERS["vector"][:-1])),
        }
    elif instruction.mnemonic == "V_SELECT_INT":
        o["n"] = min(o["n"], 8)
    return dataclasses.replace(instruction, operands=o)


def serial_program(seed, hardware):
    """A program of all that the core has of the table, for the core's sizes."""
    rng = np.random.default_rng(seed)
    program = random_programs.random_program(seed, length=int(rng.integers(5, 40)), without=LACKING)
    code = [supported(instruction, rng) for instruction in program.instructions]
    # A table whose rows begin with a beat, as gathers need.
    code = [
        dataclasses.replace(i, operands={**i.operands, "cols": 8 * -(-i.operands["cols"] // 8)})
        if i.mnemonic == "H_GATHER_V"
        else i
        for i in code
    ]
    geometry = {**program.geometry, "blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen}
    return Program(
        words=words_of(code), hbm=program.hbm, geometry=geometry, layout={"batch": 1, "generation_length": 1}, phases=()
    )


QUEUES = {"matrix": "M_SYNC", "vector": "V_SYNC", "dma_in": "H_LOAD_SYNC", "dma_out": "H_STORE_SYNC"}
COUNT, FLAG, ZERO = 29, 30, 31
"""Registers of Int entries that nothing writes: a small number, 1, and 0."""
# Registers by unit and memory, three each. In private programs no unit touches what another does, so nothing can race.
PLACES = {
    ("vector", "vector"): (0, 1, 2), ("vector", "fp"): (3, 4, 5), ("vector", "int"): (6, 7, 8),
    ("matrix", "matrix"): (9, 10), ("matrix", "acts"): (11, 12), ("matrix", "out"): (13, 14),
    ("dma_in", "hbm"): (15, 16), ("dma_in", "vector"): (17, 18), ("dma_in", "matrix"): (19, 20), ("dma_in", "fp"): (21, 22),
    ("dma_in", "int"): (23,), ("dma_out", "hbm"): (24, 25), ("dma_out", "vector"): (26, 27), ("dma_out", "int"): (28,),
}  # fmt: skip
PRIVATE = {
    ("vector", "vector"): 0, ("vector", "fp"): 0, ("vector", "int"): 0, ("matrix", "matrix"): 0, ("matrix", "acts"): 4096,
    ("matrix", "out"): 6144, ("dma_in", "hbm"): 0, ("dma_in", "vector"): 8192, ("dma_in", "matrix"): 4096,
    ("dma_in", "fp"): 128, ("dma_in", "int"): 100, ("dma_out", "hbm"): 16384, ("dma_out", "vector"): 12288,
    ("dma_out", "int"): 170,
}  # fmt: skip
ROW_STRIDES = {"matrix": 132, "acts": 64, "out": 40, "hbm": 160, "vector": 96}


def decoupled_program(seed, hardware):
    """Units that overlap: handshakes strewn in, loops in loops, rings, an exit that depends on a flag; and whether no unit
    touches what another one does, so that the executor's bits are the core's (a unit keeps its own order)."""
    rng = np.random.default_rng(seed)
    private = bool(rng.integers(2))
    code = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": 130 + r}) for r in (COUNT, FLAG, ZERO)]
    for (unit, memory), registers in PLACES.items():
        for number, register in enumerate(registers):
            base = (PRIVATE[unit, memory] if private or memory == "hbm" else 0) + number * {"fp": 5, "int": 9}.get(
                memory, 352
            )
            code.append(Instruction(mnemonic="A_BASE", operands={"register": register, "base": base}))
            if memory in ROW_STRIDES:
                code.append(
                    Instruction(mnemonic="A_ROWS", operands={"register": register, "stride": ROW_STRIDES[memory]})
                )
            if number == 1:
                step = {"fp": 1, "int": 1, "matrix": 33, "hbm": 48}.get(memory, int(rng.choice([32, 8])))
                code += [
                    Instruction(mnemonic="A_STEP", operands={"register": register, "level": level, "stride": step})
                    for level in (0, 1)
                ]
            if number == 2:
                ring = {"register": register, "ring": 1, "length": 3, "stride": 64 if memory == "vector" else 10}
                code.append(Instruction(mnemonic="A_RING", operands=ring))
    first = [_body(rng, 10), 1]
    second = [_body(rng, 8), 20]
    parts = [_handshakes(rng, part, number) for part, number in (first, second)]
    if rng.integers(2):
        give = Instruction(mnemonic="V_SYNC", signals=(60,))
        flag = int(rng.choice([FLAG, FLAG, ZERO]))
        parts[1] = [
            give,
            Instruction(mnemonic="C_BREAK_IF", operands={"level": 1, "flag": flag}, waits=(60,)),
            *parts[1],
        ]
    inner = _loop(1, int(rng.integers(0, 6)), parts[1])
    turn = [Instruction(mnemonic="A_NEXT", operands={"ring": 1})]
    code += [*_loop(0, int(rng.integers(1, 5)), [*parts[0], *inner, *turn]), Instruction(mnemonic="C_END")]
    geometry = {"blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen, "matrix_bytes": 16384,
                "vector_bytes": 32768, "fp_bytes": 1024, "int_bytes": 1024}  # fmt: skip
    tensor = Tensor(name="all", address=0, shape=(1 << 14,), format="bf16", block=32, writable=True)
    layout = {"batch": 1, "generation_length": 1}
    return Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout=layout, phases=()), private


def _loop(level, trips, body):
    head = Instruction(mnemonic="C_LOOP", operands={"level": level, "trips": trips, "length": len(body) + 1})
    return [head, *body, Instruction(mnemonic="C_NEXT", operands={"level": level})]


def _body(rng, most):
    return [_queued(rng) for _ in range(int(rng.integers(1, most)))]


def _queued(rng):
    """One queued instruction with the registers of its unit."""
    unit = str(rng.choice(["matrix", "vector", "vector", "dma_in", "dma_out"]))
    if rng.integers(10) == 0:
        return Instruction(mnemonic=QUEUES[unit])
    if unit == "vector":
        names = [s.mnemonic for s in TABLE.values() if s.unit in (Unit.VECTOR, Unit.SCALAR) and s.operands]
    else:
        names = [
            s.mnemonic
            for s in TABLE.values()
            if QUEUED_UNITS[QUEUE_OF_UNIT[s.unit]] == unit and s.unit is not Unit.FRONTEND and s.operands
        ]
    names = [name for name in names if name not in {"H_GATHER_V", *LACKING}]
    spec = BY_MNEMONIC[str(rng.choice(names))]
    operands = {}
    for name, operand in spec.operands.items():
        if operand.address:
            memory = operand.memory.name.lower() if operand.memory is not None else "fp"
            if unit == "matrix" and memory == "vector":
                memory = "acts" if name == "acts" else "out"
            operands[name] = int(rng.choice(PLACES[unit, memory]))
        else:
            operands[name] = int(rng.integers(1, {"n": 33, "rows": 5, "row_bytes": 300, "value": 100}.get(name, 2)))
    if spec.mnemonic == "V_ROPE_V":
        operands |= {"head_dim": 8, "n": 16, "a": 0, "dst": 0, "table": 1}
    if spec.mnemonic == "V_TOPK_MASK":
        operands["count"] = COUNT
    if spec.mnemonic == "V_SELECT_INT":
        operands |= {"n": 4, "dst": 6, "on_true": 7, "on_false": 7}
    if spec.mnemonic == "S_MAP_V_FP" or (unit != "vector" and "n" in operands):
        operands["n"] = min(operands["n"], 20)
    if spec.mnemonic == "M_MM":
        block = int(rng.choice([3, 4, 5]))
        weights = ARRAY[rng.integers(2)]
        operands |= {"rows": int(rng.integers(1, 9)), "cols": int(rng.integers(1, 9)), "k": int(rng.choice([32, 1 << block])),
                     "block": block, "weight_format": weights.code, "act_format": ARRAY[rng.integers(2)].code,
                     "block_stride": weights.record_bytes(1 << block)}  # fmt: skip
    if spec.mnemonic == "M_OUT":
        operands |= {"rows": int(rng.integers(1, 9)), "cols": int(rng.integers(1, 9))}
    if "format" in operands:
        operands |= {"format": STORED[rng.integers(4)].code, "block": 5, "cols": 32}
        if spec.mnemonic == "H_STORE_T":
            operands |= {"block": 3, "cols": 16}
    return Instruction(mnemonic=spec.mnemonic, operands=operands)


def _handshakes(rng, body, first):
    """Tokens from some instruction to a later one of another unit."""
    queue = [QUEUED_UNITS[QUEUE_OF_UNIT[i.spec.unit]] for i in body]
    for semaphore in range(first, first + int(rng.integers(0, 5))):
        giver, taker = sorted(rng.integers(0, len(body), 2).tolist())
        if queue[giver] != queue[taker] and len(body[giver].signals) < 2 and len(body[taker].waits) < 2:
            body[giver] = dataclasses.replace(body[giver], signals=(*body[giver].signals, semaphore))
            body[taker] = dataclasses.replace(body[taker], waits=(*body[taker].waits, semaphore))
    return body


def job(program, seed, hardware):
    """The program with memories of moderate values, quantised weights, small integers."""
    rng = np.random.default_rng(seed + 1_000_000)
    geometry = program.geometry
    hbm = np.zeros(program.hbm_bytes, np.uint8)
    values = rng.normal(size=(1, 8192)).astype(np.float32)
    encode_rows(values[:, :4096], FORMATS["bf16"].code, 32, hbm[:8192])
    matrix = np.zeros(geometry["matrix_bytes"], np.uint8)
    encode_rows(values[:, :96].repeat(40, 0)[:, :96], FORMATS["mxint8"].code, 32, matrix[: 33 * 3 * 40])
    vector = (rng.normal(size=geometry["vector_bytes"] // 2).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(
        np.float32
    )
    fp = rng.normal(size=geometry["fp_bytes"] // 4).astype(np.float32)
    integer = rng.integers(0, 16, geometry["int_bytes"] // 4).astype(np.int32)
    if len(integer) > 130 + ZERO:
        integer[130 + FLAG], integer[130 + ZERO] = 1, 0
    return Job(program=program, hardware=hardware, hbm=hbm, matrix=matrix, vector=vector, fp=fp, integer=integer)


def executed(given):
    """The executor's machine after a job."""
    machine = Machine(program=given.program, hbm=given.hbm.copy())
    for name in ("matrix", "vector", "fp", "integer"):
        getattr(machine, name)[: len(getattr(given, name))] = getattr(given, name)
    with np.errstate(all="ignore"):
        while machine.run_to_break():
            pass
    return machine


def times(program, hardware, breaks=(), events=100_000):
    """(instruction, start, end) as `cycle` has them, in order, and the makespan."""
    trace = Trace(breaks=tuple(int(index) for index in breaks))
    rows = cycle.instruction_times(program, hardware=hardware, trace=trace, most_events=events)
    result = cycle.simulate(program, hardware=hardware, trace=trace, race_check=False)
    return ordered(rows), result.metrics["makespan_cycles"]


def ordered(rows):
    """Events by start, then instruction."""
    return sorted(map(tuple, rows.tolist()), key=lambda row: (row[1], row[0]))


def different_bits(machine, after):
    """Words of each memory that differ; a NaN equals a NaN, whatever its sign and payload."""
    wrong = {}
    for name in ("hbm", "matrix", "vector", "fp", "integer", "accumulator"):
        mine, theirs = getattr(machine, name).ravel(), getattr(after, name).ravel()[: getattr(machine, name).size]
        with np.errstate(invalid="ignore"):
            both_nan = (mine != mine) & (theirs != theirs)
        raw = [np.ascontiguousarray(values).view(np.uint8).reshape(values.size, -1) for values in (mine, theirs)]
        places = np.flatnonzero((raw[0] != raw[1]).any(axis=1) & ~both_nan)
        if places.size:
            wrong[name] = places
    return wrong
