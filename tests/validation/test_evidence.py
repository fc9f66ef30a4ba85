"""The page of evidence is what its command writes, every figure stands on it once, and its picture is drawn."""

from pathlib import Path

import pytest

from tests.conftest import compose_experiment
from tripath.command.evidence import PAGE, page
from tripath.validation.evidence import judge
from tripath.validation.figures import calibration, misses
from tripath.validation.predictions import Models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    pictures = folder / "evidence.svg", folder / "evidence.png"
    return page(pictures), pictures


@pytest.fixture(scope="module")
def judged():
    x = compose_experiment("experiment=figures")
    return judge(x.figures, Models(devices=x.devices, models=x.models, memories=x.memories))


def test_the_page_is_what_its_command_writes(made):
    assert (ROOT / PAGE).read_text(encoding="utf-8") == made[0]


def test_every_figure_stands_on_the_page(made):
    ids = [row.id for row in compose_experiment("experiment=figures").figures]
    tables = made[0].partition("## Compared")[2]
    assert [each for each in ids if f"| {each} |" not in tables] == []
    assert "<!--" not in made[0], "every table is filled in"


def test_figures_that_gave_a_number_stand_with_their_error(made, judged):
    section = made[0].partition("## What gave a number")[2].partition("\n## ")[0]
    listed = {cells[0]: cells for line in section.splitlines() if len(cells := line.split(" | ")) > 5}
    rows = [row for row in judged if row.figure.id in calibration()]
    assert len(listed) == len(rows) + 2, "a line each, beside the head and its rule"
    for row in rows:
        cells = listed[f"| {row.figure.id}"]
        if row.prediction:
            assert float(cells[2]) == pytest.approx(row.figure.value, rel=1e-3)
            off = 100 * (row.prediction.value - row.figure.value) / row.figure.value
            assert cells[5] == f"{off:+.1f}%"
            assert (f"| {row.figure.id} | {off:+.0f}% |" in section) == (abs(off) > 25)


def test_every_miss_has_its_reason(judged):
    missed = {row.figure.id for row in judged if row.missed}
    assert missed == set(misses()), "neither a miss without a reason nor a reason for what is met"


def test_the_picture_is_drawn(made):
    svg, png = made[1]
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text(encoding="utf-8")
    assert text.count("<use ") > 150, "a mark for each figure that is predicted"
