"""One body per instruction: interpreted and compiled it gives the same bits, and simple ones equal their numpy meaning."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npu.isa import TABLE, Unit
from npu.isa.matrix import LANES, panel_dots, panel_dots_32
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


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_columns_side_by_side_are_trees(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        acts, panel = rng.normal(size=size).astype(np.float32), rng.normal(size=(size, LANES)).astype(np.float32)
        dots, scratch = np.empty(LANES, np.float32), np.empty(size * LANES, np.float32)
        panel_dots(acts, 0, panel.ravel(), size, scratch, dots)
        assert dots.tolist() == [tree_sum(acts * panel[:, c]) for c in range(LANES)]
        if size == 32:
            written_out = np.empty(LANES, np.float32)
            panel_dots_32(acts, 0, panel.ravel(), written_out)
            assert written_out.tolist() == dots.tolist()
