"""Programs that were proved to have no race: a proof is a property of the program and of the rules, and is kept.

An empty verdict file below the user's cache folder stands for each; its name is a digest of the program and of the sources of
the race check.
"""

import contextlib
import hashlib
from pathlib import Path

from cycle.races import check_races
from npu.files import write_atomically
from npu.program import Program
from npu.sources import digest_of_sources, user_cache


def verdict_file(program: Program) -> Path:
    """Where the proof of a program is noted."""
    name = hashlib.sha256(f"{program.digest}{digest_of_sources('cycle.races')}".encode()).hexdigest()
    return user_cache() / "proofs" / name


def prove(program: Program) -> None:
    """Check a program for races, unless the same program was found to have none before.

    Raises:
        ProgramError: naming both instructions, the memory and the address.
    """
    file = verdict_file(program)
    if file.is_file():
        return
    check_races(program)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs the time of the next proof
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file)
