"""The account of a run: hand calculation, sums, equality of the two paths, laws; and bad technologies."""

import dataclasses

import numpy as np
import pytest

import analytical
import cycle
from npu.energy import Technology, account
from npu.energy.account import mac_parts, sram_byte_pj
from npu.energy.technology import multiply_pj
from npu.errors import TripathError
from npu.formats import FORMATS
from npu.isa import Instruction
from npu.program import Phase, Program, words_of
from tests.conftest import compiled, compose_experiment
from tripath.validation import validate

GEOMETRY = {
    "blen": 8,
    "mlen": 32,
    "vlen": 64,
    "vector_bytes": 4096,
    "matrix_bytes": 4096,
    "fp_bytes": 64,
    "int_bytes": 64,
}


@pytest.fixture(scope="module")
def experiment():
    return compose_experiment("experiment=quick", "paths=[analytical,cycle]")


@pytest.fixture(scope="module")
def results(experiment):
    program, trace = compiled(experiment)
    inputs = {"hardware": experiment.hardware, "trace": trace, "technology": experiment.technology}
    return {path.__name__: path.simulate(program, **inputs) for path in (analytical, cycle)}


def small_program():
    """An FP32 addition of 64 lanes, in a phase of its own behind two address registers."""
    a, b = ({"register": r, "base": 64 * r} for r in (1, 2))
    rows = [
        Instruction(mnemonic="A_BASE", operands=a), Instruction(mnemonic="A_BASE", operands=b),
        Instruction(mnemonic="V_ADD_VV", operands={"dst": 1, "a": 1, "b": 2, "n": 64}),
        Instruction(mnemonic="C_END"),
    ]  # fmt: skip
    return Program(
        words=words_of(rows), hbm=(), geometry=GEOMETRY, layout={"batch": 1, "generation_length": 8},
        phases=(Phase(name="ffn", start=2, stop=4),),
    )  # fmt: skip


def test_a_small_program_by_hand(experiment):
    technology, hardware = experiment.technology, experiment.hardware
    seconds = np.array([2e-9, 3e-9])
    spent = account(
        small_program(),
        np.array([1, 1, 10, 1]),
        hardware=hardware,
        technology=technology,
        phase_seconds=seconds,
        tokens=8,
    ).metrics
    assert spent["block_energy_joules.matrix"] == 0
    logic, sram = (technology[name] * 1e-3 for name in ("logic_leakage_mw_mm2", "sram_leakage_mw_mib"))
    lanes = 10 * 64 * technology["vector_lane_pj"] * 1e-12
    leaked = 64 * technology["vector_lane_um2"] * 1e-6 * logic * 5e-9
    assert spent["block_energy_joules.vector"] == pytest.approx(lanes + leaked)
    # 524,288 bytes behind 1024 bits are 16 banks of 32 KiB; 3 rows of 128 bytes move ten times, half a side far
    bank = 7.5 * (14 / 7.5) ** (2 / 7) / 8
    wire = 8 * 0.03 * (8 * 524_288 * 0.027e-6 / 0.5) ** 0.5 / 2
    moved = 10 * 3 * 128 * (bank + wire) * 1e-12
    assert spent["block_energy_joules.vector_sram"] == pytest.approx(moved + 0.5 * sram * 5e-9)
    assert spent["tokens_per_joule"] == pytest.approx(8 / spent["energy_joules"])
    assert spent["average_power_watts"] == pytest.approx(spent["energy_joules"] / 5e-9)
    assert spent["energy_joules.ffn"] > 0.9 * spent["dynamic_energy_joules"]


def test_published_energies_of_arithmetic(experiment):
    technology = experiment.technology
    assert sum(row[0] for row in mac_parts(technology, "fp32", "fp32", 32)) == pytest.approx(1.31 + 0.38, rel=0.15)
    assert mac_parts(technology, "mxint8", "mxint8", 32)[0][0] == pytest.approx(0.07)
    fp16 = multiply_pj(technology, FORMATS["fp16"], FORMATS["fp16"])
    assert fp16 == pytest.approx(0.34, rel=0.06), "published at 7 nm, and not used for the law"
    bank_of_32_kib = 8 * sram_byte_pj(technology, 32 * 1024, 64)[0]
    assert bank_of_32_kib == pytest.approx(8.5, rel=0.06), "the third published capacity, not used either"


def test_phases_and_blocks_add_up_to_the_total(results):
    for result in results.values():
        metrics = result.metrics
        for prefix in ("energy_joules.", "block_energy_joules."):
            parts = sum(value for name, value in metrics.items() if name.startswith(prefix))
            assert parts == pytest.approx(metrics["energy_joules"], rel=1e-12)
        areas = sum(value for name, value in metrics.items() if name.startswith("block_area_mm2."))
        assert areas == pytest.approx(metrics["area_mm2"], rel=1e-12)
        assert metrics["energy_joules"] == pytest.approx(
            metrics["dynamic_energy_joules"] + metrics["static_energy_joules"]
        )
        assert metrics["energy_joules"] == pytest.approx(metrics["average_power_watts"] * metrics["seconds"])
        assert 0 < metrics["average_power_watts"] < metrics["peak_power_watts"]
        assert 0 < metrics["energy_assumed_share"] < 1


def test_both_paths_charge_the_same_events_and_a_check_says_so(results, experiment):
    first, second = (results[name].metrics["dynamic_energy_joules"] for name in ("analytical", "cycle"))
    assert first == pytest.approx(second, rel=1e-9)
    rows = {row.metric: row for row in validate(results, experiment.settings)}
    assert rows["dynamic_energy_joules"].passed
    assert rows["energy_joules"].passed
    wrong = dataclasses.replace(
        results["cycle"], metrics={**results["cycle"].metrics, "dynamic_energy_joules": first * 1.01}
    )
    failed = [row.metric for row in validate({**results, "cycle": wrong}, experiment.settings) if not row.passed]
    assert failed == ["dynamic_energy_joules"]


def test_dearer_events_cost_more_and_nothing_else(results, experiment):
    program, trace = compiled(experiment)
    base = results["analytical"].metrics
    for name, block in (("hbm2_bit_pj", "hbm"), ("vector_lane_pj", "vector"), ("add_int32_pj", "matrix")):
        numbers = {**experiment.technology.numbers, name: {**experiment.technology.numbers[name], "value": 9.0}}
        dear = analytical.simulate(
            program, hardware=experiment.hardware, trace=trace, technology=Technology(name="dear", numbers=numbers)
        ).metrics
        grown = {key for key in base if base[key] != dear[key] and key.startswith("block_energy_joules.")}
        assert grown == {f"block_energy_joules.{block}"}
        assert dear["energy_joules"] > base["energy_joules"]
        assert dear["seconds"] == base["seconds"]


def test_no_technology_no_energy(experiment):
    program, trace = compiled(experiment)
    metrics = analytical.simulate(program, hardware=experiment.hardware, trace=trace).metrics
    assert not [name for name in metrics if "joule" in name or "watt" in name]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("technology.numbers.hbm2_bit_pj.value=-1", r"technology.numbers.hbm2_bit_pj.value: must be from"),
        ("technology.numbers.hbm2_bit_pj.provenance=heard", r"hbm2_bit_pj.provenance: unknown 'heard', one of published"),
        ("technology.numbers.hbm2_bit_pj.source=''", r"hbm2_bit_pj.source: must not be empty"),
        ("~technology.numbers.hbm2_bit_pj", r"hbm2_bit_pj: needs value, provenance and source, got None"),
        ("+technology.numbers.magic_pj={value: 1}", r"technology.numbers.magic_pj: no such number"),
        ("hardware.hbm.generation=hbm9", r"hardware.hbm.generation: unknown 'hbm9', one of hbm2"),
    ],
)  # fmt: skip
def test_bad_numbers_are_named(override, message):
    with pytest.raises(TripathError, match=message):
        compose_experiment(override)
