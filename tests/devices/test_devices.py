"""Device models against hand calculation, the reference's own rule for rows, and laws."""

import dataclasses
from pathlib import Path

import pytest

from dllm.devices import PHASES, Shape, phase_operations, run_workload, steps_of
from dllm.workload import Workload
from npu.errors import TripathError
from tests.conftest import compose_experiment

DEVICES = Path(__file__).parents[2] / "conf" / "device"


@pytest.fixture(scope="module")
def experiment():
    return compose_experiment("model=llada_8b", "workload=llada_gsm8k", "paths=[analytical]")


def faster(device, **factors):
    numbers = {name: {**row, "value": row["value"] * factors.get(name, 1.0)} for name, row in device.numbers.items()}
    return dataclasses.replace(device, numbers=numbers)


def test_every_device_is_composed_by_default(experiment):
    assert (
        set(experiment.devices) == {path.stem for path in DEVICES.glob("*.yaml")} == {"a100", "h100", "a6000", "host"}
    )


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_rows_of_each_step_are_those_that_the_reference_forwards(cache):
    workload = Workload(generation_length=64, block_length=16, steps=32, cache=cache, prompt_length=21)
    rows = [rows for rows, _ in steps_of(workload, 21)]
    later = {"none": [85] * 4, "prefix": [64, 48, 32, 16], "dual": [16] * 4}[cache]
    assert rows == [count for block in later for count in (85, *[block] * 7)]


def test_lm_head_by_hand(experiment):
    """32 rows of LLaDA-8B: bound by its 1.036 GB of weights, which take 0.612 ms at 83 % of 2.039 TB/s."""
    device = experiment.devices["a100"]
    rows = device.phase(experiment.model, "lm_head", Shape(batch=1, canvas=64, block=32))
    moved = 2 * (32 * 4096 + 4096 * 126_464 + 32 * 126_464)
    norm = 34 * 32 * 4096 / (0.83 * 2.039e12) + 7 * 2.5e-6
    assert device.kernel_seconds(rows) == pytest.approx(norm + moved / (0.83 * 2.039e12) + 2.5e-6, rel=1e-9)


def test_a_large_product_is_bound_by_its_operations(experiment):
    """A forward of 4,096 tokens takes at least 13.96 GFLOP a token and attention over 4,096 keys, at 271 TFLOP/s."""
    device = experiment.devices["a100"]
    seconds = device.kernel_seconds(device.phase(experiment.model, "prefill", Shape(batch=1, canvas=4096, block=32)))
    least = 4096 * (13.96e9 + 524_288 * 4096) / (0.87 * 312e12)
    assert least < seconds < 1.5 * least


def test_softmax_in_double_precision_by_hand(experiment):
    """A6000: 64.7 M elements, 46 operations each at 0.605 TFLOP/s, longer than 4 passes of 8 bytes at 768 GB/s."""
    device = experiment.devices["a6000"]
    elements = 16 * 32 * 126_464
    rows = device.phase(experiment.model, "softmax", Shape(batch=16, canvas=64, block=32))
    convert = elements * 10 / (0.85 * 768e9)
    assert device.kernel_seconds(rows) == pytest.approx(convert + elements * 46 / 0.605e12 + 2 * 2.5e-6, rel=1e-9)


def test_a_generation_is_the_sum_of_its_steps(experiment):
    device, model = experiment.devices["h100"], experiment.model
    workload = dataclasses.replace(experiment.workload, generation_length=64, steps=8, cache="prefix")
    total = 0.0
    for rows, canvas in steps_of(workload, 256):
        shape = Shape(batch=1, canvas=canvas, block=32, rows=rows)
        parts = [row for phase in ("refine", "lm_head", "sampling") for row in device.phase(model, phase, shape)]
        total += device.seconds(parts)
    metrics = run_workload(device, model, workload, 256).metrics
    assert metrics["seconds"] == pytest.approx(total)
    assert metrics["tokens_per_joule"] == pytest.approx(64 / (700 * total))
    assert 0 < metrics["sampling_stage_share"] < metrics["sampling_share"] < 1


def test_a_cheaper_policy_and_a_faster_device_never_take_longer(experiment):
    model, workload = experiment.model, experiment.workload
    for name in ("a100", "host"):
        device = experiment.devices[name]
        times = [
            run_workload(device, model, dataclasses.replace(workload, cache=cache), 256).metrics["seconds"]
            for cache in ("none", "prefix", "dual")
        ]
        assert times == sorted(times, reverse=True)
    device = experiment.devices["a100"]
    base = run_workload(device, model, workload, 256).metrics
    for number in ("matrix_bf16_flops", "memory_bytes_per_second", "vector_fp64_flops"):
        assert run_workload(faster(device, **{number: 2.0}), model, workload, 256).metrics["seconds"] <= base["seconds"]
    slow_host = faster(device, dispatch_seconds=100.0)
    metrics = run_workload(slow_host, model, workload, 256).metrics
    assert metrics["kernel_seconds"] == base["kernel_seconds"] < metrics["seconds"]


@pytest.mark.parametrize("software", ["torch", "numpy"])
def test_every_phase_has_work_that_grows_with_the_batch(experiment, software):
    for phase in PHASES:
        one, two = (
            sum(row.work for row in phase_operations(software, experiment.model, phase, Shape(batch=b, canvas=64, block=32), "fp32"))
            for b in (1, 2)
        )  # fmt: skip
        assert 0 < one < two <= 2 * one


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("devices.a100.software=jax", r"devices.a100.software: unknown 'jax', one of torch, numpy"),
        ("devices.a100.sampling_format=int8", r"devices.a100.sampling_format: unknown 'int8'"),
        ("devices.a100.numbers.board_watts.value=0", r"devices.a100.numbers.board_watts.value: must be from"),
        ("~devices.a100.numbers.board_watts", r"devices.a100.numbers.board_watts: needs value"),
        ("devices.host.curves.exp=[[1.0]]", r"devices.host.curves.exp: needs points"),
        ("~devices.host.curves.exp", r"devices.host.curves: needs pack"),
        ("validation.devices=[a10]", r"validation.devices: no device 'a10', one of a100"),
        ("validation.devices=[a100]", r"validation.devices: needs workload.prompt_length"),
    ],
)  # fmt: skip
def test_bad_devices_are_named(override, message):
    with pytest.raises(TripathError, match=message):
        compose_experiment(override)
