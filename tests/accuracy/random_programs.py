"""Random programs that reach every instruction body, from a seed; `python -m tests.accuracy.random_programs SEED...` runs
them and prints a digest of all memories. With NUMBA_DISABLE_JIT=1 the same bodies run interpreted."""

import hashlib
import sys

import numpy as np

from accuracy.executor import Machine
from npu.formats import FORMATS
from npu.formats.rounding import encode_rows
from npu.isa import TABLE, Instruction, Unit
from npu.program import Program, Tensor, words_of

VLEN, BLEN = 32, 4
REGISTERS = {
    "hbm": (0, 1, 2),
    "matrix": (3, 4),
    "vector": (5, 6, 7, 8),
    "fp": (9, 10, 11),
    "int": (12, 13, 14),
    "index": (15,),
}
STORED, SMALL_INTEGERS = (16, 17), 18
"""Registers of HBM that is only written, and of integers that nothing writes."""
BASES = {
    0: 0,
    1: 512,
    2: 2048,
    3: 0,
    4: 1056,
    5: 0,
    6: 64,
    7: 128,
    8: 512,
    9: 0,
    10: 3,
    11: 16,
    12: 0,
    13: 8,
    14: 32,
    15: 100,
    16: 16384,
    17: 20480,
    18: 120,
}


def random_operands(spec, rng):
    """Operands that keep every access inside the memories."""
    operands = {}
    for name, operand in spec.operands.items():
        if operand.address:
            kind = operand.memory.name.lower() if operand.memory is not None else "index"
            stored = kind == "hbm" and spec.unit is Unit.DMA_OUT
            operands[name] = int(rng.choice(STORED if stored else REGISTERS[kind]))
            if name in ("index", "count"):
                operands[name] = SMALL_INTEGERS
    limits = {"rows": 3, "cols": 32, "n": 32, "row_bytes": 132, "value": 100, "head_dim": 16}
    for name in [name for name in spec.operands if name not in operands]:
        operands[name] = int(rng.integers(1, limits.get(name, 2)))
    if "head_dim" in operands:
        operands["head_dim"], operands["n"] = 16, 32
    if spec.mnemonic == "M_MM":
        fmt, block = rng.choice(list(FORMATS)), int(rng.choice([3, 5]))
        record = FORMATS[fmt].record_bytes(1 << block)
        operands |= {"rows": 3, "cols": 4, "k": 32, "block": block, "weight_format": FORMATS[fmt].code,
                     "act_format": FORMATS[rng.choice(list(FORMATS))].code, "block_stride": record}  # fmt: skip
    elif spec.mnemonic == "M_OUT":
        operands |= {"rows": 3, "cols": 4}
    elif "format" in operands:
        code = (
            int(rng.choice([f.code for f in FORMATS.values()])) if spec.unit is Unit.DMA_OUT else FORMATS["bf16"].code
        )
        operands |= {"format": code, "block": 5, "cols": 32, "rows": operands.get("rows", 1)}
        if spec.mnemonic == "H_STORE_T":
            operands |= {"block": int(rng.choice([2, 3])), "cols": 8}
            del operands["rows"]
    return operands


def random_program(seed, length=60, without=()):
    """A program of one loop around `length` instructions drawn from the whole table but for the mnemonics `without`."""
    rng = np.random.default_rng(seed)
    queued = [spec for spec in TABLE.values() if spec.unit is not Unit.FRONTEND and spec.mnemonic not in without]
    code = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in BASES.items()]
    pitch = {0: 64, 1: 64, 2: 128, 3: 132, 4: 132, 5: 32, 6: 32, 7: 64, 8: 32, 16: 128, 17: 128}
    code += [Instruction(mnemonic="A_ROWS", operands={"register": r, "stride": p}) for r, p in pitch.items()]
    code.append(Instruction(mnemonic="A_STEP", operands={"register": 6, "level": 2, "stride": 32}))
    code.append(Instruction(mnemonic="A_RING", operands={"register": 7, "ring": 1, "length": 2, "stride": 96}))
    body = [Instruction(mnemonic="A_NEXT", operands={"ring": 1}),
            Instruction(mnemonic="C_AFFINE", operands={"register": 3, "base": 2, "factor": -1, "level": 2}),
            Instruction(mnemonic="C_LOOP_R", operands={"level": 4, "register": 3, "length": 2}),
            Instruction(mnemonic="S_ADD_FP", operands={"dst": 9, "a": 9, "b": 10}),
            Instruction(mnemonic="C_NEXT", operands={"level": 4})]  # fmt: skip
    for _ in range(length):
        spec = queued[rng.integers(len(queued))]
        body.append(Instruction(mnemonic=spec.mnemonic, operands=random_operands(spec, rng)))
        # Fresh values now and then keep numbers from growing without end.
        body.append(Instruction(mnemonic="H_LOAD_V", operands={"dst": int(rng.choice(REGISTERS["vector"])), "src": int(rng.choice((0, 1))),
                                                               "rows": 2, "cols": 32, "format": 1, "block": 5}))  # fmt: skip
        body.append(Instruction(mnemonic="H_LOAD_F", operands={"dst": 9, "src": 0, "n": 24}))
    body.append(Instruction(mnemonic="C_BREAK_IF", operands={"level": 2, "flag": 14}))
    body.append(Instruction(mnemonic="C_NEXT", operands={"level": 2}))
    code.append(Instruction(mnemonic="C_LOOP", operands={"level": 2, "trips": 3, "length": len(body)}))
    code += [*body, Instruction(mnemonic="C_END")]
    geometry = {
        "blen": BLEN,
        "mlen": 32,
        "vlen": VLEN,
        "matrix_bytes": 8192,
        "vector_bytes": 2048,
        "fp_bytes": 256,
        "int_bytes": 512,
    }
    tensor = Tensor(name="all", address=0, shape=(1 << 14,), format="bf16", block=32, writable=True)
    return Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout={}, phases=())


def run(seed):
    """Machine after a random program on random memories."""
    rng = np.random.default_rng(seed + 1_000_000)
    program = random_program(seed)
    image = np.zeros(program.hbm_bytes, np.uint8)
    values = rng.normal(size=(1, 8192)).astype(np.float32)
    encode_rows(values[:, :4096], FORMATS["bf16"].code, 32, image[:8192])
    machine = Machine(program=program, hbm=image)
    encode_rows(values[:, :96].repeat(40, 0)[:, :96], FORMATS["mxint8"].code, 32, machine.matrix[: 33 * 3 * 40])
    machine.integer[:] = rng.integers(0, 16, machine.integer.size)
    with np.errstate(all="ignore"):
        while machine.run_to_break():
            pass
    return machine


def digest(machine):
    """SHA-256 over all memories, NaN counted as one value."""
    state = hashlib.sha256()
    for memory in (
        machine.hbm,
        machine.matrix,
        machine.vector,
        machine.fp,
        machine.integer,
        machine.accumulator,
        machine.retired,
    ):
        state.update(np.where(memory != memory, 0, memory).astype(memory.dtype).tobytes())
    return state.hexdigest()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(digest(run(int(argument))))
