"""Errors that a user can act on: one line, `subject: rule broken, value, limit`."""

import sys


class TripathError(ValueError):
    """A mistake in the input: configuration, checkpoint, program file. The command exits with status 2."""


class NotInstalledError(TripathError):
    """An optional dependency is missing."""


class CapacityError(TripathError):
    """A working set does not fit a memory of the hardware."""


class ProgramError(TripathError):
    """A program is malformed, illegal, or deadlocks."""


def print_error(message: str) -> None:
    """Write an error to standard error, in one line."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
