"""One body per instruction: interpreted and compiled it gives the same bits, and simple ones equal their numpy meaning."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npu.formats import FORMATS
from npu.formats.rounding import decode_rows, encode_rows
from npu.isa import TABLE, Unit
from npu.isa.dots import BLOCK_SIZES, COLUMNS, column_dots
from npu.isa.matrix import m_mm
from npu.isa.vector import tree_sum
from tests.accuracy.random_programs import digest, random_program, run

SEEDS = range(12)


def test_interpreted_and_compiled_programs_leave_the_same_bits():
    command = [sys.executable, "-m", "tests.accuracy.random_programs", *map(str, SEEDS)]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [digest(run(seed)) for seed in SEEDS]


def test_the_random_programs_reach_every_queued_instruction():
    used = {i.mnemonic for seed in SEEDS for i in random_program(seed).instructions}
    assert used >= {spec.mnemonic for spec in TABLE.values() if spec.unit is not Unit.FRONTEND}


@pytest.mark.parametrize("n", [1, 2, 3, 7, 32, 63, 64])
def test_sums_are_pairwise_trees(n):
    """Lane i meets lane i + n/2, halving; written here with whole arrays."""
    values = np.random.default_rng(n).normal(size=n).astype(np.float32) * np.float32(1e4)
    width = 1 << (n - 1).bit_length()
    level = np.zeros(width, np.float32)
    level[:n] = values
    while level.size > 1:
        half = level.size // 2
        level = level[:half] + level[half:]
    assert tree_sum(values.copy()) == level[0]


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_columns_side_by_side_are_trees(size):
    rng = np.random.default_rng(size)
    for columns in (COLUMNS, 2 * COLUMNS, 5 * COLUMNS):
        acts, weights = (rng.normal(size=(rows, size)).astype(np.float32) for rows in (3, columns))
        dots = np.full(columns + 1, np.nan, np.float32)
        column_dots(size, acts.ravel(), 2 * size, weights.ravel(), columns, dots)
        assert dots[:columns].tolist() == [tree_sum(acts[2] * column) for column in weights]
        assert np.isnan(dots[columns])


@pytest.mark.parametrize("cols", [1, 5, 8, 13])
def test_tiles_of_any_width_add_to_their_own_accumulators_alone(cols):
    """Weights in a larger matrix, of several formats; the columns behind the tile are others'."""
    rng, size, blocks, rows = np.random.default_rng(cols), 32, 2, 3
    acts = (rng.integers(-127, 128, rows * blocks * size) / 64).astype(np.float32)
    for name in ("mxint8", "mxint4", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4_e2m1", "fp16", "bf16", "fp32"):
        row, values = FORMATS[name], rng.normal(size=(16, blocks * size)).astype(np.float32)
        stored, decoded = np.zeros(16 * row.row_bytes(blocks * size), np.uint8), np.zeros_like(values)
        encode_rows(values, row.code, size, stored)
        decode_rows(stored, row.code, size, decoded)
        found = np.full((rows, 16), 0.5, np.float32)
        pitch = row.row_bytes(blocks * size)
        m_mm(stored, acts, found, 0, pitch, 0, blocks * size, rows, cols, blocks * size, 5, row.code, FORMATS["fp32"].code,
             row.record_bytes(size))  # fmt: skip
        exact = acts.reshape(rows, -1).astype(np.float64) @ decoded.T.astype(np.float64) + 0.5
        np.testing.assert_allclose(found[:, :cols], exact[:, :cols], rtol=1e-4, atol=1e-4)
        assert (found[:, cols:] == np.float32(0.5)).all()
