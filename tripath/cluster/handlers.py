"""Handlers of signals, kept as Python has them: Ray's native code replaces that of SIGTERM while it starts, by one that aborts,
and takes it away while it ends, so that the signal would kill the command in the midst of its files."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)
EVERY_SECONDS = 0.002
ACTION_BYTES = 256
"""Room for what `sigaction` takes, which begins with the handler's address, or 1 for none."""
ADDRESS_BYTES = ctypes.sizeof(ctypes.c_void_p)
IGNORED = (1).to_bytes(ACTION_BYTES, "little")


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put back, as soon as it changes, how the signals that end a command are taken; from any thread."""
    native = ctypes.CDLL(None)
    own, ended = {number: _action(native, number) for number in ENDING}, threading.Event()

    def keep() -> None:
        while True:
            last = ended.wait(EVERY_SECONDS)
            for number, action in own.items():
                wanted = IGNORED if signal.getsignal(number) is signal.SIG_IGN else action
                if _action(native, number)[:ADDRESS_BYTES] != wanted[:ADDRESS_BYTES]:
                    native.sigaction(number, wanted, None)
            if last:
                return

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _action(native: ctypes.CDLL, number: int) -> bytes:
    """How a signal is taken."""
    found = ctypes.create_string_buffer(ACTION_BYTES)
    native.sigaction(number, None, found)
    return found.raw
