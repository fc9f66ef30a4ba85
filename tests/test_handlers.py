"""How signals that end a command are taken stays as Python has it, whatever native code does; and a command ends with its own status."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from tripath.cluster.handlers import hold, kept_handler, release
from tripath.command.interruption import interruptible

ROOT = Path(__file__).parents[1]
IN_A_TEXT = """
import sys
from tripath import __main__ as command

def interrupted(arguments):
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return 130

command.command = interrupted
command.main()
"""


@pytest.fixture
def handled():
    """Counts signals."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("native", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_handler_that_native_code_replaces_finds_what_came_meanwhile(handled, native):
    hold()
    try:
        with kept_handler():
            ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(int(native)))
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # no other thread of the tests holds it
        assert handled == []
    finally:
        release()
    assert handled == [signal.SIGTERM]


def test_a_signal_that_python_ignores_stays_ignored(handled):
    with kept_handler():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(int(signal.SIG_DFL)))
    os.kill(os.getpid(), signal.SIGTERM)
    assert handled == []


def test_a_process_takes_the_signal_that_its_thread_holds():
    """Python runs what was registered for forks where a process is started with a function, as Ray starts its own."""
    hold()
    try:
        process = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None)  # noqa: PLW1509
    finally:
        release()
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_python_importing_is_interrupted_in_a_moment(number):
    """The exception would leave the lock of imports taken, for which other threads then wait."""
    own = "import os\nos.kill(os.getpid(), number)\nfor _ in range(1000): pass\nended.append(os.getpid())"
    code, ended = compile(own, "<frozen importlib._bootstrap>", "exec"), []

    def begin():
        exec(code, {"number": number, "ended": ended})
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), interruptible():
        begin()
    assert ended == [os.getpid()]


class Ending:
    """An object in whose end a signal comes, in that of another one too where `others` follow."""

    def __init__(self, others=0):
        self.others = others

    def __del__(self):
        interrupt(signal.SIGINT)
        if self.others:
            Ending(self.others - 1)


def interrupt(number):
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


def ended_with(others):
    def ended():
        Ending(others)
        time.sleep(5)

    return ended


def ended_by(number):
    def ended():
        reference = weakref.ref(held := threading.Event(), lambda _: interrupt(number))
        del held
        time.sleep(5)
        return reference

    return ended


@pytest.mark.parametrize(
    "ends", [ended_with(0), ended_with(2), ended_by(signal.SIGINT), ended_by(signal.SIGTERM)]
)  # fmt: skip
def test_what_python_only_notes_interrupts_in_a_moment(capfd, ends):
    """An exception in the end of an object, or in what a weak reference calls, goes no further."""
    with pytest.raises(KeyboardInterrupt), interruptible():
        ends()
    assert capfd.readouterr().err == ""


def test_what_else_python_only_notes_is_still_shown(capfd):
    def fails(_reference):
        raise ValueError("of ours")

    reference = weakref.ref(held := threading.Event(), fails)
    with interruptible():
        del held
    assert reference() is None
    assert "of ours" in capfd.readouterr().err


def test_an_interruption_within_a_text_of_python_leaves_the_status(tmp_path):
    (tmp_path / "ours.py").write_text(IN_A_TEXT)
    python_path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, "-m", "ours"], env={**os.environ, "PYTHONPATH": python_path})
    assert done.returncode == 130
