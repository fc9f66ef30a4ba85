"""The dynamic part of a run: where its loops were left, how often others went round, and which rows were gathered."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from npu.errors import ProgramError


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The data-dependent part of a run: recorded by accuracy, or made from a workload's schedule; replayed by the timing paths.

    `breaks` holds, for each entry into a loop that a `C_BREAK_IF` may leave, in the order of the entries, the loop index at
    which it was left. `gathers` holds the row index of every `H_GATHER_V`, in order; it may be empty (timing then takes row
    0). `counts` holds the number that each `C_COUNT` read, in order.
    """

    breaks: tuple[int, ...]
    gathers: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over breaks and gathers, and counts where there are any, as 64 hexadecimal digits."""
        streams = [np.asarray(self.breaks, np.int64), np.asarray(self.gathers, np.int64)]
        streams += [self.numbers] if self.counts else []
        found = hashlib.sha256(streams[0].data)
        for stream in streams[1:]:
            found.update(b"|")
            found.update(stream.data)
        return found.hexdigest()

    @cached_property
    def numbers(self) -> np.ndarray:
        """`counts` as an array (int64)."""
        numbers = np.fromiter(self.counts, np.int64, len(self.counts))
        numbers.setflags(write=False)
        return numbers

    def __hash__(self) -> int:
        """Of the digest, which is worked out once: a mixture of experts reads a million numbers, and facts are kept by trace."""
        return hash(self.digest)

    def __post_init__(self) -> None:
        for name, each in (("loop index", np.array(self.breaks, np.int64)), ("count", self.numbers)):
            if len(each) and each.min() < 0:
                raise ProgramError(f"trace: {name} must not be negative, got {each.min()}")
