"""Device models against figures that others published (`data/published.json`), as printed there, misses included."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

from dllm.devices import Device, Shape
from dllm.model import ModelSpec
from npu.errors import TripathError
from tripath.validation.discrepancy import Discrepancy

FILE = "data/published.json"


def published_models() -> set[str]:
    """Names of the models that the figures belong to."""
    facts = _facts()
    return {row["model"] for row in facts["phases"]}


def check_published(devices: Mapping[str, Device], models: Mapping[str, ModelSpec]) -> list[Discrepancy]:
    """Every published figure of a device against its model.

    Raises:
        TripathError: the configuration has no such device.
    """
    facts = _facts()
    for name in [row["device"] for row in facts["phases"]]:
        if name not in devices:
            raise TripathError(f"validation.published: needs devices.{name}")
    return list(_phases(facts["phases"], devices, models))


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
