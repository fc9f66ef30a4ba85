"""`tripath` and `python -m tripath`: a command by its name, or the configuration of a run.

What takes time to load is loaded by `main` and `command`, which take an interruption already.
"""

import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130
ENDING = (signal.SIGINT, signal.SIGTERM)
RUN, SWEEP = "run", "sweep"
COMMANDS = {
    RUN: ("", "one job: `tripath KEY=VALUE ...` is short for it"),
    SWEEP: ("", "every combination of what is swept: `tripath --multirun KEY=A,B ...` is short for it"),
    "compare": ("tripath.command.compare", "two runs, or two configurations, side by side"),
    "explain": ("tripath.command.explain", "why a run is as fast as it is, or where two differ"),
    "estimates": ("tripath.sweeps.estimates", "how far the analytical path is from the cycle path, over a sweep"),
    "baseline": ("tripath.sweeps.baseline", "the file that a sweep is held to"),
    "sync": ("tripath.tracking.sync", "log to MLflow what a run or a sweep could not"),
    "cluster": ("tripath.command.cluster", "a cluster that stands between commands, which then start at once"),
    "doctor": ("tripath.command.doctor", "what is installed, where things are kept, and what is wrong"),
}
"""Module and meaning of each command; one without a module is the configuration of a run."""


def main() -> None:
    """Entry point: the version without loading anything, else a command."""
    try:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as it is in the background of a script
                signal.signal(number, signal.default_int_handler)
        status = command(sys.argv[1:])
    except KeyboardInterrupt:  # before the command line could take it
        _ignore()
        sys.stderr.write("error: interrupted\n")
        status = INTERRUPTED
    _ignore()  # what is left is the interpreter's end
    eval("0")  # noqa: S307  else an interruption of such a text, in a library, would have Python end itself by SIGINT
    sys.exit(status)


def _ignore() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def command(arguments: Sequence[str]) -> int:
    """Carry out a command; its exit status."""
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"tripath {version('tripath')}")
        return 0
    name, *rest = arguments or [RUN]
    if name.startswith("-") or "=" in name:
        name, rest = RUN, list(arguments)
    if name not in COMMANDS:
        from npu.errors import did_you_mean, print_error

        near = did_you_mean(name, COMMANDS)
        print_error(f"arguments: no command {name!r}; write KEY=VALUE, or one of {', '.join(COMMANDS)}{near}")
        return 2
    module, _ = COMMANDS[name]
    if module:
        from importlib import import_module

        return import_module(module).main(rest)
    sys.argv[1:] = ["--multirun", *rest] if name == SWEEP and "--multirun" not in rest else rest
    from tripath.cluster.standing import delegate

    status = delegate(sys.argv[1:])
    if status is None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that libraries start leave it to this one
        from tripath.command.cli import run

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        status = run()
    return status


if __name__ == "__main__":
    main()
