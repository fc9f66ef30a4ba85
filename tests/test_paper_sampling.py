"""The published sampling latencies: totals, and each component, without a factor that has no source."""

import pytest

import analytical
import cycle
from npu.errors import TripathError
from tests.conftest import compiled, compose_experiment
from tripath.validation import validate


def run(*overrides):
    """Results of the two timing paths, and the references that apply."""
    experiment = compose_experiment("experiment=paper_sampling", *overrides)
    program, trace = compiled(experiment, experiment.workload.prompt_length)
    results = {
        path.__name__: path.simulate(program, hardware=experiment.hardware, trace=trace) for path in (analytical, cycle)
    }
    return experiment, results


@pytest.mark.parametrize(
    ("vlen", "published"),
    [(2048, {"makespan_cycles": 991_038, "component_cycles.vector": 477_696, "component_cycles.memory": 392_320,
             "component_cycles.scalar": 117_412, "component_cycles.control": 3_609}),
     (512, {"makespan_cycles": 3_410_000})],
)  # fmt: skip
def test_serial_execution_meets_the_published_table(vlen, published):
    experiment, results = run(f"hardware.vlen={vlen}")
    metrics = results["cycle"].metrics
    for name, cycles in published.items():
        assert metrics[name] == pytest.approx(cycles, rel=0.05 if name == "makespan_cycles" else 0.10), name
    components = sum(value for name, value in metrics.items() if name.startswith("component_cycles."))
    assert components == metrics["makespan_cycles"], "one after another, so the components add up"
    rows = validate(results, experiment.settings)
    assert all(row.passed for row in rows)
    assert sum(row.kind == "reference" for row in rows) == len(published)


def test_chunks_and_prefetches_are_those_of_the_paper():
    _, results = run()
    counts = results["cycle"].counts
    chunks = 512 * -(-126_464 // 2048)
    assert counts["instructions.V_RED_MAX_IDX"] == counts["instructions.V_EXP_V"] == chunks
    assert counts["instructions.H_LOAD_V"] == 512 * -(-126_464 // (4 * 2048)), "four rows of VLEN each"
    assert counts["hbm_read_bytes"] == pytest.approx(512 * 126_464 * 33 / 32, rel=0.01)


@pytest.mark.parametrize("hardware", ["npu_v1", "npu_plena"])
def test_references_hold_for_what_was_measured_only_and_overlap_pays(hardware):
    experiment, results = run(f"hardware={hardware}", "hardware.execution=decoupled")
    assert not [row for row in validate(results, experiment.settings) if row.kind == "reference"]
    _, serial = run(f"hardware={hardware}", "hardware.execution=serial")
    assert results["cycle"].metrics["makespan_cycles"] < 0.75 * serial["cycle"].metrics["makespan_cycles"]


def test_a_reference_for_an_unknown_key_is_refused():
    with pytest.raises(TripathError, match=r"when names hardware.vlenn, no such key"):
        compose_experiment("experiment=paper_sampling", "+validation.references.0.when={hardware.vlenn: 1}")


def test_the_sampling_stage_is_one_step_of_one_block():
    with pytest.raises(
        TripathError, match=r"workload.stage: sampling is one step of one block, got workload.steps 2 of 2"
    ):
        compose_experiment("experiment=paper_sampling", "workload.generation_length=64", "workload.steps=2")
