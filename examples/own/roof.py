"""A path of one's own: a roofline over the whole program, with an efficiency that its author believes in."""

from analytical.tree import retirements
from npu.hardware import HardwareConfig
from npu.metrics import Result, Table
from npu.program import Program
from npu.program.tables import event_counts
from npu.program.trace import Trace


def simulate(program: Program, *, hardware: HardwareConfig, trace: Trace, efficiency: float = 1.0) -> Result:
    """The larger of compute and memory time, divided by `efficiency`.

    `counts` are held to those of the other paths, `makespan_cycles` is what tables show; what else it reports is its own.
    """
    counts = event_counts(program, retirements(program, trace))
    compute = counts["macs"] / (hardware.blen * hardware.mlen)
    memory = (counts["hbm_read_bytes"] + counts["hbm_write_bytes"]) / hardware.peak_bytes_per_cycle
    cycles = max(compute, memory) / efficiency
    return Result(
        simulator="roof", program_digest=program.digest, trace_digest=trace.digest, counts=counts,
        metrics={"makespan_cycles": cycles, "seconds": cycles / hardware.clock_hz},
        tables={"roofs": Table(columns=["roof", "cycles"], rows=[["compute", compute], ["memory", memory]])},
    )  # fmt: skip
