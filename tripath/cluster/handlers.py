"""SIGTERM, taken as Python has it: Ray's native code replaces its handler while it starts, by one that aborts, and takes it away
while it ends, so that the signal would kill the command in the midst of its files.

So the signal waits while Ray starts and while it ends, and then finds Python's handler again. Processes that Ray starts do not
wait.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

ACTION_BYTES = 256
"""Room for what `sigaction` takes, which begins with the handler's address, or 1 for none."""
IGNORED = (1).to_bytes(ACTION_BYTES, "little")


def hold() -> None:
    """Have SIGTERM wait, for this thread and those that it starts, but not for processes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def release() -> None:
    """Take SIGTERM again in this thread, also what came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


os.register_at_fork(after_in_child=release)


@contextmanager
def kept_handler() -> Iterator[None]:
    """Put back in the end how SIGTERM is taken, from any thread; what Python ignores meanwhile stays ignored."""
    native, action = ctypes.CDLL(None), ctypes.create_string_buffer(ACTION_BYTES)
    native.sigaction(signal.SIGTERM, None, action)
    try:
        yield
    finally:
        ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        native.sigaction(signal.SIGTERM, IGNORED if ignored else action, None)
