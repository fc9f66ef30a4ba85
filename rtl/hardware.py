"""The hardware that the checked-in package describes, composed from `conf/` without the command line."""

from pathlib import Path
from typing import Any

import yaml

import conf
from npu.hardware import FrontEnd, HardwareConfig, Hbm, Sram, Timing

FOLDER = Path(next(iter(conf.__path__))) / "hardware"


def small_core() -> HardwareConfig:
    """`conf/hardware/rtl_small.yaml`."""
    facts = _facts("rtl_small")
    timing = {name: Timing(**row) for name, row in _facts("timing/rtl").items()}
    hbm = Hbm(**{**_facts("hbm/hbm2"), **facts.pop("hbm")})
    parts = {"sram": Sram(**facts.pop("sram")), "frontend": FrontEnd(**facts.pop("frontend"))}
    facts["clock_hz"] = float(facts["clock_hz"])
    return HardwareConfig(hbm=hbm, timing=timing, **parts, **facts)


def _facts(name: str) -> Any:  # noqa: ANN401  a tree of YAML
    tree = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return {key: value for key, value in tree.items() if key != "defaults"}
