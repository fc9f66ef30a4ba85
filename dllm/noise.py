"""Random numbers of a decoding, by sequence, block, row, step and entry alone: what the machine draws, in plain NumPy.

Threefry-2x32 with 20 rounds (Salmon et al., SC 2011) under the key (seed, purpose), of the counter (entry, stream).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from dllm.workload import Workload


class Purpose(IntEnum):
    """The purpose of random numbers: the second word of their key."""

    SAMPLING = 0
    RANKING = 2
    CANVAS = 4


def threefry(key: tuple[int, int], counter: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Both words (uint32) of counters under a key."""
    keys = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0] ^ key[1] ^ 0x1BD11BDA)]
    a, b = (np.asarray(word, np.uint32) + own for word, own in zip(counter, keys, strict=False))
    for group in range(5):
        for turn in (17, 29, 16, 24) if group % 2 else (13, 15, 26, 6):
            a = a + b
            b = (b << np.uint32(turn) | b >> np.uint32(32 - turn)) ^ a
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The random numbers of a sequence of the batch."""

    workload: Workload
    sequence: int

    def gumbel(self, block: int, rows: int, step: int, entries: int) -> np.ndarray:
        """Gumbel noise [rows, entries] for so many rows of a block."""
        words = self._words(Purpose.SAMPLING, np.arange(entries)[None], self._streams(block, rows, step)[:, None])
        return -np.log(-np.log1p(-(words + 0.5) / 2.0**32))

    def uniform(self, block: int, rows: int, step: int) -> np.ndarray:
        """A number between 0 and 1 for so many rows of a block [rows]."""
        words = self._words(Purpose.RANKING, np.arange(rows), self._streams(block, 1, step))
        return ((words >> np.uint32(9)) + 0.5) / 2.0**23

    def tokens(self, block: int, step: int, vocabulary: int) -> np.ndarray:
        """A random token for each row of a block [L]: those drawn anew at a step, or behind the last step those it begins
        with."""
        rows = np.arange(self.workload.block_length)
        words = self._words(Purpose.CANVAS, rows, self._streams(block, 1, step))
        return (words.astype(np.int64) * vocabulary) >> 32

    def _words(self, purpose: Purpose, entries: np.ndarray, streams: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # additions are modulo 2^32
            counter = np.broadcast_arrays(entries, streams)
            return threefry((self.workload.seed, purpose), (counter[0], counter[1]))[0]

    def _streams(self, block: int, rows: int, step: int) -> np.ndarray:
        w = self.workload
        positions = self.sequence * w.block_length + np.arange(rows) * (w.block_length // rows)
        return (positions * (w.blocks + 1) + block) * (w.most_steps + 1) + step
