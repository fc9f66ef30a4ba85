"""From the reports of a sweep to pictures, tables and the crossover."""

import json

import pytest

from npu.errors import TripathError
from tripath.sweeps.sweep import crossover, read_runs, swept_axes, write_sweep


def make_run(folder, number, batch, share, vlen=64):
    run = folder / str(number)
    run.mkdir()
    (run / "config.yaml").write_text(
        f"workload: {{batch: {batch}, prompt_length: 224, generation_length: 32}}\n"
        f"hardware: {{vlen: {vlen}, blen: 8, mlen: 32, hbm: {{channels: 2}}}}\n"
    )
    metrics = {"cycle.makespan_cycles": 1000 * batch, "cycle.sampling_share": share}
    (run / "report.json").write_text(json.dumps({"simulators": {"cycle": {"metrics": metrics}}}))


def test_an_axis_is_drawn_in_order_with_its_crossover(tmp_path):
    for number, (batch, share) in enumerate([(16, 0.75), (1, 0.1), (4, 0.25)]):
        make_run(tmp_path, number, batch, share)
    files = {file.name: file for file in write_sweep(tmp_path)}
    assert set(files) == {"sweep_batch.png", "sweep_batch.svg", "sweep_batch.csv", "sweep_batch.md"}
    assert files["sweep_batch.png"].read_bytes().startswith(b"\x89PNG")
    rows = files["sweep_batch.csv"].read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["workload.batch", "1", "4", "16"]
    assert rows[1].split(",")[-2:] == ["1000", "0.1000"]
    assert files["sweep_batch.md"].read_text().endswith("cycle: sampling takes half of a run at workload.batch 8.\n")


def test_two_axes_are_drawn_each_with_a_line_for_each_value_of_the_other(tmp_path):
    for number, (batch, vlen) in enumerate([(1, 64), (2, 64), (1, 128), (2, 128)]):
        make_run(tmp_path, number, batch, 0.1 * batch, vlen)
    assert swept_axes(read_runs(tmp_path)) == ["workload.batch", "hardware.vlen"]
    names = {file.name for file in write_sweep(tmp_path) if file.suffix == ".png"}
    assert names == {"sweep_batch.png", "sweep_vlen.png"}
    assert "never takes half of a run (20.0% at most, at workload.batch 2)" in (tmp_path / "sweep_batch.md").read_text()


def test_the_crossover_is_halfway_between_two_octaves_by_ratio():
    """A share of 1/4 at 4 and of 3/4 at 16 is one half at the geometric mean, 8."""
    assert crossover([(1, 0.0), (4, 0.25), (16, 0.75)]) == pytest.approx(8)
    assert crossover([(4, 0.75), (16, 0.25)]) == pytest.approx(8)
    assert crossover([(1, 0.1), (2, 0.2)]) is None


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(TripathError, match="no run of a sweep below"):
        write_sweep(tmp_path)
    make_run(tmp_path, 0, 1, 0.1)
    with pytest.raises(TripathError, match="nothing was swept"):
        write_sweep(tmp_path)
