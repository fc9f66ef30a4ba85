"""What comes from elsewhere: names and prompts with any character, files of strangers, signals in the middle."""

import hashlib
import html
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from npu.errors import MOST_CHARACTERS, ProgramError, TripathError, print_error, printable
from npu.program import Program
from npu.program.container import MAGIC
from tests.conftest import compiled, compose_experiment
from tests.test_cli import QUICK, InlineCluster, tripath_command  # noqa: F401  a fixture
from tripath.command import cli
from tripath.command.arguments import quoted
from tripath.run.pipeline import known_runs, run_paths
from tripath.run.results import Cache, decode, encode
from tripath.tracking.record import Record, from_json, to_json
from tripath.tracking.store import Store, Tracking, noted

NAMES = ["a[/x]b", "$\\frac{$", "a|b <b>&", "[red]x", "\x1b[31mred\x07", ":smile:", "_x", "%s {0}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_hold_any_character(tripath_command, tmp_path, name):  # noqa: F811
    names = (quoted("model.name", name), quoted("hardware.name", name))
    arguments = (*QUICK, "paths=[analytical,cycle]", "tracking=off", *names, "hydra.run.dir=run")
    status, output, errors = tripath_command(*arguments)
    assert (status, errors) == (cli.PASSED, "")
    assert printable(name) in output
    assert "\x1b" not in output
    assert html.escape(name) in (tmp_path / "run" / "report.html").read_text()


def test_prompts_of_a_sweep_may_hold_any_character(tripath_command, tmp_path):  # noqa: F811
    prompts = ",".join(f'"Tom has {sign} 12"' for sign in ("$\\\\frac{$", "$5 | $6", "[/x]", "`<b>`"))
    arguments = (*QUICK, "paths=[analytical]", "tracking=off", "hydra.sweep.dir=sweep")
    status, _, _ = tripath_command("--multirun", *arguments, f"workload.prompt={prompts}")
    assert status == cli.PASSED
    names = {path.name for path in (tmp_path / "sweep").iterdir()}
    assert {"sweep.png", "report.html", "junit.xml", "summary.md"} <= names
    rows = [line for line in (tmp_path / "sweep" / "summary.md").read_text().splitlines() if "Tom" in line]
    assert all(row.replace("\\|", "").count("|") == rows[0].replace("\\|", "").count("|") for row in rows)


def test_an_error_is_one_short_line_without_control_characters(capsys):
    print_error("a: \x1b[31m " + "x" * 100_000 + " end")
    said = capsys.readouterr().err
    assert said.startswith("error: a: \\x1b[31m xxx")
    assert said.endswith(" end\n")
    assert len(said) < MOST_CHARACTERS


def test_the_command_on_the_page_has_the_folder_of_configurations(tripath_command, tmp_path):  # noqa: F811
    (tmp_path / "own" / "hardware").mkdir(parents=True)
    (tmp_path / "own" / "hardware" / "mine.yaml").write_text("defaults:\n  - npu_small\n  - _self_\nname: mine\n")
    arguments = ("--config-dir", "own", *QUICK, "paths=[analytical]", "tracking=off", "hardware=mine")
    assert tripath_command(*arguments, "hydra.run.dir=one")[0] == cli.PASSED
    pasted = html.unescape((tmp_path / "one" / "report.html").read_text().rpartition("<pre>")[2].partition("</pre>")[0])
    assert tripath_command(*shlex.split(pasted.splitlines()[-1])[1:], "hydra.run.dir=two")[0] == cli.PASSED
    one, two = ((tmp_path / run / "config.yaml").read_text() for run in ("one", "two"))
    assert one == two


@pytest.fixture(scope="module")
def program():
    return compiled(compose_experiment(*QUICK))[0]


def sealed(program, header):
    """A program file with another header, and the checksum that belongs to it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = MAGIC + struct.pack("<II", len(text), len(program.words)) + text + program.words.astype("<u8").tobytes()
    return body + hashlib.sha256(body).digest()


def test_a_header_of_another_form_is_refused(program):
    whole = program.to_bytes()
    size = struct.unpack("<I", whole[len(MAGIC) : len(MAGIC) + 4])[0]
    header = json.loads(whole[len(MAGIC) + 8 :][:size])
    assert Program.from_bytes(sealed(program, header)).digest == program.digest
    broken = [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", {}]
    for table in ("hbm", "geometry", "layout", "phases"):
        broken += [{**header, table: value} for value in (None, 5, "x", [5], [[]], {"x": None})]
    for name in ("cache_tokens", "batch", "canvas"):
        broken += [
            {**header, "layout": {**header["layout"], name: value}} for value in (2**31, 2**63, -1, 1.5, "1", [])
        ]
    first, *rest = header["hbm"]
    for key, values in {
        "shape": ([], [0], ["x"], [2**60], 5),
        "address": (-1, 2**62, "x"),
        "format": ("mx", None, 3),
    }.items():
        broken += [{**header, "hbm": [{**first, key: value}, *rest]} for value in values]
    for each in broken:
        with pytest.raises(ProgramError) as refused:
            Program.from_bytes(sealed(program, each))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "", ".", ".."])
def test_a_record_names_files_of_its_folder_alone(name):
    plain = Record(name="r", status="FINISHED", tags={})
    for files, tables in (([name], {}), ([], {name: {"a": [1]}})):
        written = json.loads(to_json(plain)) | {"files": files, "tables": tables}
        for record in (written, json.loads(to_json(plain)) | {"children": [written]}):
            with pytest.raises(TripathError, match=r"^record.json: not a record"):
                from_json(json.dumps(record).encode())


@pytest.mark.parametrize("content", [None, 5, [], {}, {"result": 5}, {"result": {"metrics": {"a": []}, "tables": {}}}])
def test_a_cache_entry_of_another_structure_is_none(tmp_path, content):
    experiment = compose_experiment(*QUICK, "paths=[analytical]")
    program, cache = compiled(experiment)[0], Cache(tmp_path)
    run_paths(program, experiment, [[5] * 19], cache)
    (place,) = tmp_path.glob("*/*.result")
    digest = place.name.partition(".")[0]
    whole = decode(place.read_bytes(), digest)
    broken = {**whole, **content} if isinstance(content, dict) and content else content
    place.write_bytes(encode(broken, digest))
    assert known_runs(program, experiment, [[5] * 19], cache) is None
    packed = zlib.compress(b"[" * 100_000)
    place.write_bytes(hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed)
    assert known_runs(program, experiment, [[5] * 19], cache) is None


def test_what_ends_a_process_ends_a_command_as_an_interrupt_does(tripath_command, monkeypatch):  # noqa: F811
    monkeypatch.setattr(InlineCluster, "run", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    status, _, errors = tripath_command(*QUICK, "tracking=off")
    assert (status, errors) == (cli.INTERRUPTED, "error: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_while_closing_changes_nothing(tripath_command, monkeypatch):  # noqa: F811
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(InlineCluster, "run", interrupt)
    monkeypatch.setattr(InlineCluster, "close", lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert tripath_command(*QUICK, "tracking=off")[::2] == (cli.INTERRUPTED, "error: interrupted\n")


def test_a_run_that_is_interrupted_while_it_is_logged_is_killed_and_logged_anew(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    child = Record(name="cycle", status="FINISHED", tags={"verdict": "passed"}, metrics={"cycle.makespan_cycles": 5.0})
    record = Record(name="run", status="FINISHED", tags={"verdict": "passed", "model": "m"}, children=[child])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_bytes(to_json(record))
    store = Store(Tracking(enabled=True, uri=None, folder=str(tmp_path / "mlruns"), experiment="e"))
    store.wait()
    fill, order = Store._fill, []

    def interrupted(self, run_id, record, folder):
        order.append(record.name)
        if record.name == "run":
            raise KeyboardInterrupt
        return fill(self, run_id, record, folder)

    monkeypatch.setattr(Store, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.log_folder(tmp_path / "run")
    assert order == ["cycle", "run"]  # children end before their parent
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name("e").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`model` = 'm'")
    assert (parent.info.status, parent.data.tags.get("verdict")) == ("KILLED", None)
    assert noted(tmp_path / "run") is None
    monkeypatch.setattr(Store, "_fill", fill)
    tracked = store.log_folder(tmp_path / "run")
    (parent,) = client.search_runs([experiment], "tags.`model` = 'm'")
    assert (parent.info.run_id, parent.info.status) == (tracked.run_id, "FINISHED")
    assert parent.data.tags["verdict"] == "passed"
    assert noted(tmp_path / "run") == tracked


@pytest.mark.system
@pytest.mark.parametrize("closing", ["| head -1", ">&-", "2>&-", ">&- 2>&-", "| cat"])
def test_a_reader_that_leaves_changes_no_status(tmp_path, closing):
    command = (
        f"{sys.executable} -m tripath experiment=quick 'paths=[analytical]' tracking=off hydra.run.dir=run {closing}"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == cli.PASSED, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.json").exists()
