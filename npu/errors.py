"""Errors that a user can act on: one line, `subject: rule broken, value, limit`."""

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

CHOICE = re.compile(r"(?:'(?P<quoted>[^']+)'|(?P<key>[^\s:]+): no such [a-z]+), one of (?P<known>[^;]+)$")
"""An unknown value or key, and what is known instead."""


class TripathError(ValueError):
    """A mistake in the input: configuration, checkpoint, program file. The command exits with status 2."""


class NotInstalledError(TripathError):
    """An optional dependency is missing."""


class CapacityError(TripathError):
    """A working set does not fit a memory of the hardware."""


class ProgramError(TripathError):
    """A program is malformed, illegal, or deadlocks."""


def print_error(message: str) -> None:
    """Write an error to standard error, in one line; where it lists what is known, with what was probably meant."""
    line = " ".join(message.split())
    choice = CHOICE.search(line)
    if choice:
        line += did_you_mean(choice["quoted"] or choice["key"].rpartition(".")[2], choice["known"].split(", "))
    sys.stderr.write(f"error: {line}\n")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` with the name that `given` is close to, or nothing."""
    near = get_close_matches(given, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
