"""The core against the simulators: every start and end of `cycle`, every bit of `accuracy`."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest

from accuracy.image import build_image, read_tokens
from dllm.checkpoint import load_tensors, load_tokenizer
from npu.errors import ProgramError, TripathError
from npu_compiler import compile_program
from rtl import package, simulator
from rtl.hardware import small_core
from rtl.limits import check_program
from tests.conftest import PROMPT, compiled, compose_experiment
from tests.rtl import programs
from tests.rtl.test_units import program_of

SMALL = small_core()
SERIAL = dataclasses.replace(SMALL, execution="serial")


def test_the_package_is_what_the_tables_say():
    assert package.FILE.read_text() == package.package_text(SMALL)


def test_the_small_core_is_what_the_command_line_composes():
    assert compose_experiment("hardware=rtl_small").hardware == SMALL


def test_lint():
    if shutil.which("verilator") is None:
        pytest.skip("needs verilator (Debian: apt install verilator)")
    command = ["verilator", "--lint-only", "-Wall", "-Wno-WIDTH", "-Wno-UNUSEDPARAM", "-Wno-UNUSEDSIGNAL", "-Wno-DECLFILENAME",
               "--unroll-count", "24", "--unroll-stmts", "100000", "--top", "core", *simulator.SOURCES]  # fmt: skip
    done = subprocess.run(command, cwd=simulator.FOLDER, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def check_three_ways(core, given, *, bits=True):
    machine = programs.executed(given)
    (after,) = simulator.run(core, [given], most_cycles=500_000)
    expected, makespan = programs.times(given.program, given.hardware, machine.breaks[: machine.filled[0]])
    assert programs.ordered(after.events) == expected
    assert after.makespan_cycles == makespan
    assert after.retired.tolist() == machine.retired.tolist()
    if bits:
        assert programs.different_bits(machine, after.memories) == {}
    return machine


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_random_serial_programs(core, start):
    """The whole instruction table; serial execution keeps program order, so every bit counts."""
    for seed in range(start, start + 20):
        check_three_ways(core, programs.job(programs.serial_program(seed, SERIAL), seed, SERIAL))


EXITS, PRIVATE = [], []


@pytest.mark.parametrize("start", range(0, 160, 20))
def test_random_programs_whose_units_overlap(core, start):
    """Queues of one to eight places, one to four descriptors outstanding: stalls and back-pressure of every kind."""
    for seed in range(start, start + 20):
        rng = np.random.default_rng(seed)
        depth = dict.fromkeys(SMALL.queue_depth, int(rng.choice([1, 2, 4, 8])))
        if depth["dma_in"] > 4:
            depth |= {"dma_in": 4, "dma_out": 4}
        hardware = dataclasses.replace(SMALL, queue_depth=depth, dma_outstanding=int(rng.choice([1, 2, 4])))
        program, private = programs.decoupled_program(seed, hardware)
        machine = check_three_ways(core, programs.job(program, seed, hardware), bits=private)
        PRIVATE.append(private)
        EXITS.append(int(machine.filled[0]))


def test_random_programs_left_loops_early_and_were_compared_bit_by_bit():
    if not EXITS:
        pytest.skip("the random programs did not run")
    assert sum(count > 0 for count in EXITS) > len(EXITS) // 8
    assert sum(PRIVATE) > len(PRIVATE) // 4


def shipped(*overrides):
    experiment = compose_experiment("hardware=rtl_small", "compiler=plain", *overrides)
    assert experiment.model.checkpoint is not None
    tokenizer = load_tokenizer(experiment.model.checkpoint)
    assert tokenizer is not None
    prompts = [tokenizer.encode(PROMPT)]
    model, workload = experiment.model, experiment.workload
    program = compile_program(
        model, workload, experiment.hardware, experiment.numerics, [len(prompts[0])], experiment.compiler
    )
    image = build_image(program, model, workload, load_tensors(model), prompts)
    return simulator.Job(program=program, hardware=experiment.hardware, hbm=image), tokenizer


def check_shipped(core, *overrides):
    given, tokenizer = shipped(*overrides)
    machine = programs.executed(given)
    (after,) = simulator.run(core, [given])
    events = int(machine.retired.sum())
    expected, makespan = programs.times(given.program, given.hardware, machine.breaks[: machine.filled[0]], events)
    assert programs.ordered(after.events) == expected
    assert after.makespan_cycles == makespan
    assert programs.different_bits(machine, after.memories) == {}
    tokens = read_tokens(after.memories.hbm, given.program)[0, given.program.layout["prompt"] :]
    return tokenizer.decode(tokens.tolist())


def test_a_program_of_more_registers_than_the_core_has_is_refused():
    experiment = compose_experiment("hardware=rtl_small")
    program, _ = compiled(experiment)
    with pytest.raises(
        TripathError, match="the core has 192 registers with 4 strides each; compiler=plain needs fewer"
    ):
        check_program(program, experiment.hardware)


QUICK = ("workload.generation_length=16", "workload.steps=4")
ONE_BLOCK = ("workload.generation_length=8", "workload.steps=2")


def test_the_shipped_model_answers_on_the_core(core):
    assert check_shipped(core, *QUICK).startswith("12 + 30 = 42.")


def test_the_shipped_model_in_narrow_formats(core):
    check_shipped(core, *ONE_BLOCK, "numerics.weights=mxint4", "numerics.kv=mxint4", "numerics.activations=mxint4")


@pytest.mark.parametrize("overrides", [
    (*QUICK, "workload.stop_at_end=true", "workload.commit=threshold"), (*ONE_BLOCK, "workload.guidance=0.5"),
], ids=["stops", "guided"])  # fmt: skip
def test_other_decodings_run_on_the_core(core, overrides):
    assert check_shipped(core, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("workload.commit=threshold",), ("workload.cache=none",)], ids=" ".join)
def test_the_whole_answer(core, overrides):
    assert check_shipped(core, *overrides).startswith("12 + 30 = 42.")


def test_data_that_come_later_than_the_contract_says_are_a_fault(core, monkeypatch):
    given, _ = shipped(*QUICK)
    monkeypatch.setattr(simulator, "READ_DELAY", SMALL.hbm.read_latency_cycles)
    with pytest.raises(ProgramError, match="rtl: the core reports a fault"):
        simulator.run(core, [given], most_cycles=10_000)


def test_a_program_that_does_not_end_is_one_line(core):
    given, _ = shipped(*QUICK)
    with pytest.raises(ProgramError, match=r"rtl: the program does not end \(cycle 1000\)"):
        simulator.run(core, [given], most_cycles=1000)


@pytest.mark.parametrize(("changes", "message"), [
    ({"blen": 4}, "hardware.blen: the RTL's must be 8"),
    ({"accumulator_sets": 2}, "hardware.accumulator_sets: the RTL's must be 1"),
    ({"write_out_columns": 2}, "hardware.write_out_columns: the RTL's must be 1"),
    ({"fused_exponential": True}, "hardware.fused_exponential: the RTL's must be false"),
    ({"hbm": dataclasses.replace(SMALL.hbm, model="bursts")}, "hardware.hbm.model: the RTL's must be simple"),
    ({"frontend": dataclasses.replace(SMALL.frontend, dispatch_cycles=0)}, "hardware.frontend.dispatch_cycles: the RTL's must be 4"),
    ({"hbm": dataclasses.replace(SMALL.hbm, write_latency_cycles=24)}, "hardware.hbm.write_latency_cycles: the RTL's must be at least 40"),
])  # fmt: skip
def test_hardware_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(TripathError, match=message):
        package.package_text(dataclasses.replace(SMALL, **changes))


def test_a_latency_below_the_pipeline_is_refused():
    timing = {**SMALL.timing, "V_ADD_VV": dataclasses.replace(SMALL.timing["V_ADD_VV"], latency=10)}
    with pytest.raises(TripathError, match=r"hardware\.timing\.V_ADD_VV: the RTL needs a latency of 11 cycles, got 10"):
        package.package_text(dataclasses.replace(SMALL, timing=timing))


def test_formats_that_the_core_lacks_are_refused():
    text = "A_BASE register=0 base=0\nM_MM weights=0 acts=0 rows=1 cols=1 k=32 block=5 weight_format=4 act_format=2 block_stride=33"
    with pytest.raises(TripathError, match=r"rtl: M_MM needs formats mxint8 or mxint4 at the array \(instruction 1\)"):
        check_program(program_of(text), SMALL)
