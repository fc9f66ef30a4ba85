"""Answers through the compiled program: MXINT8 on the machine solves as many held-out problems as the FP32 reference."""

import json
import re

import pytest

from accuracy.image import read_tokens
from accuracy.quality.decode import decode
from accuracy.quality.model import StudyModel
from accuracy.simulator import execute
from npu_compiler import compile_program
from tests.conftest import CHECKPOINT, compose_experiment

BATCH = 20


def solved(text, problem):
    found = re.search(r"####\s*(-?\d+)", text)
    return found is not None and int(found[1]) == problem["result"]


@pytest.mark.parametrize("count", [BATCH, pytest.param(100, marks=pytest.mark.slow)])
def test_mxint8_on_the_machine_is_within_two_points_of_the_reference(count, tensors, tokenizer):
    lines = (CHECKPOINT / "test.jsonl").read_text().splitlines()
    problems = [json.loads(line) for line in lines[:count]]
    experiment = compose_experiment(f"workload.batch={BATCH}", "hardware.sram.vector_bytes=4000000", "hardware.sram.fp_bytes=65536",
                                    "hardware.sram.int_bytes=65536")  # fmt: skip
    x, right, expected = experiment, 0, 0
    reference = StudyModel(x.model, tensors)  # FP32, batched
    for first in range(0, count, BATCH):
        group = problems[first : first + BATCH]
        prompts = [tokenizer.encode(problem["prompt"]) for problem in group]
        program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(p) for p in prompts])
        machine, _ = execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=prompts)
        generated = read_tokens(machine.hbm, program)[:, program.layout["prompt"] :]
        answers = decode(reference, prompts, x.workload).token_ids.tolist()
        for problem, ids, answer in zip(group, generated.tolist(), answers, strict=True):
            right += solved(tokenizer.decode(ids), problem)
            expected += solved(tokenizer.decode(answer), problem)
    # How good the reference itself is, tests/training/test_shipped_quality.py states; here both decode with the dual cache.
    assert right >= expected - 0.02 * count
