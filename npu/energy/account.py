"""Energy, power and area of a run. Energy: events of each phase times the energy per event, plus static power times seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from npu.energy.area import (
    PORT_BITS,
    SMALLEST_BANK_BYTES,
    AreaTerm,
    area_terms,
    sram_bytes,
    sram_um2,
    static_terms,
)
from npu.energy.technology import Technology, multiply_pj, power_law
from npu.formats import FORMAT_OF_CODE, FORMATS
from npu.hardware import HardwareConfig
from npu.isa import TABLE, Memory, OpClass, Unit
from npu.metrics import Table
from npu.program import Program, fact_of_program
from npu.program.tables import bytes_per_instruction, tabulate
from npu.sourced import PROVENANCES
from npu.units import KIB, MIB

PICO = 1e-12
BLOCKS: tuple[str, ...] = (
    "matrix",
    "vector",
    "scalar",
    "frontend",
    "matrix_sram",
    "vector_sram",
    "small_sram",
    "hbm_phy",
    "hbm",
)
MEMORY_BLOCKS = {
    Memory.MATRIX: "matrix_sram", Memory.VECTOR: "vector_sram", Memory.FP: "small_sram", Memory.INT: "small_sram",
}  # fmt: skip
ACCUMULATOR_BITS = 32
INSTRUCTION_BYTES = 16
VECTOR_PORTS = 3
"""Rows of Vector SRAM that one vector instruction reads and writes: two operands and a result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyTerm:
    """Joules of one kind of event in `block`: by phase, and at most in a cycle; and what the figure rests on."""

    block: str
    phase_joules: np.ndarray
    peak_cycle_joules: float
    provenance: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Metrics (docs/energy.md lists them), and the tables `energy` (by phase and block) and `area`."""

    metrics: Mapping[str, float]
    tables: Mapping[str, Table]


def account(
    program: Program, retired: np.ndarray, *, hardware: HardwareConfig, technology: Technology,
    phase_seconds: np.ndarray, tokens: int, hbm_bytes: np.ndarray | None = None,
) -> Account:  # fmt: skip
    """Energy, power and area of a run in which instruction i retired `retired[i]` times, and which generated `tokens`.

    `phase_seconds` and `hbm_bytes` are by phase (`program.phase_names`); where `hbm_bytes` is not measured, it follows from
    the instructions. Static power is charged to phases by their seconds.
    """
    phases = len(program.phase_names)
    events = _Events(program=program, retired=np.asarray(retired, float), phase=program.phase_of(), phases=phases)
    pairs = events.macs()
    terms = _dynamic_terms(events, pairs, hardware, technology, hbm_bytes)
    areas = area_terms(technology, hardware, [pair[:2] for pair in pairs])
    static = static_terms(technology, hardware, areas)
    watts = sum(power for _, power, _ in static)
    seconds = float(phase_seconds.sum())
    peak = sum(term.peak_cycle_joules for term in terms) * hardware.clock_hz + watts
    dynamic = float(sum(term.phase_joules.sum() for term in terms))
    terms += [
        EnergyTerm(block=block, phase_joules=power * phase_seconds, peak_cycle_joules=0.0, provenance=technology.provenance(name))
        for block, power, name in static
    ]  # fmt: skip
    return _summary(program, technology, terms, areas, dynamic=dynamic, seconds=seconds, peak_watts=peak, tokens=tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Events:
    """Event counts of a run, by phase."""

    program: Program
    retired: np.ndarray
    phase: np.ndarray
    phases: int

    def by_phase(self, per_instruction: np.ndarray) -> np.ndarray:
        """Sum over each phase of a number of events per instruction, times retirements."""
        return np.bincount(self.phase, per_instruction * self.retired, self.phases)

    def macs(self) -> dict[tuple[str, str, int], np.ndarray]:
        """Multiply-accumulates of each (weight format, activation format, block length), by phase."""
        return {key: self.by_phase(row) for key, row in _macs(self.program).items()}

    def lanes(self) -> np.ndarray:
        """Operations of vector lanes, by phase."""
        return self.by_phase(tabulate(self.program).lanes)

    def of_unit(self, unit: Unit) -> np.ndarray:
        """Instructions of a unit, by phase."""
        return self.by_phase(tabulate(self.program).unit == unit)

    def bytes_of(self, memory: Memory) -> np.ndarray:
        """Bytes read and written in a memory, by phase."""
        return self.by_phase(bytes_per_instruction(self.program, memory))


@fact_of_program
def _macs(program: Program) -> dict[tuple[str, str, int], np.ndarray]:
    """Multiply-accumulates per instruction of each (weight format, activation format, block length)."""
    tables, found = tabulate(program), {}
    products = [opcode for opcode, spec in TABLE.items() if spec.op_class is OpClass.TILE_PRODUCT]
    for number in np.flatnonzero(np.isin(tables.opcode, products)).tolist():
        o = program.instructions[number].operands
        weights, activations = (FORMAT_OF_CODE[o[key]].name for key in ("weight_format", "act_format"))
        row = found.setdefault((weights, activations, 1 << o["block"]), np.zeros(len(tables.macs)))
        row[number] = tables.macs[number]
    return found


def _dynamic_terms(
    events: _Events, pairs: Mapping[tuple[str, str, int], np.ndarray], hardware: HardwareConfig,
    technology: Technology, hbm_bytes: np.ndarray | None,
) -> list[EnergyTerm]:  # fmt: skip
    terms: list[EnergyTerm] = []

    def add(block: str, count: np.ndarray, pj: float, *numbers: str, peak: float = 0.0, law: bool = False) -> None:
        provenance = max(technology.provenance(*numbers), "derived" if law else "published", key=PROVENANCES.index)
        terms.append(
            EnergyTerm(block=block, phase_joules=count * pj * PICO, peak_cycle_joules=peak * pj * PICO, provenance=provenance)
        )  # fmt: skip

    costs = {pair: sum(pj for pj, *_ in mac_parts(technology, *pair)) for pair in pairs}
    for pair, count in pairs.items():  # the array is as busy as can be where all of its MACs are of the dearest kind
        most = hardware.mlen * hardware.blen if costs[pair] == max(costs.values()) else 0.0
        for pj, names, law in mac_parts(technology, *pair):
            add("matrix", count, pj, *names, peak=most, law=law)
    add("vector", events.lanes(), technology["vector_lane_pj"], "vector_lane_pj", peak=hardware.vlen)
    add("scalar", events.of_unit(Unit.SCALAR), technology["scalar_operation_pj"], "scalar_operation_pj", peak=1)
    issued = events.by_phase(np.ones(len(events.retired)))
    add("frontend", issued, technology["issue_pj"], "issue_pj", peak=1)
    width, sizes = port_bits(hardware), sram_bytes(technology, hardware)
    peak_bytes = hardware.peak_bytes_per_cycle
    traffic = {
        "matrix_sram": (events.bytes_of(Memory.MATRIX), hardware.mlen + peak_bytes),
        "vector_sram": (
            events.bytes_of(Memory.VECTOR), 2 * (VECTOR_PORTS * hardware.vlen + hardware.mlen) + peak_bytes
        ),
        "small_sram": (events.bytes_of(Memory.FP) + events.bytes_of(Memory.INT), 2 * PORT_BITS / 8),
        "frontend": (issued * INSTRUCTION_BYTES, INSTRUCTION_BYTES),
    }  # fmt: skip
    for block, (moved, most) in traffic.items():
        cell, wire = sram_byte_pj(technology, sizes[block], width[block])
        add(block, moved, cell, "sram_8kib_pj", "sram_1mib_pj", peak=most, law=True)
        add(block, moved, wire, "wire_bit_mm_pj", "sram_cell_um2", "sram_array_share", peak=most, law=True)
    number = f"{hardware.hbm.generation}_bit_pj"
    moved = events.bytes_of(Memory.HBM) if hbm_bytes is None else hbm_bytes
    add("hbm", np.asarray(moved, float), 8 * technology[number], number, peak=peak_bytes)
    return terms


def mac_parts(
    technology: Technology, weights: str, activations: str, block: int
) -> list[tuple[float, tuple[str, ...], bool]]:
    """Energy of one multiply-accumulate by part: (pJ, the numbers it rests on, True if a scaling law is applied to them).

    The parts are the product; its addition, in integers within a block and in FP32 between blocks, or always in FP32; and
    the registers that hold both operands and the partial sum.
    """
    w, a = FORMATS[weights], FORMATS[activations]
    integer = w.integer and a.integer
    kind = ("multiply_int8_pj", "multiply_int32_pj") if integer else ("multiply_bf16_pj", "multiply_fp32_pj")
    product = multiply_pj(technology, w, a)
    exact = [name for name in kind if technology[name] == product]
    adds = [("add_int32_pj", 1.0), ("add_fp32_pj", 1 / block)] if integer else [("add_fp32_pj", 1.0)]
    registers = (w.bits + a.bits + ACCUMULATOR_BITS) * technology["register_bit_pj"]
    return [
        (product, tuple(exact) or kind, not exact),
        *((share * technology[name], (name,), False) for name, share in adds),
        (registers, ("register_bit_pj",), False),
    ]


def port_bits(hardware: HardwareConfig) -> dict[str, int]:
    """Width of the port of each memory on the chip."""
    return {
        "matrix_sram": 8 * hardware.mlen, "vector_sram": 16 * hardware.vlen, "small_sram": PORT_BITS,
        "frontend": 8 * INSTRUCTION_BYTES,
    }  # fmt: skip


def sram_byte_pj(technology: Technology, size: int, width_bits: int) -> tuple[float, float]:
    """Picojoules of a byte in a memory of `size` bytes with a port of `width_bits`: in its bank, and on the way to it.

    A wide port is banks of 64 bits side by side, each with its share of the bytes; a bank costs what is published for its
    capacity (a power law between the two points, none below the first). The way is half the side of the memory.
    """
    bank = max(size * PORT_BITS / width_bits, SMALLEST_BANK_BYTES)
    points = (8 * KIB, technology["sram_8kib_pj"]), (MIB, technology["sram_1mib_pj"])
    way_mm = (sram_um2(technology, size) * 1e-6) ** 0.5 / 2
    return power_law(bank, *points) / (PORT_BITS / 8), 8 * way_mm * technology["wire_bit_mm_pj"]


def _summary(
    program: Program, technology: Technology, terms: list[EnergyTerm], areas: list[AreaTerm], *, dynamic: float,
    seconds: float, peak_watts: float, tokens: int,
) -> Account:  # fmt: skip
    phases = program.phase_names
    cells = {block: np.zeros(len(phases)) for block in BLOCKS}
    by_provenance, rests = dict.fromkeys(PROVENANCES, 0.0), dict.fromkeys(PROVENANCES, 0.0)
    for term in terms:
        cells[term.block] = cells[term.block] + term.phase_joules
        by_provenance[term.provenance] += float(term.phase_joules.sum())
    mm2 = dict.fromkeys(BLOCKS, 0.0)
    for area in areas:
        mm2[area.block] += area.mm2
        rests[technology.provenance(*area.numbers)] += area.mm2
    whole = reduce(np.add, cells.values())
    joules, total_mm2 = float(whole.sum()), sum(mm2.values())
    metrics = {
        "energy_joules": joules, "dynamic_energy_joules": dynamic, "static_energy_joules": joules - dynamic,
        "tokens_per_joule": tokens / joules, "average_power_watts": joules / seconds, "peak_power_watts": peak_watts,
        "area_mm2": total_mm2, "energy_assumed_share": by_provenance["assumed"] / joules,
        "area_assumed_share": rests["assumed"] / total_mm2,
    }  # fmt: skip
    metrics |= {f"energy_joules.{name}": float(whole[number]) for number, name in enumerate(phases)}
    metrics |= {f"block_energy_joules.{block}": float(row.sum()) for block, row in cells.items()}
    metrics |= {f"block_area_mm2.{block}": value for block, value in mm2.items() if block != "hbm"}
    body = [(phase, [cells[block][p] for block in BLOCKS]) for p, phase in enumerate(phases)]
    body.append(("all", [float(row.sum()) for row in cells.values()]))
    rows = [[name, *(f"{v:.3g}" for v in (*row, sum(row))), f"{sum(row) / joules:.1%}"] for name, row in body]
    rows.append(["share", *(f"{row.sum() / joules:.1%}" for row in cells.values()), "100.0%", ""])
    area_rows = [[block, f"{mm2[block]:.4g}", f"{mm2[block] / total_mm2:.1%}"] for block in BLOCKS if block != "hbm"]
    rests_on = [[name, f"{by_provenance[name] / joules:.1%}", f"{rests[name] / total_mm2:.1%}"] for name in PROVENANCES]
    return Account(
        metrics=metrics,
        tables={
            "energy": Table(columns=["phase (J)", *BLOCKS, "all", "share"], rows=rows),
            "area": Table(columns=["block", "mm2", "share"], rows=[*area_rows, ["all", f"{total_mm2:.4g}", "100.0%"]]),
            "provenance": Table(columns=["numbers", "share of energy", "share of area"], rows=rests_on),
        },
    )
