"""Device models against figures that others published (`data/published.json`), as printed there, misses included."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

from dllm.devices import Device, Shape, run_workload
from dllm.model import ModelSpec
from dllm.workload import Workload
from npu.errors import TripathError
from tripath.validation.discrepancy import Discrepancy

FILE = "data/published.json"


def published_models() -> set[str]:
    """Names of the models that the figures belong to."""
    facts = _facts()
    return {row["model"] for row in facts["phases"]} | {facts["policies"]["model"]}


def check_published(devices: Mapping[str, Device], models: Mapping[str, ModelSpec]) -> list[Discrepancy]:
    """Every published figure of a device against its model.

    Raises:
        TripathError: the configuration has no such device.
    """
    facts = _facts()
    for name in [row["device"] for row in facts["phases"]] + [facts["policies"]["device"]]:
        if name not in devices:
            raise TripathError(f"validation.published: needs devices.{name}")
    return [*_phases(facts["phases"], devices, models), *_policies(facts["policies"], devices, models)]


def _facts() -> dict[str, Any]:
    return json.loads(files("tripath.validation").joinpath(FILE).read_text(encoding="utf-8"))


def _phases(rows: list[dict], devices: Mapping[str, Device], models: Mapping[str, ModelSpec]) -> Iterator[Discrepancy]:
    for row in rows:
        device = devices[row["device"]]
        precision = row.get("sampling_format", device.sampling_format)
        device = replace(device, sampling_format=precision)
        shape = Shape(batch=row["batch"], canvas=row["canvas"], block=row["block"])
        observed = device.seconds(device.phase(models[row["model"]], row["phase"], shape))
        yield Discrepancy(
            metric=f"{row['phase']}_seconds", scope=f"{device.name}/{row['model']}/{precision}", kind="reference",
            expected=row["seconds"], expected_source=row["source"], observed=observed,
            observed_source=f"device model {device.name}", tolerance=row["tolerance"], reason=row["reason"],
        )  # fmt: skip


def _policies(facts: dict, devices: Mapping[str, Device], models: Mapping[str, ModelSpec]) -> Iterator[Discrepancy]:
    """Speed-up of a cache policy over none, and kernel time of a step with it."""
    device, model = devices[facts["device"]], models[facts["model"]]
    for row in facts["runs"]:
        length, prompt = row["generation_length"], row["assumed_prompt_length"]
        none, cached = (
            run_workload(device, model, Workload(generation_length=length, block_length=facts["block"], steps=length,
                                                 cache=cache, prompt_length=prompt), prompt).metrics
            for cache in ("none", facts["cache"])
        )  # fmt: skip
        slow, fast = row["tokens_per_second"]
        figures = {
            f"{facts['cache']}_speedup": (fast / slow, none["seconds"] / cached["seconds"], facts["reason"]),
            f"{facts['cache']}_step_kernel_seconds": (
                facts["kernel_share"] / fast, cached["kernel_seconds"] / length, facts["kernel_reason"]
            ),
        }  # fmt: skip
        for metric, (expected, observed, reason) in figures.items():
            yield Discrepancy(
                metric=metric, scope=f"{device.name}/{model.name}/{row['name']}", kind="reference", expected=expected,
                expected_source=facts["source"], observed=observed, observed_source=f"device model {device.name}",
                tolerance=facts["tolerance"], reason=reason,
            )  # fmt: skip
