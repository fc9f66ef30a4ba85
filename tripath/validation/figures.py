"""Figures that others measured, as a file: each with its device, engine, model and settings, in SI units.

The file is JSON with a list `figures`; `FIELDS` says what each has. `kind` groups them; `workload` holds their settings.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from npu.errors import TripathError

KEY = "validation.figures"
PUBLISHED = "published"
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "id": str, "source": str, "device": str, "count": int, "precision": str, "engine": str, "model": str, "workload": dict,
    "measured": str, "value": (int, float), "unit": str, "open": list, "quality": str, "kind": str,
}  # fmt: skip


class NotExpressedError(TripathError):
    """A figure that no model here can express; the message says why."""


class Settings(dict[str, Any]):
    """The settings of a figure; what is asked for and not there cannot be expressed."""

    def amount(self, name: str, otherwise: float | None = None) -> float:
        """A number, or the first of a text: `about 140 (threshold 0.9)` is 140, `126k` 126,000.

        Raises:
            NotExpressedError: there is none, and nothing to take its place.
        """
        given = self.get(name, otherwise)
        if isinstance(given, int | float) and not isinstance(given, bool):
            return float(given)
        if found := re.search(r"(\d[\d,]*(?:\.\d+)?)(k?)", str(given)):
            return float(found[1].replace(",", "")) * (1000 if found[2] else 1)
        raise NotExpressedError(f"{name} is not stated")

    def count(self, name: str, otherwise: int | None = None) -> int:
        """As `amount`, a whole number."""
        return round(self.amount(name, otherwise))

    def text(self, name: str) -> str:
        """A text; empty: it is not stated."""
        return str(self.get(name, ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure with its settings, in SI units; `quality` A: settings complete, B: one or two assumptions needed."""

    id: str
    source: str
    device: str
    count: int
    precision: str
    engine: str
    model: str
    workload: Settings
    measured: str
    value: float
    unit: str
    open: Sequence[str]
    quality: str
    kind: str

    @property
    def device_name(self) -> str:
        """The device model that stands for the device."""
        first = re.split(r"[ ,]", self.device)[0]
        if first == "not" and "H200" in self.device:
            return "h200"
        return DEVICES.get(first, first)

    @property
    def second_hand(self) -> bool:
        """The figure was read where others quote it: its source or a remark says `through` whom, or that it `quotes`."""
        return any(re.search(r"\b(through|quotes)\b", text) for text in (self.source, *self.open))

    @property
    def model_name(self) -> str:
        """The model whose shape the figure's model has."""
        name = re.split(r"[ ,]", self.model)[0].replace(".", "_")
        name = re.sub(r"^(d3llm|dparallel)_|_(instruct|base|chat)\b", "", name)
        return MODELS.get(name, name)


DEVICES = {
    "a100_sxm": "a100", "a100_sxm_80gb": "a100", "a100_pcie_80gb": "a100_pcie", "a800_sxm": "a800", "h100_sxm": "h100",
    "h800_sxm": "h800", "h200_sxm": "h200", "b200_sxm": "b200", "rtx_a6000": "a6000", "tpu7x": "tpu_v7x",
    "tenstorrent_blackhole_p150": "blackhole_p150", "tenstorrent_blackhole": "blackhole_p150",
}  # fmt: skip
"""Device models by the names of others; where SXM or PCIe is not stated, SXM is taken."""
MODELS = {
    "qwen2_5_7b": "dream_7b", "qwen2_5_1_5b": "fast_dllm_v2_1_5b", "llama3_8b": "llama3_1_8b", "dream": "dream_7b",
    "llada": "llada_8b", "llada_moe_7b_a1_4b": "llada_moe_7b", "llada2_0_mini_16b": "llada2_mini",
}  # fmt: skip
"""Models of the same shape: Dream is Qwen2.5-7B; Llama 3 and 3.1 differ in their rotation alone."""
MIXTURES = ("moe", "_a4b", "_a1_", "_a3b", "llada2", "deepseek", "mixtral")
"""Parts of names that identify mixtures of experts."""


def read_figures(file: str) -> list[Figure]:
    """The figures of a JSON file, or with `published` of the one in the package.

    Raises:
        TripathError: it cannot be read, or a figure lacks a field or has one of another type; the message names it.
    """
    place = files("tripath.validation").joinpath("data/figures.json") if file == PUBLISHED else Path(file)
    try:
        top = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TripathError(f"{KEY}: cannot read {file} ({' '.join(str(error).split())})") from None
    rows = top.get("figures") if isinstance(top, dict) else None
    if not isinstance(rows, list) or not rows:
        raise TripathError(f"{KEY}: {file} needs a list `figures` of at least one figure")
    found = [_figure(file, number, row) for number, row in enumerate(rows, 1)]
    if twice := {each.id for each in found if sum(other.id == each.id for other in found) > 1}:
        raise TripathError(f"{KEY}: {file}: figure {min(twice)} stands there twice")
    return found


def _figure(file: str, number: int, row: object) -> Figure:
    if not isinstance(row, dict):
        raise TripathError(f"{KEY}: {file}: figure {number} must be a mapping")
    where = f"{KEY}: {file}: figure {row.get('id', number)}"
    for name, kind in FIELDS.items():
        if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool):
            raise TripathError(
                f"{where}: {name} must be a {getattr(kind, '__name__', 'number')}, got {row.get(name)!r}"
            )
    if not math.isfinite(row["value"]) or row["value"] == 0:
        raise TripathError(f"{where}: value must be a number other than 0, got {row['value']}")
    values = {**{name: row[name] for name in FIELDS}, "workload": Settings(row["workload"])}
    return Figure(**values)


@cache
def misses() -> Mapping[str, str]:
    """Why figures are missed, by id, as far as that is known."""
    text = files("tripath.validation").joinpath("data/misses.json").read_text(encoding="utf-8")
    return json.loads(text)["figures"]


@cache
def calibration() -> Mapping[str, str]:
    """Ids of the figures that gave a number of a model, and which: nothing is compared with them."""
    text = files("tripath.validation").joinpath("data/calibration.json").read_text(encoding="utf-8")
    return json.loads(text)["figures"]
