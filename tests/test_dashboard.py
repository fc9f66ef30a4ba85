"""MLflow's page in a browser: a sweep and its jobs are there, a filter by verdict works, a report shows inline."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote

import pytest

from tests.browser import BROWSER, SECONDS, dump
from tripath.tracking.record import Record
from tripath.tracking.store import Store, Tracking

WINDOW = "--window-size=1600,900"
FAILED = "tags.verdict = 'failed'"

pytestmark = [
    pytest.mark.system, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome: apt-get install chromium"),
]  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A function from the end of an address to the page that a browser makes of it, and the run of a report."""
    folder = tmp_path_factory.mktemp("dashboard")
    store = Store(Tracking(enabled=True, uri=None, folder=str(folder), experiment="tests"))
    (folder / "report.html").write_text("<h1>what was found</h1>")
    for verdict in ("passed", "failed"):
        tags = {"verdict": verdict}
        parent = store.begin(Record(name=f"sweep that {verdict}", status="RUNNING", tags=tags), folder)
        record = Record(name=f"job that {verdict}", status="FINISHED", tags=tags, files=["report.html"])
        job = store.log(record, folder, parent.run_id)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1"]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{base}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.5)

    def page(end):
        address = f"{base}/#/experiments/{job.experiment_id}/{end}"
        return dump(tmp_path_factory.mktemp("profile"), address, WINDOW)

    yield page, job
    os.killpg(server.pid, 15)
    server.wait(60)


def test_sweeps_are_listed_and_filtered_by_their_verdict(pages):
    """Jobs are folded below their sweep, which has the verdict of the worst."""
    page, _ = pages
    text = page("runs")
    assert "sweep that passed" in text
    assert "sweep that failed" in text
    text = page(f"runs?searchFilter={quote(FAILED)}")
    assert "sweep that failed" in text
    assert "sweep that passed" not in text


def test_a_report_is_shown_in_the_page(pages):
    page, job = pages
    text = page(f"runs/{job.run_id}/artifacts/report.html")
    assert "job that failed" in text
    assert 'class="mlflow-html-iframe"' in text
