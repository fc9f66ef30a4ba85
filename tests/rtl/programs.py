"""Random programs three ways: the core, `cycle` and `accuracy`.

Serial ones draw from the whole instruction table (tests/accuracy/random_programs.py); in serial execution program order
rules, so every bit can be compared. Decoupled ones (tests/cycle) overlap; their times are compared, and bits where the race
check finds that order cannot matter.
"""

import dataclasses

import numpy as np

import cycle
from accuracy.executor import Machine
from rtl.simulator import Job
from tests.accuracy import random_programs
from tripath.formats import FORMATS
from tripath.formats.rounding import encode_rows
from tripath.isa import Instruction, Unit
from tripath.program import Program, words_of
from tripath.trace import Trace

ARRAY = (FORMATS["mxint8"], FORMATS["mxint4"])
STORED = (FORMATS["fp32"], FORMATS["bf16"], *ARRAY)


def supported(instruction, rng):
    """The instruction with formats that the core has, in place of those that it lacks."""
    o, unit = dict(instruction.operands), instruction.spec.unit
    if instruction.mnemonic == "M_MM":
        weights = ARRAY[rng.integers(2)]
        o |= {"weight_format": weights.code, "act_format": ARRAY[rng.integers(2)].code,
              "block_stride": weights.record_bytes(1 << o["block"])}  # fmt: skip
    elif "format" in o and unit is Unit.DMA_OUT:
        o["format"] = STORED[rng.integers(4)].code
    return dataclasses.replace(instruction, operands=o)


def serial_program(seed, hardware):
    """A program of the whole table for the core's sizes."""
    rng = np.random.default_rng(seed)
    program = random_programs.random_program(seed, length=int(rng.integers(5, 40)))
    code = [supported(instruction, rng) for instruction in program.instructions]
    # A table whose rows begin with a beat, as gathers need.
    code = [
        dataclasses.replace(i, operands={**i.operands, "cols": 8 * -(-i.operands["cols"] // 8)}) if i.mnemonic == "H_GATHER_V" else i
        for i in code
    ]
    geometry = {**program.geometry, "blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen}
    return Program(words=words_of(code), hbm=program.hbm, geometry=geometry, layout={"batch": 1, "generation_length": 1}, phases=())


def memories(program, seed):
    """Contents that a program starts from: values of moderate size, quantised weights, small integers."""
    rng = np.random.default_rng(seed + 1_000_000)
    geometry = program.geometry
    hbm = np.zeros(program.hbm_bytes, np.uint8)
    values = rng.normal(size=(1, 8192)).astype(np.float32)
    encode_rows(values[:, :4096], FORMATS["bf16"].code, 32, hbm[:8192])
    matrix = np.zeros(geometry["matrix_bytes"], np.uint8)
    encode_rows(values[:, :96].repeat(40, 0)[:, :96], FORMATS["mxint8"].code, 32, matrix[: 33 * 3 * 40])
    integer = rng.integers(0, 16, geometry["int_bytes"] // 4).astype(np.int32)
    return hbm, matrix, integer


def executed(program, seed):
    """The executor's machine after the program."""
    hbm, matrix, integer = memories(program, seed)
    machine = Machine(program=program, hbm=hbm)
    machine.matrix[:], machine.integer[:] = matrix, integer
    with np.errstate(all="ignore"):
        while machine.run_to_break():
            pass
    return machine


def job(program, seed, hardware):
    """The same for the core."""
    hbm, matrix, integer = memories(program, seed)
    return Job(program=program, hardware=hardware, hbm=hbm, matrix=matrix, integer=integer)


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


__all__ = ["Instruction", "different_bits", "executed", "job", "ordered", "serial_program", "times"]
