"""The golden vectors are what the interpreted bodies give now, and the compiled bodies give the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npu.isa import BY_MNEMONIC
from tests.golden.cases import DTYPES, memory_of, queued, spans
from tests.golden.words import from_words, to_words

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("vectors/*.json"))
GUARD = 16
"""Entries after the last one that a case uses."""


def test_vectors_are_fresh(tmp_path):
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "tests.golden.make", str(tmp_path)], cwd=root, check=True, timeout=120)
    made, kept = (
        {str(file.relative_to(folder)): file.read_text() for kind in ("*.json", "*.hex") for file in folder.rglob(kind)}
        for folder in (tmp_path, FOLDER)
    )
    assert [file.stem for file in FILES] == sorted(spec.mnemonic for spec in queued())
    stale = [name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name)]
    assert not stale, "after a change on purpose: python -m tests.golden.make"


def test_vectors_stay_small_enough_to_review():
    assert sum(file.stat().st_size for file in FILES) < 8_900 * len(FILES)


def memories_of(spec, row):
    """Memories before a case: its words, zeros elsewhere."""
    size = dict.fromkeys(spec.memories, GUARD)
    for name in spec.addresses:
        if (memory := memory_of(spec, name)) is not None:
            size[memory] = max(size[memory], sum(spans(spec, row["operands"], name)[-1]) + GUARD)
    memories = {name: np.zeros(size[name], DTYPES[name]) for name in spec.memories}
    if "accumulator" in memories:
        memories["accumulator"] = np.zeros(row["operands"]["rows"] * row["operands"]["cols"], np.float32)
    fill(memories, row["in"])
    return memories


def fill(memories, words):
    for place, text in words.items():
        name, _, first = place.partition("@")
        values = from_words(name, text)
        memories[name][int(first) : int(first) + len(values)] = values


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_compiled_bodies_give_the_expected_bits_and_touch_nothing_else(file):
    data = json.loads(file.read_text())
    spec = BY_MNEMONIC[data["instruction"]]
    assert data["opcode"] == f"{spec.opcode:#04x}"
    for row in data["cases"]:
        memories, expected = memories_of(spec, row), memories_of(spec, row)
        fill(expected, row["out"])
        shape = row["operands"].get("rows", 1), row["operands"].get("cols", 1)
        arguments = [values.reshape(shape) if name == "accumulator" else values for name, values in memories.items()]
        spec.body(*arguments, **row["operands"])
        for name in spec.memories:
            assert to_words(name, memories[name]) == to_words(name, expected[name]), (name, row["operands"])
