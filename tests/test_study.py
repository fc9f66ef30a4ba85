"""The path quality at the command line, and the table and pictures that a sweep leaves of it."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import cli, composition
from tripath.sweeps.study import front, markdown, write_quality
from tripath.sweeps.summary import Row

CONF = Path(__file__).parents[1] / "conf"
TINY = ("tracking=off", "workload.generation_length=8", "workload.steps=8", "simulator.quality.problems=4",
        "simulator.quality.compared=2")  # fmt: skip


def made(number, swept, match=0.5, steps=8.0, cycles=None, reason=None):
    metrics = {"quality.exact_match": match, "quality.exact_match_low": match - 0.1, "quality.exact_match_high": match + 0.1,
               "quality.logit_kl": 0.01 * (number + 1), "quality.logit_kl_error": 0.001, "quality.steps_per_block": steps}  # fmt: skip
    if cycles:
        metrics |= {
            "cycle.makespan_cycles": cycles,
            "analytical.estimated_cycles": 1.0,
            "cycle.energy_joules": cycles / 1e9,
        }
    return Row(number=number, swept=swept, verdict="passed", metrics=metrics, report={"reference_only": reason})


def test_the_table_names_costs_and_what_has_none():
    rows = [
        made(2, {"scheme": "oracle", "numerics.kv": "mxint4"}, reason="numerics.smoothing.scheme=oracle"),
        made(0, {"scheme": "plain", "numerics.kv": "mxint4"}, match=0.25, cycles=2e6),
        made(1, {"scheme": "baos", "numerics.kv": "mxint4"}, cycles=2.1e6),
    ]
    assert (
        markdown(sorted(rows, key=lambda row: row.number))
        == """\
| scheme | kv | exact match | logit KL, nats | cycles | energy, J |
| --- | --- | --- | --- | --- | --- |
| plain | mxint4 | 0.250 (0.150 to 0.350) | 0.01 ± 0.001 | 2,000,000 | 0.002 |
| baos | mxint4 | 0.500 (0.400 to 0.600) | 0.02 ± 0.001 | 2,100,000 (+5.0%) | 0.0021 (+5.0%) |
| oracle | mxint4 | 0.500 (0.400 to 0.600) | 0.03 ± 0.001 | reference path only |  |
"""
    )


def test_files_are_those_of_what_was_swept(tmp_path):
    assert (
        write_quality(tmp_path, [Row(number=0, swept={}, verdict="passed", metrics={"cycle.makespan_cycles": 1.0})])
        == []
    )
    assert not list(tmp_path.iterdir())
    kinds = [
        ("plain", "bf16", "1"),
        *((s, f, g) for g in "18" for s in ("plain", "baos") for f in ("mxint4", "mxint8")),
    ]
    schemes = [made(n, dict(zip(("scheme", "numerics.kv", "simulator.quality.planted"), kind, strict=True)))
               for n, kind in enumerate(kinds)]  # fmt: skip
    quality = ["quality.csv", "quality.md"]
    assert write_quality(tmp_path, schemes) == [
        *quality,
        "exact_match.png",
        "exact_match.svg",
        "logit_kl.png",
        "logit_kl.svg",
    ]
    assert write_quality(tmp_path, schemes[:1]) == [
        *quality,
        "exact_match.png",
        "exact_match.svg",
        "logit_kl.png",
        "logit_kl.svg",
    ]
    policies = [made(0, {"workload.commit": "quota", "workload.steps": "32"}, cycles=4.0), made(1, {"workload.commit":
                "dream", "workload.steps": "16"}, steps=4.0, reason="workload.commit=dream")]  # fmt: skip
    assert write_quality(tmp_path, policies) == [*quality, "pareto.png", "pareto.svg"]
    for picture in ("exact_match.png", "logit_kl.png", "pareto.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_table_of_perplexity(tmp_path):
    swept = [{"numerics.kv": "bf16", "scheme": "plain"}, {"numerics.kv": "mxint4", "scheme": "baos"}]
    found = {"perplexity.perplexity": 12.5, "perplexity.logit_kl": 0.0123, "perplexity.logit_kl_error": 0.002,
             "perplexity.argmax_agreement": 0.9, "perplexity.kv_bytes_per_token": 23040.0}  # fmt: skip
    rows = [Row(number=n, swept=axes, verdict="passed", metrics=found) for n, axes in enumerate(swept)]
    assert write_quality(tmp_path, rows) == ["quality.csv", "quality.md", "logit_kl.png", "logit_kl.svg"]
    assert (
        (tmp_path / "quality.md").read_text()
        == """\
| kv | scheme | logit KL, nats | perplexity | arg max agreement | KV bytes/token |
| --- | --- | --- | --- | --- | --- |
| bf16 | plain | 0.012 ± 0.002 | 12.500 | 0.9000 | 23,040 |
| mxint4 | baos | 0.012 ± 0.002 | 12.500 | 0.9000 | 23,040 |
"""
    )
    with (tmp_path / "quality.csv").open() as file:
        assert [row["perplexity.perplexity"] for row in csv.DictReader(file)] == ["12.5", "12.5"]


points = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=20)


@given(points)
def test_the_front_is_what_nothing_beats(chosen):
    beaten = {(x, y) for x, y in chosen if any(a <= x and b >= y and (a, b) != (x, y) for a, b in chosen)}
    assert front(chosen) == sorted({*chosen} - beaten)


def test_a_sweep_with_quality_leaves_its_table_and_logs_it(tripath_command, tmp_path):  # noqa: F811
    status, output, errors = tripath_command(
        "--multirun", "experiment=sampling_precision", *TINY, "hydra.sweep.dir=sweep", "numerics.logits=bf16,mxfp8_e4m3",
        "numerics.confidences=bf16,fp64", "paths=[analytical,quality]",
    )  # fmt: skip
    assert (status, errors) == (cli.PASSED, "")
    assert "reference path only" in output
    folder = tmp_path / "sweep"
    with (folder / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        report = json.loads((folder / row["job"] / "report.json").read_text())
        found = report["simulators"]["quality"]["metrics"]
        assert float(row["quality.exact_match"]) == found["quality.exact_match"]
        if row["numerics.confidences"] == "fp64":
            assert row["reference_only"] == report["reference_only"] == "numerics.confidences=fp64"
            assert (row["cycles"], report["program"], set(report["simulators"])) == ("", None, {"quality"})
            assert "No program carries out" in (folder / row["job"] / "report.html").read_text().replace(
                "only: no", "No"
            )
        else:
            assert float(row["cycles"]) == report["simulators"]["analytical"]["metrics"]["analytical.estimated_cycles"]
            assert report["reference_only"] is None
    assert [row["numerics.logits"] for row in rows] == ["bf16", "bf16", "mxfp8_e4m3", "mxfp8_e4m3"]
    logged = json.loads((folder / "record.json").read_text())["files"]
    assert {"sweep.csv", "quality.csv", "quality.md", "exact_match.png", "logit_kl.png"} <= set(logged)
    assert all((folder / name).exists() for name in logged)


def test_every_metric_of_quality_is_documented(tripath_command, tmp_path):  # noqa: F811
    status, output, _ = tripath_command("paths=[quality]", *TINY, "workload.generation_length=16", "hydra.run.dir=run")
    assert status == cli.PASSED
    assert re.search(r"quality: \d of 4 held-out problems solved", output)
    metrics = json.loads((tmp_path / "run" / "report.json").read_text())["simulators"]["quality"]["metrics"]
    documented = (CONF.parent / "docs" / "validation.md").read_text()
    for name in metrics:
        assert f"`{name}`" in documented


def test_a_program_is_refused_what_it_lacks(tripath_command):  # noqa: F811
    for paths in ("[analytical]", "[cycle,accuracy]"):
        status, _, errors = tripath_command(f"paths={paths}", "scheme=oracle", "tracking=off")
        assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1)
        assert errors.startswith("error: numerics.smoothing.scheme=oracle: no program carries this out")


@pytest.mark.parametrize("arguments", [("paths=[quality]",), ("--multirun", "experiment=kv_quantisation")])
def test_without_torch_one_line_and_status_2(tripath_command, monkeypatch, arguments):  # noqa: F811
    monkeypatch.setattr(composition, "find_spec", lambda name: None if name == "torch" else object())
    status, output, errors = tripath_command(*arguments, "tracking=off", "hydra.sweep.dir=sweep")
    assert (status, output) == (cli.BAD_INPUT, "")
    assert errors == "error: paths: quality needs torch, which is not installed; pip install 'tripath[study]'\n"


def jobs_of(name):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    return config.hydra.sweeper


def test_the_jobs_of_the_experiments_are_what_they_say():
    """Programs for quota and threshold, none for the rest; every scheme that there is a file for, and each only once."""
    policies = {tuple(str(each) for each in job if "commit" in each or "score" in each)
                for job in jobs_of("decoding_quality").also}  # fmt: skip
    assert len(policies) == 5
    for policy in policies:
        x = compose_experiment("experiment=decoding_quality", *policy)
        assert bool(x.reference_only) == (x.workload.commit in ("factor", "dream"))
    sweeper = jobs_of("kv_quantisation")
    schemes = sweeper.params.scheme.split(",")
    assert sorted(schemes) == sorted(file.stem for file in (CONF / "scheme").glob("*.yaml"))
    content = {json.dumps(yaml.safe_load(file.read_text()), sort_keys=True) for file in (CONF / "scheme").iterdir()}
    assert len(content) == len(schemes)
    for each in (sweeper, jobs_of("kv_outliers")):
        for job in each.also:
            assert {str(override).partition("=")[0] for override in job} == set(each.params)
