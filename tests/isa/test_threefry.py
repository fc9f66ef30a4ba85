"""Random numbers: Threefry against its published answers, noise against its formula in float64, samples against softmax."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.noise import threefry as plain
from npu.isa import vector
from npu.isa.threefry import gumbel2, random_word, threefry, uniform

WORDS = st.integers(0, (1 << 32) - 1)
PUBLISHED = {
    ((0, 0), (0, 0)): (0x6B200159, 0x99BA4EFE),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)): (0x1CB996FC, 0xBB002BE7),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344)): (0xC4923A9C, 0x483DF7A0),
}
"""Words of (counter, key): threefry2x32, 20 rounds, in Random123's tests/kat_vectors."""


def in_numpy(counter, key):
    with np.errstate(over="ignore"):
        return tuple(int(word) for word in plain(key, (np.uint32(counter[0]), np.uint32(counter[1]))))


@pytest.mark.parametrize(("counter", "key"), PUBLISHED)
def test_published_answers(counter, key):
    assert threefry(*key, *counter) == PUBLISHED[counter, key]
    assert threefry.py_func(*key, *counter) == PUBLISHED[counter, key]
    assert in_numpy(counter, key) == PUBLISHED[counter, key]


@settings(max_examples=200, deadline=None)
@given(a=WORDS, b=WORDS, c=WORDS, d=WORDS)
def test_the_machine_and_the_reference_draw_the_same_words(a, b, c, d):
    assert threefry(a, b, c, d) == in_numpy((c, d), (a, b))


def test_only_the_lowest_32_bits_of_a_counter_count():
    assert (
        random_word(-1, 7, (1 << 40) + 5, 1 << 32) == random_word(-1, 7, 5, 0) == in_numpy((5, 0), (0xFFFFFFFF, 7))[0]
    )


def test_noise_is_that_of_its_formula():
    """Within 2^-12, which is what the table of the logarithm leaves; every word below 4,096, the seam, and 40,000 others."""
    rng = np.random.default_rng(1)
    edges = [*range(4096), *range((1 << 24) - 50, (1 << 24) + 50), *range((1 << 32) - 50, 1 << 32)]
    spread = (2 ** rng.uniform(12, 32, 20_000)).astype(np.int64)
    words = np.concatenate([edges, spread, rng.integers(0, 1 << 32, 20_000)])
    found = np.array([gumbel2(word) for word in words], np.float64)
    exact = -np.log2(-np.log1p(-(words + 0.5) / 2.0**32) / np.log(2))
    assert np.abs(found - exact).max() < 2**-12


def test_uniform_numbers_exclude_both_ends():
    assert uniform(0) == 2.0**-24
    assert uniform((1 << 32) - 1) == 1 - 2.0**-24
    assert uniform(1 << 31) == 0.5 + 2.0**-24


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


DRAWN = 40_000
CRITICAL = {15: 37.7, 31: 61.1}
"""The chi-square that is exceeded once in a thousand, by degrees of freedom (tables of the distribution)."""


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_are_distributed_as_softmax(temperature):
    """An instruction draws each of 16 entries as often as the softmax over the temperature says."""
    logits = np.random.default_rng(3).normal(0, 1, 16).astype(np.float32)
    logits = (logits.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # BF16
    integer, fp = (
        np.array([11, 0, 0], np.int32),
        np.zeros(3, np.float32),
    )  # a key, an index; maximum, its logit, a scale
    counts = np.zeros(16)
    for stream in range(DRAWN):
        fp[:] = -np.inf, 0, 1 / (temperature * np.log(2))
        vector.v_red_sample_idx(logits, fp, integer, 0, 2, 0, 16, 0, 2, 0, stream)
        counts[integer[2]] += 1
        assert fp[1] == logits[integer[2]]
    weights = np.exp(logits.astype(np.float64) / temperature)
    assert chi_square(counts, DRAWN * weights / weights.sum()) < CRITICAL[15]


def test_pieces_of_a_row_draw_what_the_whole_row_draws():
    logits = np.random.default_rng(4).normal(0, 2, 48).astype(np.float32)
    integer = np.array([5, 0, 0, 0], np.int32)
    for stream in range(200):
        whole, parts = np.array([-np.inf, 0, 1.4], np.float32), np.array([-np.inf, 0, 1.4], np.float32)
        vector.v_red_sample_idx(logits, whole, integer, 0, 2, 0, 48, 100, 2, 0, stream)
        for first in (0, 16, 32):
            vector.v_red_sample_idx(logits, parts, integer, 0, 3, first, 16, 100 + first, 2, 0, stream)
        assert integer[2] == integer[3]
        assert whole.tobytes() == parts.tobytes()


def test_random_lanes_are_uniform():
    lanes, integer = np.zeros(64, np.float32), np.array([9, 2], np.int32)
    drawn = []
    for stream in range(DRAWN // 64):
        vector.v_random_v(lanes, integer, 0, 0, 0, stream, 64)
        drawn.append(lanes.copy())
    values = np.concatenate(drawn)
    counts = np.histogram(values, 32, (0, 1))[0]
    assert chi_square(counts, len(values) / 32) < CRITICAL[31]
    assert not np.any(values.view(np.uint32) & 0xFFFF), "BF16"
