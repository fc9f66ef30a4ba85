"""The arguments of a command: what is refused before Hydra reads them, and commands as text to paste into a shell."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from npu.errors import TripathError, did_you_mean
from npu.sources import ROOT

SEVERAL_FILES = re.compile(
    r"(experiment|model|hardware|workload|numerics|compiler|scheme|technology|simulator|validation|launch|tracking)=(\[.*)"
)
"""Hydra would merge them, the last one over the others."""
ANY_TEXT = (
    "workload.prompt", "workload.prompts_file", "model.checkpoint", "model.adapter",
    "simulator.quality.dataset", "workload.answer", "tracking.folder", "tracking.uri", "launch.cache_folder",
    "validation.streams", "validation.measurements", "validation.areas",
    "validation.figures",
)  # fmt: skip
"""Keys whose text may hold characters of Hydra's grammar."""


def read_flags() -> Sequence[str]:
    """Read the flags that a command printed later needs too. Unknown ones are refused, and a prompt may hold any character.

    Raises:
        TripathError: an argument is none that `tripath` takes.
    """
    for argument in sys.argv:
        if argument.encode(errors="replace").decode() != argument:
            raise TripathError(f"arguments: must be UTF-8, got {argument!r}")
        if several := SEVERAL_FILES.match(argument):
            raise TripathError(
                f"{several[1]}: takes one file, got {several[2]}; several are swept, {several[1]}=A,B with --multirun"
            )
    if "--multirun" not in sys.argv and "-m" not in sys.argv:
        sys.argv[1:] = [quote_text(argument) for argument in sys.argv[1:]]
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        unknown, flags = message.rpartition(" ")[2], re.findall(r"--[a-z-]+", parser.format_usage())
        near = did_you_mean(unknown, flags) if unknown.startswith("-") else ""
        raise TripathError(f"arguments: {message}; see tripath --help{near}")

    parser.error = refuse
    given = parser.parse_args()
    if given.experimental_rerun is not None:
        raise TripathError(
            "arguments: --experimental-rerun reads a pickle, which may run code; paste the command of a report"
        )
    return ["--config-dir", given.config_dir] if given.config_dir else []


def quote_text(argument: str) -> str:
    """`KEY=TEXT` of a prompt or path with TEXT quoted: in Hydra's grammar commas, brackets and signs have a meaning."""
    key, _, text = argument.partition("=")
    if key not in ANY_TEXT or text == "null" or text[:1] in ("'", '"'):
        return argument
    return quoted(key, text)


def quoted(key: str, text: str) -> str:
    """The override that gives `key` any text."""
    # A backslash has a meaning only before what it escapes: an interpolation, a quote, and the closing quote.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)("|\Z)', lambda run: run[1] * 2 + ('\\"' if run[2] else ""), escaped)
    return f'{key}="{escaped}"'


def shell_line(*arguments: str) -> str:
    """The shell command that runs `tripath` with these arguments and finds the user's own modules."""
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path).resolve() != ROOT]
    found = os.pathsep.join(str(Path(path).absolute()) for path in own)
    return f"PYTHONPATH={shlex.quote(found)} " * bool(own) + shlex.join(["tripath", *arguments])


def values_of(overrides: Sequence[str]) -> dict[str, str]:
    """The values of a job's overrides, by key without a leading `+`."""
    values: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        values[key.lstrip("+")] = value
    return values
