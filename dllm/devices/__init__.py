"""Other hardware on the same workload: `graph` lists the work of each phase, `device` is a roofline that prices it."""

from dllm.devices.device import SOFTWARE, Device, DeviceRun, run_workload
from dllm.devices.engines import ENGINES
from dllm.devices.graph import PHASES, Operation, Shape, phase_operations, steps_of
from dllm.devices.products import Product

__all__ = [
    "ENGINES", "PHASES", "SOFTWARE", "Device", "DeviceRun", "Operation", "Product", "Shape", "phase_operations", "run_workload",
    "steps_of",
]  # fmt: skip
