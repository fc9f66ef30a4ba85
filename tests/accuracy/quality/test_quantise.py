"""Rounding of the reference path equals the executor's, written apart from it."""

import numpy as np
import pytest
import torch

from accuracy.quality.quantise import fake_quantise
from npu.formats import FORMATS
from npu.formats.rounding import decode_rows, encode_rows


def executor(rows, fmt, block):
    memory, values = np.zeros(len(rows) * fmt.row_bytes(rows.shape[1], block), np.uint8), np.zeros_like(rows)
    encode_rows(rows, fmt.code, block, memory)
    decode_rows(memory, fmt.code, block, values)
    return values


def inputs():
    """Magnitudes from 2^-80 to 2^80, spreads within blocks, ties, zeros, and every BF16 number of a middle range."""
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(4000, 64)) * np.exp2(rng.uniform(-20, 0, (4000, 64)) * (rng.random((4000, 1)) < 0.5))
    rows[::3] = np.round(rows[::3] * 32) / 32
    rows = (rows * np.exp2(rng.integers(-80, 80, (4000, 1)))).astype(np.float32)
    rows[rng.random(rows.shape) < 0.05] = 0
    every = (np.arange(0x3000, 0x4800, dtype=np.uint32) << 16).view(np.float32).reshape(-1, 64)
    return np.concatenate([rows, every, -every])


@pytest.mark.parametrize("block", [4, 8, 32])
@pytest.mark.parametrize("name", FORMATS)
def test_fake_quantisation_equals_the_executors_formats(name, block):
    rows = inputs()
    if name == "fp16":
        rows = np.clip(rows, -1e4, 1e4)
    observed = fake_quantise(torch.tensor(rows), name, block=block).numpy()
    np.testing.assert_array_equal(observed, executor(rows, FORMATS[name], block))


@pytest.mark.parametrize("name", ["mxint4", "mxfp6_e3m2"])
def test_blocks_along_another_axis_are_those_of_the_transpose(name):
    x = torch.tensor(inputs()[:256]).reshape(4, 64, 64)
    along = fake_quantise(x, name, block=8, dim=-2)
    np.testing.assert_array_equal(along, fake_quantise(x.transpose(1, 2).contiguous(), name, block=8).transpose(1, 2))


@pytest.mark.parametrize("name", FORMATS)
def test_the_input_is_left_as_it_was_and_rounding_twice_changes_nothing(name):
    x = torch.tensor(inputs()[:500])
    before = x.clone()
    once = fake_quantise(x, name)
    assert torch.equal(x, before)
    if FORMATS[name].block_scaled or name != "fp16":
        assert torch.equal(fake_quantise(once, name), once)
