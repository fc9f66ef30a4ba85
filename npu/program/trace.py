"""The dynamic part of a run: where its loops were left, and which rows were gathered."""

import hashlib
from dataclasses import dataclass

import numpy as np

from npu.errors import ProgramError


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What depends on data: recorded by accuracy, or made from the schedule of a workload; replayed by the timing paths.

    `breaks` holds, for each entry into a loop that a `C_BREAK_IF` may leave (in program order), the loop index at which
    it was left. `gathers` holds the row index of every `H_GATHER_V`, in order; it may be empty (timing then takes row 0).
    """

    breaks: tuple[int, ...]
    gathers: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over breaks and gathers, as 64 hexadecimal digits."""
        text = np.asarray(self.breaks, np.int64).tobytes() + b"|" + np.asarray(self.gathers, np.int64).tobytes()
        return hashlib.sha256(text).hexdigest()

    def __post_init__(self) -> None:
        if any(index < 0 for index in self.breaks):
            raise ProgramError(f"trace: loop index must not be negative, got {min(self.breaks)}")
