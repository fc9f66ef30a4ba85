"""`python -m tests.golden.make [FOLDER]` writes the golden vectors: one JSON file an instruction, one case a line;
and the ROMs of the transcendental units.

The bodies run interpreted, so the expected bits come from Python and NumPy arithmetic on single values, not from the
compiler. What a file says is in tests/golden/README.md.
"""

import os

os.environ["NUMBA_DISABLE_JIT"] = "1"  # before anything imports numba

import json
import sys
from pathlib import Path

import numpy as np

from npu.isa.transcendental import EXP2_TABLE, LOG2_TABLE, RECIPROCAL_TABLE, RSQRT_TABLES, TANH_TABLES
from tests.golden.cases import cases, memory_of, queued, spans
from tests.golden.words import to_words

FOLDER = Path(__file__).parent
TABLES = {
    "EXP2": EXP2_TABLE,
    "LOG2": LOG2_TABLE,
    "RECIPROCAL": RECIPROCAL_TABLE,
    "RSQRT_EVEN": RSQRT_TABLES[0],
    "RSQRT_ODD": RSQRT_TABLES[1],
    **{f"TANH_{number}": table for number, table in enumerate(TANH_TABLES)},
}


def run(spec, case):
    """Memories after the instruction."""
    memories = {name: values.copy() for name, values in case.memories.items()}
    with np.errstate(all="ignore"):
        spec.body(*(memories[name] for name in spec.memories), **case.operands)
    return memories


def line(spec, case):
    """One case as JSON."""
    after = run(spec, case)
    before, expected = {}, {}
    for footprints, memories, words in ((spec.reads, case.memories, before), (spec.writes, after, expected)):
        for name in dict.fromkeys(footprint.operand for footprint in footprints):
            memory = memory_of(spec, name)
            for first, size in spans(spec, case.operands, name):
                words[f"{memory}@{first}"] = to_words(memory, memories[memory][first : first + size])
    if "accumulator" in spec.memories:
        before["accumulator@0"] = to_words("accumulator", case.memories["accumulator"].ravel())
        expected["accumulator@0"] = to_words("accumulator", after["accumulator"].ravel())
    return json.dumps({"operands": case.operands, "in": before, "out": expected})


def text(spec):
    """The file of an instruction."""
    lines = ",\n".join(f"  {line(spec, case)}" for case in cases(spec))
    head = f'"instruction": "{spec.mnemonic}",\n "opcode": "{spec.opcode:#04x}",\n "cases": ['
    return f"{{{head}\n{lines}\n]}}\n"


def main(folder=FOLDER):
    """Write all files; those of instructions that are gone are removed."""
    files = {f"vectors/{spec.mnemonic}.json": text(spec) for spec in queued()}
    files |= {f"tables/{name}.hex": "".join(f"{entry:08x}\n" for entry in rom) for name, rom in TABLES.items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for file in (*folder.glob("vectors/*.json"), *folder.glob("tables/*.hex")):
        if str(file.relative_to(folder)) not in files:
            file.unlink()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
