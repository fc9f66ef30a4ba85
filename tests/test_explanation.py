"""Why a run is fast: facts that add up to what the paths count, and limits that brute force confirms."""

import json

import pytest

from analytical import simulate
from tests.conftest import compiled, compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import explain
from tripath.command.compare import read_record
from tripath.report.explanation import NAME, by_cause, by_phase

JOB = ("paths=[analytical,cycle]", "tracking=off", "workload.prompt_length=19")


def facts(folder):
    table = read_record(folder).tables[NAME]
    return dict(zip(table["fact"], zip(table["value"], table["meaning"], strict=True), strict=True))


def analytical(*overrides):
    experiment = compose_experiment(*overrides)
    program, trace = compiled(experiment, experiment.workload.prompt_length or 19)
    return program, simulate(program, hardware=experiment.hardware, trace=trace)


@pytest.mark.parametrize(
    "overrides",
    [(), ("workload.cache=none",), ("workload.cache=prefix", "numerics=mxint4"), ("workload.batch=3",),
     ("hardware.sram.vector_bytes=65536", "workload.cache=none", "workload.generation_length=64", "workload.steps=64")],
)  # fmt: skip
def test_the_traffic_of_tensors_is_all_traffic(overrides):
    program, result = analytical(*overrides)
    table = result.tables["traffic"]
    read, written = (
        sum(row[table.columns.index(f"bytes {what}")] for row in table.rows) for what in ("read", "written")
    )
    assert (read, written) == (result.counts["hbm_read_bytes"], result.counts["hbm_write_bytes"])
    writable = {tensor.name for tensor in program.hbm if tensor.writable}
    assert {row[0] for row in table.rows if row[3]} <= writable


def test_weights_are_streamed_once_a_forward_where_a_chunk_holds_all_rows():
    program, result = analytical("workload.cache=none")
    forwards = 32  # of the word problem: 4 blocks, 8 steps each
    sizes = {tensor.name: tensor.size_bytes for tensor in program.hbm}
    rows = {row[0]: row for row in result.tables["traffic"].rows}
    for name in ("w_qkv", "w_out", "w_gate", "w_up", "w_down", "lm_head"):
        assert rows[name][2] == forwards * sizes[name], name


def test_a_small_vector_sram_streams_them_more_often(tripath_command, tmp_path):  # noqa: F811
    job = (*JOB, "paths=[analytical]", "workload.cache=none", "workload.prompt_length=200")
    for name, extra in (("large", "hardware.sram.vector_bytes=4194304"), ("small", "hardware.sram.vector_bytes=65536")):
        status, _, errors = tripath_command(*job, extra, f"hydra.run.dir={name}")
        assert status == 0, errors
    times = [float(facts(tmp_path / name)["weights streamed per forward"][0]) for name in ("large", "small")]
    assert times[0] == pytest.approx(1, abs=0.01)
    assert times[1] > 2


def test_the_batch_at_which_the_bound_changes_is_where_it_changes(tripath_command, tmp_path):  # noqa: F811
    job = ("model=llada_8b", "hardware=npu_datacenter", "numerics=mxint4", "hardware.hbm.channels=4", "workload.prompt_length=32",
           "workload.generation_length=32", "workload.block_length=32", "workload.steps=4", "paths=[analytical]", "tracking=off",
           "workload.prompt=null")  # fmt: skip
    assert tripath_command(*job, "hydra.run.dir=run")[0] == 0
    turn = float(facts(tmp_path / "run")["batch at which the bound changes"][0])

    def ratio(batch):
        metrics = analytical(*job[:-2], "workload.prompt=null", f"workload.batch={batch}")[1].metrics
        return metrics["bound_cycles.matrix"] / metrics["bound_cycles.memory"]

    assert 1 < turn < 100
    assert ratio(max(1, int(turn * 0.8))) < 1 < ratio(int(turn * 1.25) + 1)


@pytest.fixture
def runs(tripath_command, tmp_path, capsys):  # noqa: F811
    for cache in ("none", "dual"):
        status, _, errors = tripath_command(*JOB, f"workload.cache={cache}", f"hydra.run.dir={cache}")
        assert status == 0, errors
    capsys.readouterr()
    return tmp_path


def makespan(folder):
    return json.loads((folder / "report.json").read_text())["simulators"]["cycle"]["metrics"]["cycle.makespan_cycles"]


def number(text):
    return int(str(text).replace(",", ""))


def test_differences_by_phase_and_by_cause_add_up_to_that_of_the_makespans(runs):
    a, b = (read_record(runs / cache) for cache in ("none", "dual"))
    whole = makespan(runs / "dual") - makespan(runs / "none")
    assert whole < 0
    for table in (by_phase(a, b), by_cause(a, b)):
        rows = [row for row in table.rows if row[0] != "all"]
        differences = [number(row[-1]) for row in rows]
        assert sum(differences) == whole
        assert [abs(each) for each in differences] == sorted(map(abs, differences), reverse=True)
        assert all(number(row[-2]) - number(row[-3]) == number(row[-1]) for row in rows)
    assert by_cause(a, a).rows == []


def test_a_run_is_explained_on_the_page_and_on_the_terminal(runs, capsys):
    assert explain.main([str(runs / "dual")]) == 0
    text = capsys.readouterr().out
    known = facts(runs / "dual")
    for fact in ("forwards per token", "array use", "matrix unit busy", "saved by a cache that is never refreshed"):
        assert fact in known
        assert fact.split()[0] in text
    page = (runs / "dual" / "report.html").read_text()
    assert 'id="why-this-fast"' in page
    assert all(value in page for value, _ in known.values())
    assert known["forwards beyond the block"][0] == "12.5%"  # the first of 8 steps of each block
    assert facts(runs / "none")["forwards beyond the block"][0] == "100.0%"
    assert explain.main([str(runs / "none"), str(runs / "dual")]) == 0
    assert "the array works" in capsys.readouterr().out


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    for arguments in ([str(tmp_path)], [], ["a", "b", "c"]):
        assert explain.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
