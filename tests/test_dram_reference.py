"""tripath experiment=dram_reference: a file of streams becomes discrepancies, and a bad file one line."""

import copy
import json
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cycle.dram import READ, WRITE
from cycle.streams import PUBLISHED, read_streams
from npu.errors import TripathError
from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import cli
from tripath.experiment import Outcome
from tripath.tracking.record import headline_metrics, tags_of
from tripath.validation import check_streams

HBM = compose_experiment().hardware.hbm
CONTENT = json.loads(files("cycle").joinpath("data/hbm_streams.json").read_text(encoding="utf-8"))
ROWS = {"kind": "rows", "op": "R", "rows": 4, "row_bytes": 64, "stride_bytes": 4096, "base": 0}
RANDOM = {"kind": "random", "op": "W", "count": 5, "granule_bytes": 64, "span_bytes": 65536, "seed": 3}
ENTRY = {
    "stream": "mine", "pattern": ROWS, "address_mapping": "MOP4CLXOR", "channels": 2, "channel_interleave_bytes": 256,
    "cycles": 60,
}  # fmt: skip


def written(tmp_path, *entries, memory=None):
    path = tmp_path / "streams.json"
    path.write_text(json.dumps({"memory": CONTENT["memory"] if memory is None else memory, "streams": list(entries)}))
    return str(path)


def read(tmp_path, *entries, **more):
    return read_streams(written(tmp_path, *entries, **more), HBM)


def test_the_shipped_file_holds_and_the_report_has_no_program(tripath_command, tmp_path):  # noqa: F811
    status, output, errors = tripath_command("experiment=dram_reference", "hydra.run.dir=run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (status, errors) == (cli.PASSED, "")
    assert (report["program"], report["generation"], report["simulators"]) == (None, None, {})
    assert len(report["discrepancies"]) == len(CONTENT["streams"])
    for row, stream in zip(report["discrepancies"], CONTENT["streams"], strict=True):
        assert row["scope"] == f"{stream['stream']}/{stream['address_mapping']}/{stream['channels']}ch"
        assert (row["metric"], row["kind"], row["expected"]) == ("dram.cycles", "reference", stream["cycles"])
        assert row["verdict"] == "passed"
        assert row["scope"] in "".join(output.split("\n"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml", "record.json", "report.html", "report.json",
    }  # fmt: skip
    assert "Checks without a program" in (tmp_path / "run" / "report.html").read_text()


def test_a_file_of_ones_own_can_fail(tripath_command, tmp_path):  # noqa: F811
    name = written(tmp_path, {**ENTRY, "cycles": 1000})
    status, output, _ = tripath_command("experiment=dram_reference", f"validation.streams={name}", "hydra.run.dir=run")
    assert status == cli.FAILED
    assert "1 checks failed" in output
    assert json.loads((tmp_path / "run" / "report.json").read_text())["discrepancies"][0]["verdict"] == "failed"


def test_what_is_tracked_of_a_run_without_a_program(tmp_path):
    """One closed bank, one burst: 32 cycles (tests/cycle/test_dram.py)."""
    experiment = compose_experiment("experiment=dram_reference")
    streams = read(tmp_path, {**ENTRY, "pattern": {**ROWS, "rows": 1, "row_bytes": 32}, "cycles": 32})
    outcome = Outcome(
        program=None, results={}, wall_seconds={}, discrepancies=check_streams(streams), generated=None,
        fail_on=experiment.settings.fail_on,
    )  # fmt: skip
    tags, metrics = tags_of(experiment, outcome), headline_metrics(outcome)
    assert tags["verdict"] == "passed"
    assert "program_digest" not in tags
    assert metrics["validation.reference.dram.cycles.mine/MOP4CLXOR/2ch.relative_error"] == 0.0


def test_tolerances(tmp_path):
    """5 % of rows, 10 % of conflicts in a bank, random and alternating ones; 4 cycles where that is more."""
    one_bank = {**ROWS, "rows": 64, "row_bytes": 32, "stride_bytes": 1 << 24}
    both = {"kind": "alternate", "granule_bytes": 64, "streams": [ROWS, RANDOM]}
    entries = [{**ENTRY, "pattern": pattern, "cycles": 1000} for pattern in (ROWS, one_bank, RANDOM, both)]
    found = check_streams(read(tmp_path, *entries, {**ENTRY, "cycles": 50}, {**ENTRY, "cycles": 8}))
    assert [row.tolerance for row in found] == [0.05, 0.10, 0.10, 0.10, 0.08, 0.25]
    assert found[4].reason.startswith("4 of 50 cycles")


def test_patterns_become_the_bursts_that_the_grammar_says(tmp_path):
    import random

    unaligned = {**ROWS, "rows": 2, "row_bytes": 40, "stride_bytes": 100, "base": 30}
    alternate = {"kind": "alternate", "granule_bytes": 64, "streams": [{**ROWS, "rows": 1, "row_bytes": 160}, RANDOM]}
    rows, drawn, mixed = read(
        tmp_path, *({**ENTRY, "pattern": pattern} for pattern in (unaligned, RANDOM, alternate))
    )  # fmt: skip
    assert rows.numbers.tolist() == [0, 1, 2, 4, 5]  # bytes 30 to 69 and 130 to 169
    draw = random.Random(3)
    starts = [draw.randrange(0, 65536, 64) // 32 for _ in range(5)]
    assert drawn.numbers.tolist() == [start + i for start in starts for i in (0, 1)]
    a, b = [0, 1, 2, 3, 4], drawn.numbers.tolist()
    assert mixed.numbers.tolist() == [*a[:2], *b[:2], *a[2:4], *b[2:4], *a[4:], *b[4:]]
    assert mixed.kinds.tolist() == [READ, READ, WRITE, WRITE, READ, READ, WRITE, WRITE, READ, *[WRITE] * 6]


def test_the_memory_section_is_used_and_what_it_lacks_is_ours(tmp_path):
    slower = {"timings_cycles": {"nRCDRD": 24}, "organisation": {"bank_groups": 2}, "read_queue_entries": 8}
    stream, base = read(tmp_path, ENTRY, memory=slower)[0], read(tmp_path, ENTRY, memory={})[0]
    assert stream.hbm.timings == {**HBM.timings, "nRCDRD": 24}
    assert (stream.hbm.bank_groups, stream.hbm.read_queue_entries, stream.hbm.channels) == (2, 8, 2)
    assert stream.run().cycles >= base.run().cycles + 10
    assert read(tmp_path, {**ENTRY, "channels": 1, "channel_interleave_bytes": None})[0].hbm.channels == 1


def test_published_is_the_file_of_the_package():
    assert [stream.cycles for stream in read_streams(PUBLISHED, HBM)] == [row["cycles"] for row in CONTENT["streams"]]


BAD = [
    ({"stream": 5}, r"streams\[0\].stream: must be a printable text, got 5"),
    ({"stream": "a\nb"}, r"streams\[0\].stream: must be a printable text"),
    ({"address_mapping": "rows"}, "address_mapping: unknown 'rows', one of RoBaRaCoCh, MOP4CLXOR"),
    ({"channels": 0}, r"streams\[0\] \(mine\).channels: must be an integer from 1 to 4096, got 0"),
    ({"channels": True}, "channels: must be an integer"),
    ({"channel_interleave_bytes": 40}, "interleave_bytes: must be a multiple of burst_bytes"),
    ({"cycles": 0}, "cycles: must be an integer from 1"),
    ({"cycles": 61.5}, "cycles: must be an integer"),
    ({"pattern": None}, "pattern: must be an object, got None"),
    ({"pattern": {**ROWS, "kind": "spiral"}}, "pattern.kind: must be rows, alternate or random, got 'spiral'"),
    ({"pattern": {**ROWS, "op": "X"}}, "pattern.op: must be R or W, got 'X'"),
    ({"pattern": {**ROWS, "rows": -1}}, "pattern.rows: must be an integer from 1"),
    ({"pattern": {**ROWS, "rows": 1 << 30}}, "pattern: must be at most 16777216 bursts"),
    ({"pattern": {**ROWS, "stride_bytes": 1 << 47}}, "pattern.stride_bytes: 4 rows must end below"),
    ({"pattern": {**RANDOM, "seed": "x"}}, "pattern.seed: must be an integer from 0"),
    ({"pattern": {"kind": "alternate", "granule_bytes": 64, "streams": []}}, "pattern.streams: must not be empty"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: str(value)[:50])
def test_a_bad_entry_is_named(tmp_path, changes, message):
    with pytest.raises(TripathError, match=rf"validation.streams: .*streams.json: .*{message}"):
        read(tmp_path, {**ENTRY, **changes})


BAD_MEMORY = [
    ({"timings_cycles": {"nXY": 3}}, "memory.timings_cycles: no timing 'nXY'"),
    ({"timings_cycles": {"nCL": -3}}, "memory.timings_cycles.nCL: must be an integer from 1"),
    ({"timings_cycles": {"read_to_write": "nCL"}}, "read_to_write: is modelled as nCL"),
    ({"timings_cycles": {"nREFI": 300}}, "memory: timings.nREFI: must be above"),
    ({"organisation": {"bank_groups": 3}}, "memory: bank_groups: must be a power of two"),
    ({"organisation": []}, "memory.organisation: must be an object"),
]


@pytest.mark.parametrize(("memory", "message"), BAD_MEMORY, ids=lambda value: str(value)[:50])
def test_a_bad_memory_is_named(tmp_path, memory, message):
    with pytest.raises(TripathError, match=message):
        read(tmp_path, ENTRY, memory=memory)


def test_a_bad_file_is_one_line_and_leaves_no_folder(tripath_command, tmp_path):  # noqa: F811
    bad = {"absent.json": None, "text.json": "not json", "empty.json": "", "list.json": "[]", "none.json": '{"streams": []}',
           "deep.json": "[" * 100_000, "binary.json": "\udcff", "huge.json": '{"streams": ' + "9" * 5000 + "}"}  # fmt: skip
    for name, text in bad.items():
        folder = tmp_path.parent / f"{tmp_path.name}_files"
        folder.mkdir(exist_ok=True)
        if text is not None:
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        status, _, errors = tripath_command("experiment=dram_reference", f"validation.streams={folder / name}")
        assert status == cli.BAD_INPUT, name
        assert errors.startswith("error: validation.streams: ")
        assert errors.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_no_paths_need_streams(tripath_command):  # noqa: F811
    assert tripath_command("paths=[]", "tracking=off")[0] == cli.BAD_INPUT


def nodes(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


SMALL = {
    "memory": CONTENT["memory"],
    "streams": [ENTRY, {**ENTRY, "pattern": {"kind": "alternate", "granule_bytes": 64, "streams": [ROWS, RANDOM]}}],
}
PLACES = [path for path in nodes(SMALL) if path and path[0] != "about"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 300), st.floats(), st.text(max_size=5),
    st.builds(list), st.builds(dict), st.sampled_from(["R", "W", "rows", "random", "alternate", 10**30, -1, 0, 1 << 62]),
)  # fmt: skip


@settings(max_examples=300, deadline=None, phases=(Phase.explicit, Phase.generate),
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_a_corrupt_file_is_read_or_refused_in_one_line(tmp_path, corruptions):
    content = copy.deepcopy(SMALL)
    for path, value in corruptions:
        node = content
        try:
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier one has taken that place away
    path = tmp_path / "corrupt.json"
    path.write_text(json.dumps(content))
    streams, message = [], "validation.streams: "
    try:
        streams = read_streams(str(path), HBM)
    except TripathError as error:
        message = str(error)
    assert message.startswith("validation.streams: ")
    assert "\n" not in message
    assert len(message) < 600
    assert all(stream.cycles >= 1 and len(stream.numbers) for stream in streams)
    assert all(stream.numbers.min() >= 0 and stream.numbers.max() < 1 << 60 for stream in streams)
