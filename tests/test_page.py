"""The pages that people open, in a browser without a network: a run's and a sweep's, on a screen and on a phone."""

import dataclasses
import html
import json
import re

import pytest

from npu.metrics import Table
from tests.browser import BROWSER, OFFLINE, dump, look_at
from tests.test_report import HOSTILE, make_outcome
from tripath.experiment import Generated
from tripath.report.page import document, table
from tripath.report.run_report import write_files
from tripath.sweeps.baseline import Drift
from tripath.sweeps.summary import Row, details
from tripath.sweeps.sweep_report import page_of_sweep

PHONE, SCREEN = 390, 1280
ORDER = [
    "Generated text", "Headline", "Phases", "Steps", "Stalls", "Roofline", "Timeline", "Discrepancies", "All tables", "Configuration",
    "Provenance", "How to run it again",
]  # fmt: skip
LONG = "x" * 400

browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome: apt-get install chromium")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two sequences of two blocks, with hostile and long texts."""
    from tests.conftest import compose_experiment

    experiment = compose_experiment("experiment=quick", "paths=[analytical,cycle]")
    generated = Generated(
        prompts=[HOSTILE, LONG], texts=[LONG, HOSTILE], token_ids=[[*range(16)], [*range(16, 32)]], trip_counts=[4, 8],
        tokens=[["<b>", LONG, "", *"abcdefghijklm"], [*"nopqrstuvwxyzABC"]],
        commit_steps=[[1, 1, 2, 2, 3, 3, 4, 4, *range(1, 9)], [4, 3, 2, 1, 1, 2, 3, 4, *range(8, 0, -1)]],
    )  # fmt: skip
    outcome = dataclasses.replace(make_outcome(experiment), generated=generated)
    folder = tmp_path_factory.mktemp("run")
    command = f"tripath 'workload.prompt={LONG}'"
    write_files(folder, experiment, outcome, configuration="a: 1\n", command=command)
    return folder


@browser
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_a_run_s_page_loads_nothing_fits_the_window_and_shows_the_steps(run_folder, tmp_path, width):
    seen = look_at(tmp_path, run_folder / "report.html", width)
    assert seen["loaded"] == []
    assert seen["width"] <= seen["seen"] <= width
    assert seen["headings"] == ORDER
    assert len(seen["pictures"]) == 4
    assert all(seen["pictures"])
    generation = json.loads((run_folder / "report.json").read_text())["generation"]
    shown = [token for block in seen["blocks"] for token in block]
    assert shown == [
        [token, str(step)]
        for sequence in generation["sequences"]
        for token, step in zip(sequence["tokens"], sequence["commit_steps"], strict=True)
    ]
    assert [len(block) for block in seen["blocks"]] == [8, 8, 8, 8]
    for block, trips in zip(seen["blocks"], generation["trip_counts"] * 2, strict=True):
        assert max(int(step) for _, step in block) == trips


ROWS = [
    Row(number=0, swept={"workload.cache": "none"}, verdict="passed", folder="0", metrics={"cycle.makespan_cycles": 9e6}),
    Row(number=1, swept={"workload.cache": "dual"}, verdict="passed", folder="1", metrics={"cycle.makespan_cycles": 3e6}),
    Row(number=2, swept={"workload.cache": HOSTILE}, verdict="bad input", error=f"workload.cache: unknown {LONG}"),
    Row(number=3, swept={"workload.cache": "prefix"}, verdict="failed", error="macs (count)", folder="3",
        metrics={"cycle.makespan_cycles": 4e6}),
]  # fmt: skip


def sweep_page(**changes):
    given = {
        "counts": {"passed": 2, "failed": 1, "bad input": 1, "not run": 0}, "good": False, "metric": "cycle.makespan_cycles",
        "command": "tripath --multirun workload.cache=none,dual", "commands": {2: f"tripath workload.cache={HOSTILE}"},
        "drifts": None, "pictures": [], "found": None,
    }  # fmt: skip
    return page_of_sweep(ROWS, **{**given, **changes})


def test_a_sweep_s_page_says_first_what_failed_then_the_jobs_by_the_metric():
    page = sweep_page()
    assert "2 passed, 1 failed, 1 bad input</p>" in page
    assert page.count("<script") == 1
    failed, jobs = page.index(">Failed jobs</h2>"), page.index(">Jobs</h2>")
    assert failed < jobs
    assert f"unknown {LONG}" in page[failed:jobs], "the reason is whole"
    assert "tripath workload.cache=&lt;script&gt;" in page[failed:jobs]
    places = [page.index(text, jobs) for text in (">dual</td>", ">prefix</td>", ">none</td>", ">&lt;script")]
    assert places == sorted(places)
    assert [page.count(f'<a href="{number}/report.html">') for number in range(4)] == [1, 1, 0, 2]


def test_a_sweep_s_page_shows_drifts_and_what_a_search_found():
    drift = Drift(job="cache=dual", metric="cycle.makespan_cycles", old=1.0, new=2.0, tolerance=0.1)
    page = sweep_page(drifts=[drift], found=("12 designs, 3 on the front", Table(columns=["job"], rows=[["7"]])))
    assert "; drifts from the baseline: 1</p>" in page
    assert str(drift) in page
    assert "12 designs, 3 on the front." in page
    assert "<summary>4 jobs, by cycle.makespan_cycles</summary>" in page


ACT = """<!doctype html><iframe src="{page}"></iframe><pre id="answer"></pre><script>
document.querySelector('iframe').onload = event => {{
  const page = event.target.contentDocument, table = page.querySelector('table'), seen = [];
  const note = () => seen.push([...table.tBodies[0].rows].filter(row => !row.classList.contains('off'))
    .map(row => [...row.cells].filter(cell => !cell.classList.contains('off')).map(cell => cell.textContent)));
  note();
  for (const at of [1, 1, 0]) {{ table.tHead.rows[0].cells[at].click(); note(); }}
  const search = page.querySelector('input[type=search]');
  search.value = 'KIND 1,500'; search.oninput(); note();
  search.value = ''; search.oninput();
  const boxes = page.querySelectorAll('input[type=checkbox]');
  boxes[1].click(); boxes[2].click(); note();
  document.getElementById('answer').textContent = JSON.stringify(seen);
}};
</script>"""


SHOWN_BY_A_SERVER = """<!doctype html><iframe></iframe><pre id="answer"></pre><script>
const frame = document.querySelector('iframe');
frame.onload = event => {{
  const page = event.target.contentDocument;
  document.getElementById('answer').textContent = JSON.stringify(
    [[...page.querySelectorAll('a')].map(link => link.getAttribute('href')), page.querySelector('tbody').textContent]);
}};
frame.src = URL.createObjectURL(new Blob([{text}], {{ type: 'text/html' }}));
</script>"""


@browser
def test_in_a_page_that_a_server_shows_by_itself_no_link_leads_nowhere(tmp_path):
    """MLflow shows an artifact from memory: the reports of jobs are not beside it."""
    text = json.dumps(sweep_page()).replace("</", "<\\/")
    (tmp_path / "ask.html").write_text(SHOWN_BY_A_SERVER.format(text=text))
    answer = dump(tmp_path / "profile", (tmp_path / "ask.html").as_uri(), *OFFLINE)
    links, jobs = json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', answer, re.DOTALL)[1]))
    assert links
    assert all(link.startswith("#") for link in links)
    assert jobs.split()[0].startswith("1dual"), "the number of the job stays"


HEIGHTS = """<!doctype html><iframe width="{width}" height="900" src="{page}"></iframe><pre id="answer"></pre><script>
document.querySelector('iframe').onload = event => {{
  const rows = event.target.contentDocument.querySelector('table').tBodies[0].rows;
  document.getElementById('answer').textContent = JSON.stringify([...rows].map(row => row.clientHeight));
}};
</script>"""


@browser
def test_on_a_phone_only_long_texts_are_broken_into_lines(tmp_path):
    rows = [["matrix", 1e9, "matrix 98%, its pace"], ["dma_in", 2e9, "what workload.cache=dual refreshes, and why"]]
    columns = ["unit", *(f"cycles {number}" for number in range(4)), "prolonged by"]
    wide = [[first, *[value] * 4, last] for first, value, last in rows]
    (tmp_path / "report.html").write_text(document("title", [table(Table(columns=columns, rows=wide))]))
    (tmp_path / "ask.html").write_text(HEIGHTS.format(width=PHONE, page=(tmp_path / "report.html").as_uri()))
    text = dump(tmp_path / "profile", (tmp_path / "ask.html").as_uri(), *OFFLINE)
    short, long = json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', text, re.DOTALL)[1]))
    assert 2 * short - 10 <= long <= 5 * short


@browser
def test_tables_sort_filter_and_show_the_columns_that_are_chosen(tmp_path):
    cycles = [9_000_000, 12, 1_500, 1.5, 700, 800, 900, 1_000, 1_100]
    rows = [[f"kind {n}", value, n] for n, value in enumerate(cycles)]
    part = table(Table(columns=["name", "cycles", "more"], rows=rows), extra=["more"])
    (tmp_path / "report.html").write_text(document("title", [part]))
    (tmp_path / "ask.html").write_text(ACT.format(page=(tmp_path / "report.html").as_uri()))
    text = dump(tmp_path / "profile", (tmp_path / "ask.html").as_uri(), *OFFLINE)
    seen = json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', text, re.DOTALL)[1]))
    first, up, down, named, found, chosen = seen
    assert [len(row) for row in first] == [2] * len(rows), "an extra column is hidden until it is chosen"
    numbers = [[float(row[1].replace(",", "")) for row in each] for each in (up, down)]
    assert numbers == [sorted(cycles), sorted(cycles, reverse=True)]
    assert [row[0] for row in named] == [row[0] for row in rows]
    assert [row[0] for row in found] == ["kind 2"]
    assert chosen == [[row[0], str(row[2])] for row in rows]


def test_a_sweep_s_page_has_bound_energy_area_and_other_hardware_of_each_job():
    metrics = {"analytical.estimated_cycles": 100.0, "analytical.bound_cycles.matrix": 40.0, "analytical.area_mm2": 2.5,
               "analytical.bound_cycles.memory": 90.0, "analytical.energy_joules": 7.0}  # fmt: skip
    report = {"devices": {"a100": {"tokens_per_second": 321.0}, "npu": {"tokens_per_second": 5.0}}}
    rows = [
        Row(number=10 + n, swept={"workload.batch": str(n)}, verdict="passed", metrics=metrics, report=report)
        for n in range(2)
    ]
    shown, extra = details([*rows, ROWS[0]], "analytical.estimated_cycles")
    first = dict(zip(shown.columns, shown.rows[0], strict=True))
    known = {
        "bound by": "memory 90%",
        "analytical.energy_joules": "7",
        "analytical.area_mm2": "2.5",
        "a100, tokens/s": "321",
    }
    assert {name: first[name] for name in known} == known
    assert "npu, tokens/s" not in first
    assert set(extra) <= set(first)
    assert not {*known} & {*extra}
    assert "bound by" not in details(ROWS, "cycle.makespan_cycles")[0].columns, "no job says it"


@browser
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_a_sweep_s_page_loads_nothing_and_fits_the_window(run_folder, tmp_path, width):
    (tmp_path / "report.html").write_text(sweep_page(pictures=[run_folder / "roofline.png"]))
    seen = look_at(tmp_path, tmp_path / "report.html", width)
    assert seen["loaded"] == []
    assert seen["width"] <= seen["seen"] <= width
    assert all(seen["pictures"])
    assert [target for target in seen["links"] if not target.startswith("#")] == [
        "3/report.html", "1/report.html", "3/report.html", "0/report.html",
    ]  # fmt: skip
