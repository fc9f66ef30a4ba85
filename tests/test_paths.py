"""Paths as rows: what a row states is what its function takes, rows run after what they need, and a new path is one file."""

import dataclasses
import inspect
import itertools
import json

import pytest

from npu.errors import TripathError
from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import cli
from tripath.paths import FROM_PATHS, INPUTS, PATHS, Fact, Path, giver_of, in_order, most_exact
from tripath.run.comparison import comparisons
from tripath.run.pipeline import rows_of

ONE_FILE = """
from npu.metrics import Result

def simulate(program, *, hardware, trace, workload, cycles_per_word: float = 1.0):
    cycles = cycles_per_word * len(program.words) * workload.steps
    metrics = {"makespan_cycles": cycles, "seconds": cycles / hardware.clock_hz} if cycles_per_word else {}
    return Result(simulator="words", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics, counts={})
"""
MINE = ("experiment=quick", "+simulator.words.module=words", "paths=[analytical,words]", "hydra.run.dir=run")


@pytest.mark.parametrize("row", PATHS.values(), ids=PATHS)
def test_a_row_needs_the_facts_that_its_function_takes(row):
    parameters = inspect.signature(row.run or row.simulate).parameters
    assert {fact.argument for fact in row.needs & INPUTS} == {f.argument for f in INPUTS} & set(parameters)


def test_every_fact_that_a_path_needs_is_an_input_or_given_by_a_path():
    for row in PATHS.values():
        for fact in row.needs & ~(INPUTS | Fact.WEIGHTS):
            assert giver_of(fact, PATHS.values()), fact


def test_rows_run_after_those_that_give_what_they_need_whatever_their_order():
    for rows in itertools.permutations(PATHS.values()):
        names = [row.name for row in in_order(rows)]
        for row, other in itertools.permutations(rows, 2):
            if row.needs & other.gives:
                assert names.index(other.name) < names.index(row.name)


def test_rows_that_need_each_other_are_refused_by_name():
    one = Path(name="one", module="", needs=Fact.BITS, gives=Fact.TIMES)
    other = dataclasses.replace(one, name="other", needs=Fact.TIMES, gives=Fact.BITS)
    with pytest.raises(TripathError, match="paths: one, other need each other"):
        in_order([one, other])


def test_what_no_path_beside_gives_is_refused_by_name():
    """Every choice of paths is taken, or named as what lacks something."""
    for count in range(1, len(PATHS) + 1):
        for paths in itertools.combinations(PATHS, count):
            rows = [PATHS[name] for name in paths]
            lacking = [row for row in rows if row.needs & FROM_PATHS and not giver_of(row.needs & FROM_PATHS, rows)]
            if lacking:
                with pytest.raises(TripathError, match=f"paths: {lacking[0].name} needs accuracy beside it"):
                    compose_experiment(f"paths=[{','.join(paths)}]")
            else:
                assert list(compose_experiment(f"paths=[{','.join(paths)}]").paths) == list(paths)


def test_the_most_exact_path_is_known_by_what_it_gives():
    assert most_exact(["analytical", "cycle", "rtl"]) == "cycle"
    assert most_exact(["accuracy", "analytical"]) == "analytical"
    assert most_exact(["accuracy", "quality", "somebody's"]) is None


def test_comparisons_are_rows_that_run_after_the_devices_that_they_need():
    experiment = compose_experiment("experiment=paper_end_to_end", "validation.streams=published")
    names = [row.name for row in in_order(comparisons(experiment))]
    devices = [f"devices.{name}" for name in ("a100", "h100", "a6000", "host")]
    assert names == [*devices, "validation.devices", "validation.streams", "validation.published"]
    assert [row.name for row in rows_of(experiment)] == ["analytical", "cycle", "validation.streams"]


def test_a_path_of_a_user_is_one_file(tripath_command, tmp_path, tmp_path_factory, monkeypatch):  # noqa: F811
    folder = tmp_path_factory.mktemp("mine")
    (folder / "words.py").write_text(ONE_FILE)
    monkeypatch.syspath_prepend(str(folder))
    status, output, errors = tripath_command(*MINE, "tracking=off")
    assert (status, errors) == (cli.PASSED, "")
    assert [path.name for path in folder.iterdir() if path.suffix] == ["words.py"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    row = compose_experiment(*MINE).rows[-1]
    assert row.needs == Fact.PROGRAM | Fact.HARDWARE | Fact.TRACE | Fact.WORKLOAD
    cycles = report["program"]["words"] * compose_experiment("experiment=quick").workload.steps
    assert report["simulators"]["words"]["metrics"]["words.makespan_cycles"] == cycles
    assert f"{cycles:,}" in output
    assert "from the cache: analytical, words" in tripath_command(*MINE, "tracking=off")[1]
    status, _, errors = tripath_command(*MINE, "tracking=off", "+simulator.words.cycles_per_word=0")
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1)
    assert errors.startswith("error: simulator.words: its metrics need makespan_cycles or estimated_cycles")
