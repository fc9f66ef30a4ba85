"""Errors that a user can act on: one line, `subject: rule broken, value, limit`."""

import argparse
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

CHOICE = re.compile(r"(?:'(?P<quoted>[^']+)'|(?<![^\s:])(?P<key>[^\s:]+): no such [a-z]+), one of (?P<known>[^;]+)$")
"""An unknown value or key, and what is known instead."""


MOST_CHARACTERS = 2000
"""Of an error's line; of a longer one the beginning and the end are shown."""


class TripathError(ValueError):
    """A mistake in the input: configuration, checkpoint, program file. The command exits with status 2."""


class NotInstalledError(TripathError):
    """An optional dependency is missing."""


class CapacityError(TripathError):
    """A working set does not fit a memory of the hardware."""


class ProgramError(TripathError):
    """A program is malformed, illegal, or deadlocks."""


class Arguments(argparse.ArgumentParser):
    """The arguments of a command, whose mistakes are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse arguments.

        Raises:
            TripathError: always.
        """
        raise TripathError(f"arguments: {message}; see {self.prog} --help")


def print_error(message: str) -> None:
    """Write an error to standard error, in one line; where it lists what is known, with what was probably meant."""
    line = " ".join(message.split())
    choice = CHOICE.search(line)
    near = (
        did_you_mean(choice["quoted"] or choice["key"].rpartition(".")[2], choice["known"].split(", "))
        if choice
        else ""
    )
    if len(line) > MOST_CHARACTERS:
        line = f"{line[: MOST_CHARACTERS // 2]} ... {line[-MOST_CHARACTERS // 4 :]}"
    sys.stderr.write(f"error: {printable(line)}{near}\n")


def printable(text: str) -> str:
    """Text without characters that would act on a terminal: they are shown as Python writes them."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` with the name that `given` is close to, or nothing."""
    near = get_close_matches(given, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
