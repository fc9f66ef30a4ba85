"""Golden vectors as programs of one instruction, for the core to run."""

import json
from pathlib import Path

import numpy as np

from npu.isa import BY_MNEMONIC, Instruction
from npu.program import Program, Tensor, words_of
from rtl.simulator import Job

VECTORS = Path(__file__).parents[1] / "golden" / "vectors"


def read(mnemonic):
    """Cases of an instruction: operands, memories before and after as {(memory, address): words}."""
    return json.loads((VECTORS / f"{mnemonic}.json").read_text())["cases"]


def words(memory, text):
    """Words of a memory as integers, None where any NaN will do."""
    if memory in ("hbm", "matrix"):
        return list(bytes.fromhex(text))
    return [None if word == "nan" else int(word, 16) for word in text.split()]


def place(key):
    memory, _, address = key.partition("@")
    return memory, int(address)


def job(mnemonic, case, hardware):
    """The case as a job: registers are set, the instruction runs, that is all."""
    spec = BY_MNEMONIC[mnemonic]
    operands, code = {}, []
    for name, operand in spec.operands.items():
        value = case["operands"][name]
        if not operand.address:
            operands[name] = value
            continue
        register = len(operands)
        operands[name] = register
        code.append(Instruction(mnemonic="A_BASE", operands={"register": register, "base": value}))
        stride = case["operands"].get(f"{name}_stride")
        if stride is not None:
            code.append(Instruction(mnemonic="A_ROWS", operands={"register": register, "stride": stride}))
    code += [Instruction(mnemonic=mnemonic, operands=operands), Instruction(mnemonic="C_END")]
    size = 4096
    tensor = Tensor(name="all", address=0, shape=(size,), format="mxint8", block=32, writable=True)
    sram = hardware.sram
    geometry = {"blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen, "matrix_bytes": sram.matrix_bytes,
                "vector_bytes": sram.vector_bytes, "fp_bytes": sram.fp_bytes, "int_bytes": sram.int_bytes}  # fmt: skip
    program = Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout={}, phases=())
    return Job(program=program, hardware=hardware, **before(case, hardware, size))


def before(case, hardware, size):
    """Memories before the instruction."""
    sram = hardware.sram
    raw = {"hbm": np.zeros(size, np.uint8), "matrix": np.zeros(sram.matrix_bytes, np.uint8),
           "vector": np.zeros(sram.vector_bytes // 2, np.uint32), "fp": np.zeros(sram.fp_bytes // 4, np.uint32),
           "integer": np.zeros(sram.int_bytes // 4, np.uint32), "accumulator": np.zeros(0, np.uint32)}  # fmt: skip
    for key, text in case["in"].items():
        memory, address = place(key)
        nan = 0x7FC0 if memory == "vector" else 0x7FC00000
        values = [nan if value is None else value for value in words(memory, text)]
        if memory == "accumulator":
            shape = case["operands"]["rows"], case["operands"]["cols"]
            raw[memory] = np.array(values, np.uint32).reshape(shape)
        else:
            raw[memory][address : address + len(values)] = values
    raw["vector"] = (raw["vector"] << 16).view(np.float32)
    raw["fp"], raw["integer"] = raw["fp"].view(np.float32), raw["integer"].view(np.int32)
    raw["accumulator"] = (
        raw["accumulator"].reshape(-1, raw["accumulator"].shape[-1]).view(np.float32)
        if raw["accumulator"].size
        else np.zeros((0, 0), np.float32)
    )
    return raw


def bits(memory, values):
    """A memory's words as integers."""
    if memory == "vector":
        return values.view(np.uint32) >> 16
    return values.view(np.uint32) if values.dtype.itemsize == 4 else values


def differences(case, run):
    """Where the memories after a run are not what the case says."""
    wrong = []
    for key, text in case["out"].items():
        memory, address = place(key)
        expected = words(memory, text)
        values = getattr(run.memories, memory)
        if memory == "accumulator":
            rows, cols = case["operands"]["rows"], case["operands"]["cols"]
            values = values[:rows, :cols].ravel()
        found = values[address : address + len(expected)]
        for offset, (want, got, value) in enumerate(
            zip(expected, bits(memory, np.ascontiguousarray(found)).tolist(), found.tolist(), strict=True)
        ):
            good = value != value if want is None else got == want
            if not good:
                wrong.append((key, offset, "nan" if want is None else f"{want:x}", f"{got:x}"))
    return wrong
