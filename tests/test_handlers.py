"""How signals that end a command are taken stays as Python has it, whatever native code does; and a command ends with its own status."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tripath.cluster.handlers import hold, kept_handler, release
from tripath.command.cli import _interruption

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


def test_python_importing_is_interrupted_in_a_moment():
    """The exception would leave the lock of imports taken, for which other threads then wait."""
    own = "import os\nos.kill(os.getpid(), number)\nfor _ in range(1000): pass\nended.append(os.getpid())"
    code, ended = compile(own, "<frozen importlib._bootstrap>", "exec"), []
    before = {number: signal.signal(number, _interruption()) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        exec(code, {"number": signal.SIGTERM, "ended": ended})
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended == [os.getpid()]


def test_an_interruption_within_a_text_of_python_leaves_the_status(tmp_path):
    (tmp_path / "ours.py").write_text(IN_A_TEXT)
    python_path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, "-m", "ours"], env={**os.environ, "PYTHONPATH": python_path})
    assert done.returncode == 130
