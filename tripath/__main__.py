"""`python -m tripath` and the command `tripath`."""

import sys


def main() -> None:
    """Entry point: the version without loading anything, else the command line."""
    if "--version" in sys.argv[1:]:
        from importlib.metadata import version

        print(f"tripath {version('tripath')}")
        return
    from tripath.command.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
