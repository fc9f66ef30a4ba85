"""The tutorials of the kinds of users are true: their files are written and their commands run, in order, and print what is shown.

The pages are read by machine: `New file` heads a file, `sh` fences are commands, and a `text` fence is what the fence before it
prints, where `...` stands for anything. Marked as not run is what needs an MLflow server: one takes minutes on two cores.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"tutorial_{name}.md").read_text() for name in ("architect", "quantisation", "ci")}
FENCE = re.compile(
    r"^(?:New file `(?P<file>[^`]+)`:\n\n|(?P<left_out><!-- not run -->)\n)?```(?P<kind>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COST = ("scheme", "exact match", "logit KL, nats", "cycles")
SECONDS = 1800


@pytest.fixture
def place(tmp_path):
    """An empty folder with the checkout's shipped checkpoints, and a standing cluster of its own, if the page starts one."""
    (tmp_path / "accuracy").symlink_to(ROOT / "accuracy")
    yield tmp_path
    run("tripath cluster stop", tmp_path)


def run(script, place):
    """Status and output of shell commands, up to the first that fails."""
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "TRIPATH_CACHE": str(place / "cache"), "TRIPATH_CLUSTER": str(place / "cluster"), "COLUMNS": "160",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-ec", script], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def shows(shown, printed):
    """The lines of a page stand in what was printed, in their order."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in shown.split("...")]
    return re.search(".*?".join(parts), printed, re.DOTALL) is not None


def tables(text):
    """The rows of the tables of a page, each a mapping from heading to cell."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        yield from (dict(zip(heading, row, strict=True)) for row in rows)


@pytest.mark.system
@pytest.mark.parametrize("name", PAGES)
def test_a_tutorial_s_commands_run_and_print_what_it_shows(name, place):
    printed = None
    for fence in FENCE.finditer(PAGES[name]):
        body = fence["body"]
        if fence["file"]:
            file = place / fence["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body)
        elif fence["kind"] == "sh":
            status, printed = (0, None) if fence["left_out"] else run(body, place)
            assert status == 0, printed
        elif printed is not None:
            assert shows(body, printed), printed
    if name == "quantisation":
        costs = [{key: row[key] for key in COST} for row in tables((place / "runs/schemes/quality.md").read_text())]
        assert costs == [row for row in tables(PAGES[name]) if "scheme" in row]
    if name == "architect":
        assert (place / "runs" / "front" / "pareto.png").is_file()


def test_a_shown_line_is_found_by_its_words():
    assert shows("a  1 ...\n...\nb 2", "x\na 1 other\nmore\nb    2\n")
    assert not shows("b 2\n...\na 1", "a 1\nb 2\n")
    assert not shows("a 1", "a 2\n")
