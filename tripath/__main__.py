"""`python -m tripath` and the command `tripath`."""

import signal
import sys


def main() -> None:
    """Entry point: the version without loading anything, else the command line."""
    if "--version" in sys.argv[1:]:
        from importlib.metadata import version

        print(f"tripath {version('tripath')}")
        return
    try:
        from tripath.command.cli import run

        status = run()
    except KeyboardInterrupt:  # before the command line could take it
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is the interpreter's end
    sys.exit(status)


if __name__ == "__main__":
    main()
