"""The group `validation` of a configuration: tolerances, and what else is compared, as the objects that an experiment takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cycle.streams import read_streams
from dllm.devices import Device
from dllm.model import ModelSpec
from npu.errors import TripathError
from npu.hardware import HardwareConfig, Hbm
from tripath.command.building import TARGET, build
from tripath.validation import HostSettings, Settings, check_names, published_models, read_areas, read_measurements
from tripath.validation.figures import read_figures
from tripath.validation.predictions import MEMORIES


class Files(Protocol):
    """Access to other configuration files, by group and name."""

    def values(self, group: str, name: str) -> Mapping[str, Any] | None:
        """The values of a file; None: there is none."""
        ...

    def model(self, name: str) -> ModelSpec:
        """The model of a file, without a checkpoint.

        Raises:
            TripathError: there is none.
        """
        ...

    def memory(self, name: str) -> Hbm:
        """The memory of a file."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparisons:
    """Further comparisons of a run, by their keys in `validation`.

    Attributes:
        streams: A file of memory streams to run through the DRAM model; published: the one in the package; null: none.
        baseline: Expected values of all metrics of a sweep: a JSON file, or the name of one in the package; null: none.
        devices: Device models that run the same workload.
        published: Compare these with their published figures.
        measurements: A CSV file of someone's own measurements; null: none.
        figures: A JSON file of figures by others, to compare device models with; published: the one in the package; null: none.
        areas: A CSV file of synthesised areas, to compare the technology with; published: those in the package; null: none.
        host: Time this CPU; null: it is not timed.
    """

    streams: str | None = None
    baseline: str | None = None
    devices: Sequence[str] = field(default_factory=list)
    published: bool = False
    measurements: str | None = None
    areas: str | None = None
    figures: str | None = None
    host: HostSettings | None = None

    def objects(
        self, values: Mapping[str, Any], hardware: HardwareConfig, own: ModelSpec, files: "Files"
    ) -> dict[str, Any]:
        """The fields of an experiment that follow; `own` is the model of the run, `files` has others by name.

        Raises:
            TripathError: a file cannot be read, or names a device or model that does not exist.
        """
        measurements = [] if self.measurements is None else read_measurements(self.measurements)
        devices = {str(name): build(Device, f"devices.{name}", node) for name, node in values["devices"].items()}
        figures = [] if self.figures is None else read_figures(self.figures)
        named = {row.device for row in measurements} | set(self.devices) | {row.device_name for row in figures}
        known = {name: files.values("device", name) for name in sorted(named - set(devices))}
        devices |= {name: build(Device, f"devices.{name}", node) for name, node in known.items() if node is not None}
        check_names(measurements, devices, values["hardware"].get("name") if values.get("paths") else None)
        names = {row.model for row in measurements} | (published_models() if self.published else set())
        others = {name: files.model(name) for name in sorted(names - {own.name})}
        shapes = {row.model_name for row in figures} - {own.name}
        others |= {name: files.model(name) for name in sorted(shapes) if files.values("model", name) is not None}
        memories = {name: files.memory(name) for name in MEMORIES.values()} if figures else {}
        return {
            "streams": [] if self.streams is None else read_streams(self.streams, hardware.hbm),
            "compared": self.devices, "published": self.published, "measurements": measurements, "host": self.host,
            "areas": [] if self.areas is None else read_areas(self.areas),
            "figures": figures, "memories": memories, "devices": devices, "models": {own.name: own, **others},
        }  # fmt: skip


def read_validation(node: Mapping[str, Any]) -> tuple[Comparisons, Settings]:
    """The two parts of the group `validation`.

    Raises:
        TripathError: an unknown key, or a value that breaks a rule.
    """
    compared = [each.name for each in dataclasses.fields(Comparisons)]
    known = [*(each.name for each in dataclasses.fields(Settings)), *compared]
    for key in node:
        if key not in (TARGET, *known):
            raise TripathError(f"validation.{key}: no such key, one of {', '.join(known)}")
    tolerances = {key: value for key, value in node.items() if key not in compared}
    comparisons = {key: value for key, value in node.items() if key in compared}
    return build(Comparisons, "validation", comparisons), build(Settings, "validation", tolerances)
