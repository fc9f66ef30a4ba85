"""A search: what it proposes, what it keeps, what it confirms. The designs' metrics come from functions given here."""

import csv
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npu.errors import TripathError
from tests.test_cli import InlineCluster, tripath_command  # noqa: F401  a fixture
from tripath.sweeps.search import Search, dominated, spread
from tripath.sweeps.summary import Row

AXES = {
    "hardware.blen": ["8", "16", "32"],
    "hardware.vlen": ["64", "128", "256", "512"],
    "numerics": ["mxint4", "mxint8"],
}
OBJECTIVES = {"analytical.seconds": "minimize", "analytical.area_mm2": "minimize"}


def metrics_of(design):
    """A made-up machine: faster where it is wider, larger too; MXINT8 is slower and larger. BLEN 16 with VLEN 512 wastes area."""
    blen, vlen = int(design["hardware.blen"]), int(design["hardware.vlen"])
    wide = 2.0 if design["numerics"] == "mxint8" else 1.0
    area = (blen + vlen / 8) * wide + (100 if (blen, vlen) == (16, 512) else 0)
    return {"analytical.seconds": wide * 1000 / blen + 100 / vlen, "analytical.area_mm2": area}


def run(search, axes, metrics_of, confirmed=1.1):
    """What a sweep would do with the batches: the rows, and the batches."""
    rows, batches = [], []
    for batch in search.batches(axes, rows):
        batches.append(batch)
        for design in batch.designs:
            metrics = metrics_of(design)
            if metrics is None:
                rows.append(Row(number=len(rows), swept=dict(design), verdict="infeasible", error="too small"))
                continue
            if batch.confirms:
                metrics |= {name.replace("analytical", "cycle"): confirmed * value for name, value in metrics.items()}
            report = {} if batch.confirms else None
            rows.append(Row(number=len(rows), swept=dict(design), verdict="passed", metrics=metrics, report=report))
    return rows, batches


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25))
def test_dominated_is_its_definition(points):
    values = np.array(points, float)

    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [any(beats(other, own) for other in points) or own in points[:n] for n, own in enumerate(points)]
    assert dominated(values).tolist() == expected


def test_a_grid_runs_every_design_once_and_confirms_the_front():
    search = Search(objectives=OBJECTIVES)
    rows, (first, last) = run(search, AXES, metrics_of)
    designs = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    assert list(first.designs) == designs
    points = [(d, tuple(metrics_of(d).values())) for d in designs]
    best = [
        d for d, p in points if not any(all(x <= y for x, y in zip(q, p, strict=True)) and q != p for _, q in points)
    ]
    assert last.confirms
    assert sorted(map(str, last.designs)) == sorted(map(str, best))
    seconds = [metrics_of(design)["analytical.seconds"] for design in last.designs]
    assert seconds == sorted(seconds)
    assert all(design["numerics"] == "mxint4" for design in last.designs)
    said, table = search.outcome(rows)
    assert said == f"24 designs; {len(best)} are on the front, {len(best)} of them confirmed"
    assert {row[-1] for row in table.rows} == {"yes"}
    assert {row[-2] for row in table.rows} == {"+10.00%"}


def test_limits_keep_designs_off_the_front():
    search = Search(objectives=OBJECTIVES, limits={"analytical.area_mm2": 40})
    _, batches = run(search, AXES, metrics_of)
    assert batches[-1].designs
    assert all(metrics_of(design)["analytical.area_mm2"] <= 40 for design in batches[-1].designs)
    none, batches = run(Search(objectives=OBJECTIVES, limits={"analytical.area_mm2": 1}), AXES, metrics_of)
    assert len(batches) == 1
    assert Search(objectives=OBJECTIVES, limits={"analytical.area_mm2": 1}).outcome(none)[1].rows == []


def test_maximised_objectives_turn_the_front_round():
    search = Search(objectives={"analytical.seconds": "maximize"}, confirm_at_most=5)
    _, batches = run(search, AXES, metrics_of)
    assert batches[-1].designs == [{"hardware.blen": "8", "hardware.vlen": "64", "numerics": "mxint8"}]


def test_designs_that_cannot_be_are_left_out():
    search = Search(objectives=OBJECTIVES)
    rows, batches = run(search, AXES, lambda design: None if design["hardware.blen"] == "32" else metrics_of(design))
    assert all(design["hardware.blen"] != "32" for design in batches[-1].designs)
    assert search.outcome(rows)[0].startswith("16 designs")


def test_optuna_finds_the_front_of_a_small_space_and_repeats_itself():
    axes = {
        "hardware.blen": ["4", "8", "16", "32", "64"],
        "hardware.vlen": ["64", "128", "256", "512", "1024"],
        "numerics": ["mxint4", "mxint8"],
    }
    search = Search(
        objectives=OBJECTIVES, sampler="optuna", trials=40, batch=10, seed=1, limits={"analytical.area_mm2": 120}
    )
    rows, batches = run(search, axes, metrics_of)
    asked = [str(design) for batch in batches[:-1] for design in batch.designs]
    assert len(asked) == len(set(asked)) == 40
    whole = [metrics_of(dict(zip(axes, v, strict=True))) for v in itertools.product(*axes.values())]
    whole = [tuple(m.values()) for m in whole if m["analytical.area_mm2"] <= 120]
    front = {p for p in whole if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in whole)}
    found = {tuple(metrics_of(each.design).values()) for each in search.front(search.weighed(rows))}
    assert len(found & front) >= 0.8 * len(front)
    again = run(search, axes, metrics_of)[1]
    assert [batch.designs for batch in again] == [batch.designs for batch in batches]


def test_a_used_up_space_ends_the_search():
    axes = {"hardware.blen": ["8", "16"]}
    search = Search(objectives={"x": "minimize"}, sampler="optuna", trials=50, batch=10)
    _, batches = run(search, axes, lambda design: {"x": float(design["hardware.blen"])})
    assert sum(len(batch.designs) for batch in batches if not batch.confirms) == 2


def test_quality_is_an_objective_from_a_file(tmp_path):
    file = tmp_path / "quality.csv"
    file.write_text("# of the shipped model\nnumerics,logit_kl\nmxint4,0.5\nmxint8,0.01\n")
    search = Search(objectives={**OBJECTIVES, "quality.logit_kl": "minimize"}, quality=str(file))
    _, batches = run(search, AXES, metrics_of)
    assert {design["numerics"] for design in batches[-1].designs} == {"mxint4", "mxint8"}


def test_quality_is_that_of_a_model_by_name(tmp_path):
    file = tmp_path / "quality.csv"
    file.write_text("model,numerics,logit_kl\nwordmath,mxint4,0.5\nwordmath,mxint8,0.01\n")
    search = Search(objectives={**OBJECTIVES, "quality.logit_kl": "minimize"}, quality=str(file))
    rows, _ = run(search, AXES, metrics_of)
    assert "quality.logit_kl of wordmath" in search.outcome(rows)[1].columns
    search.write(tmp_path, rows)
    assert "quality.logit_kl of wordmath" in (tmp_path / "designs.csv").read_text().splitlines()[0]
    assert "quality.logit_kl of wordmath" in (tmp_path / "pareto.md").read_text()


def test_quality_of_formats_that_are_no_axis(tmp_path):
    file = tmp_path / "quality.csv"
    file.write_text("numerics,logit_kl\nmxint4,0.5\nmxint8,0.01\n")
    search = Search(objectives={"quality.logit_kl": "minimize", "x": "minimize"}, quality=str(file), numerics="mxint8")
    rows, _ = run(search, {"a": ["1", "2"]}, lambda design: {"x": float(design["a"])})
    assert {each.metrics["quality.logit_kl"] for each in search.weighed(rows)} == {0.01}


def test_spread_takes_both_ends():
    search = Search(objectives={"x": "minimize"}, confirm_at_most=3)
    rows, _ = run(search, {"a": [str(n) for n in range(10)]}, lambda design: {"x": float(design["a"])})
    weighed = search.weighed(rows)
    assert [each.design["a"] for each in spread(weighed, 3)] == ["0", "4", "9"]
    assert spread(weighed, 20) == weighed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objectives": {}}, "objectives: at least one"),
        ({"objectives": {"x": "smaller"}}, "objectives.x: unknown 'smaller', one of minimize, maximize"),
        ({"objectives": {"x": "minimize"}, "sampler": "luck"}, "sampler: unknown 'luck', one of grid, optuna"),
        ({"objectives": {"x": "minimize"}, "batch": 0}, "batch: must be from 1 to"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(TripathError, match=r"hydra\.sweeper\.search") as error:
        Search(**given)
    assert said in str(error.value)


def test_a_file_of_quality_that_is_none_is_refused(tmp_path):
    file = tmp_path / "quality.csv"
    file.write_text("format,logit_kl\nmxint4,0.5\n")
    search = Search(objectives={"quality.logit_kl": "minimize"}, quality=str(file))
    with pytest.raises(TripathError, match="needs a column numerics"):
        run(search, AXES, metrics_of)


def test_a_metric_that_no_job_has_is_named():
    with pytest.raises(TripathError, match=r"objectives\.analytical\.joy: no such metric"):
        run(Search(objectives={"analytical.joy": "minimize"}), AXES, metrics_of)


SPACE = ("--multirun", "experiment=design_space", "tracking=off", "model=wordmath", "hardware=npu_small", "workload=wordmath",
         "workload.prompt_length=16", "workload.generation_length=8", "workload.steps=2", "hydra.sweep.dir=sweep",
         "hardware.blen=4,8", "hardware.mlen=32", "hardware.vlen=64,128", "hardware.hbm.channels=2", "numerics=mxint8",
         "hardware.sram.vector_bytes=64,524288")  # fmt: skip


def test_the_command_searches(tripath_command, tmp_path):  # noqa: F811
    status, _, _ = tripath_command(*SPACE)
    sweep = tmp_path / "sweep"
    rows = list(csv.DictReader((sweep / "sweep.csv").read_text().splitlines()))
    proposed = [row for row in rows if row["hardware.sram.vector_bytes"] == "64"]
    assert status == 0
    assert {row["verdict"] for row in proposed} == {"infeasible"}
    assert all("vector" in row["error"].lower() for row in proposed)
    designs = list(csv.DictReader((sweep / "designs.csv").read_text().splitlines()))
    assert len(designs) == 4
    front = [row for row in designs if row["on the front"] == "1"]
    reports = sorted(sweep.glob("*/report.json"))
    assert len(reports) == len(front) > 0
    assert all(set(json.loads(path.read_text())["simulators"]) == {"analytical", "cycle"} for path in reports)
    assert (sweep / "pareto.png").stat().st_size > 10_000
    table = (sweep / "pareto.md").read_text()
    assert "cycle.seconds against it" in table
    assert table.count("\n| ") == 1 + len(front)


def test_a_space_without_a_design_is_bad_input(tripath_command):  # noqa: F811
    status, _, err = tripath_command(*SPACE[:-1], "hardware.sram.vector_bytes=64,128")
    assert status == 2
    assert err.startswith("error: hydra.sweeper.params: none of 8 designs can be; job 0: hardware.sram")
    assert err.count("\n") == 1
