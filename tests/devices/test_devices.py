"""Device models against hand calculation, the reference's own rule for rows, and laws."""

import dataclasses
from pathlib import Path

import pytest

from dllm.devices import PHASES, Product, Shape, phase_operations, run_workload, steps_of
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


def test_devices_of_other_files_are_found_by_their_names(experiment):
    assert set(experiment.devices) == {"a100", "h100", "a6000", "host"}
    names = sorted(path.stem for path in DEVICES.glob("*.yaml"))
    every = compose_experiment("model=llada_8b", "workload=llada_gsm8k", "paths=[analytical]", "workload.prompt_length=8",
                               f"validation.devices=[{','.join(names)}]").devices  # fmt: skip
    assert sorted(every) == names
    assert {name: device.name for name, device in every.items()} == {name: name for name in names}


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


def test_a_product_by_hand(experiment):
    """A100, 108 tiles of 128 x 128 on 108 processors: a wave of 8,192 + 200 deep, at the achievable rate of one of them."""
    device = experiment.devices["a100"]
    rate = 312e12 * 0.87 * (1 + 200 / 8192) / 108
    wave = Product(rows=27 * 128, columns=4 * 128, contraction=8192)
    assert device.product_seconds(wave) == pytest.approx(2 * 128 * 128 * (8192 + 200) / rate)
    thin = Product(rows=1, columns=8192, contraction=8192)
    assert device.product_seconds(thin) == pytest.approx(2 * (8192**2 + 2 * 8192) / (0.83 * 2.039e12)), (
        "bound by memory"
    )


def test_more_work_never_takes_less_time_and_fp8_needs_a_rate(experiment):
    a100, h100 = experiment.devices["a100"], experiment.devices["h100"]
    for m, n, k in ((1, 512, 512), (64, 4096, 4096), (300, 1000, 7168), (4096, 2112, 7168)):
        base = a100.product_seconds(Product(rows=m, columns=n, contraction=k))
        for more in ((2 * m, n, k), (m, 2 * n, k), (m, n, 2 * k)):
            rows, columns, depth = more
            assert a100.product_seconds(Product(rows=rows, columns=columns, contraction=depth)) >= base
    eight = Product(rows=4096, columns=4096, contraction=4096, element_bytes=1)
    assert h100.product_seconds(eight) < h100.product_seconds(dataclasses.replace(eight, element_bytes=2))
    with pytest.raises(TripathError, match=r"devices\.a100: has no rate for products in FP8"):
        a100.product_seconds(eight)


def test_engines_launch_less_and_noise_costs_more(experiment):
    device, model = experiment.devices["h100"], experiment.model
    workload = dataclasses.replace(experiment.workload, generation_length=64, steps=8, cache="dual")
    walls = [run_workload(dataclasses.replace(device, engine=engine), model, workload, 256).metrics["seconds"]
             for engine in ("eager", "graphs", "serving")]  # fmt: skip
    assert walls == sorted(walls, reverse=True)
    shape = Shape(batch=1, canvas=64, block=32)
    warm = dataclasses.replace(device, temperature=0.5)
    plain, noisy = (each.kernel_seconds(each.phase(model, "sampling", shape)) for each in (device, warm))
    moved = 106 * 32 * model.vocab  # seven kernels over FP64, beside which an argmax of 8 bytes in place of 2
    assert noisy - plain > moved / device.bandwidth
    hot = dataclasses.replace(workload, temperature=0.5)
    assert run_workload(device, model, hot, 256) == run_workload(warm, model, workload, 256)
    with pytest.raises(TripathError, match=r"devices\.host\.temperature: numpy adds no Gumbel noise"):
        dataclasses.replace(experiment.devices["host"], temperature=1.0).phase(model, "sampling", shape)


def test_eager_code_takes_logits_of_every_row_that_it_forwards(experiment):
    device, model = experiment.devices["h100"], experiment.model
    none = dataclasses.replace(experiment.workload, generation_length=64, steps=64, cache="none")
    made = run_workload(device, model, none, 256).metrics["lm_head_seconds"] / 64
    shape = Shape(batch=1, canvas=320, block=320)
    assert made == pytest.approx(device.kernel_seconds(device.phase(model, "lm_head", shape)))


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
        shape = Shape(batch=1, canvas=canvas, block=rows, rows=rows)
        forward, *tail = (device.phase(model, phase, shape) for phase in ("refine", "lm_head", "sampling"))
        kernels = device.kernel_seconds([row for part in (forward, *tail) for row in part])
        ahead = sum(row.launches for row in forward) * device["dispatch_seconds"]
        total += max(kernels, ahead + device.kernel_seconds([row for part in tail for row in part]))
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
