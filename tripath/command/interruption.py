"""Ends a command on a signal, as Ctrl-C does, at a moment when Python can do so; finished work is still written."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

ENDING = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 2.0
"""Signals that follow one another within these are one interruption."""
IMPORTING, MOMENT_SECONDS = "<frozen importlib", 0.001


class Interruption:
    """A handler of signals that raises KeyboardInterrupt.

    A signal that follows at once changes nothing, since it would leave half of what the first one ends. Two moments wait for the
    next one: code of Python that imports, which might keep the lock that all threads import with; and the end of an object,
    where Python only notes an exception and goes on.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, or wait for a moment where it may be."""
        if frame is not None and frame.f_code.co_filename.startswith(IMPORTING):
            self._wait()
            return
        before, self._last = self._last, time.monotonic()
        if self._last - before > SAME_SECONDS:
            raise KeyboardInterrupt

    def lost(self, noted: "UnraisableHookArgs") -> None:
        """Take what Python notes instead of raising it."""
        if noted.exc_type is KeyboardInterrupt:
            self._last = -math.inf
            self._wait()
        else:
            sys.__unraisablehook__(noted)

    def _wait(self) -> None:
        signal.signal(signal.SIGALRM, self)
        signal.setitimer(signal.ITIMER_REAL, MOMENT_SECONDS)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise KeyboardInterrupt, except one that is ignored, as in the background of a script."""
    interrupt, hook = Interruption(), sys.unraisablehook
    handlers = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGALRM)}
    for number in ENDING:
        if handlers[number] is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.unraisablehook = interrupt.lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Within, an exception that was made of an interruption is one: Python itself wraps what comes from `__set_name__`."""
    try:
        yield
    except Exception as error:
        if _made_of_interruption(error):
            raise KeyboardInterrupt from error
        raise


def _made_of_interruption(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def hold_interruptions() -> None:
    """Ignore further signals: another one would leave half of what follows."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
