"""Problems and scores on the shipped checkpoint."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from accuracy.quality import simulate
from accuracy.quality.decode import decode, layout
from accuracy.quality.model import StudyModel
from accuracy.quality.problems import Problem, batches, judge_of, load_problems, score
from dllm.decoding import generate
from dllm.folder import model_of
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from npu.sources import ROOT
from tests.conftest import CHECKPOINT


def model_in(folder):
    """The shipped model, its checkpoint in another folder."""
    return dataclasses.replace(model_of(CHECKPOINT), checkpoint=str(folder))


def test_a_checkpoint_without_problems_is_named(tmp_path):
    with pytest.raises(TripathError, match=r"model\.checkpoint: cannot read .*test\.jsonl \(No such file"):
        load_problems(model_in(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"prompt": "a"}', "result is missing"), ('{"result": 1}', "prompt is missing"), ("[]", "prompt is missing"),
     ('{"prompt": 1, "result": 1}', "prompt must be a text, got 1"), ('{"prompt": "a", "result": true}', "result must be an integer"),
     ('{"prompt": "a", "result": "1"}', "result must be an integer, got '1'"), ("{", "is not JSON"), ("[" * 10**5, "is not JSON")],
)  # fmt: skip
def test_a_row_that_is_no_problem_is_named_by_file_and_line(tmp_path, line, message):
    (tmp_path / "tokenizer.json").write_text((CHECKPOINT / "tokenizer.json").read_text())
    (tmp_path / "test.jsonl").write_text(f'{{"prompt": "a", "result": 1}}\n{line}\n')
    with pytest.raises(TripathError, match=r"test\.jsonl: line 2: ") as error:
        load_problems(model_in(tmp_path))
    assert message in str(error.value)


def test_a_judge_of_ones_own_sees_every_text_and_its_result(tmp_path, default_experiment, monkeypatch):
    """Of the example: working that is shown counts. A judge that wants another text finds none."""
    folder = ROOT / "examples" / "quality"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "never.py").write_text("def solved(text, result):\n    return text == 5\n")
    workload = Workload(generation_length=32, block_length=8, steps=8)
    solved = [
        simulate(
            model=default_experiment.model, workload=workload, numerics=default_experiment.numerics,
            dataset=str(folder / "problems.jsonl"), scoring=scoring, problems=8, compared=2,
        ).result.metrics["solved"]
        for scoring in ("shows_work", "never")
    ]  # fmt: skip
    assert solved[0] >= 6
    assert solved[1] == 0
    with pytest.raises(TripathError, match=r"line 1: result must be an integer, got '3 \+ 3 = 6'"):
        load_problems(default_experiment.model, str(folder / "problems.jsonl"))
    for module in ("missing_module", "json"):
        with pytest.raises(TripathError, match=rf"simulator\.quality\.scoring: no function solved in {module}"):
            judge_of(workload, module)


def test_a_dataset_of_ones_own_is_scored(tmp_path, default_experiment):
    """The first of the shipped problems, once as they are and once with other results: all that were right are wrong."""
    workload = Workload(generation_length=32, block_length=8, steps=8)
    rows = [json.loads(line) for line in (CHECKPOINT / "test.jsonl").read_text().splitlines()[:48]]
    solved = []
    for name, more in (("same", 0), ("other", 1)):
        file = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"prompt": row["prompt"], "result": row["result"] + more}) for row in rows]
        file.write_text("\n".join(lines))
        found = simulate(
            model=default_experiment.model, workload=workload, numerics=default_experiment.numerics, dataset=str(file),
            problems=8, compared=2,
        )  # fmt: skip
        solved.append(found.result.metrics["solved"])
    assert solved[0] > 4
    assert solved[1] == 0
    with pytest.raises(TripathError, match=r"simulator\.quality\.dataset: cannot read .*missing\.jsonl"):
        load_problems(default_experiment.model, str(tmp_path / "missing.jsonl"))


def test_fp32_equals_the_numpy_reference_on_the_shipped_model(tensors, default_experiment):
    spec = default_experiment.model
    prompts = [problem.prompt for problem in load_problems(spec)[:4]]
    workload = Workload(generation_length=16, block_length=8, steps=16)
    model, reference = StudyModel(spec, tensors), ReferenceModel(spec, tensors)
    views = []
    decode(model, prompts, workload, observe=views.append)
    _, first = layout(prompts, workload, model)
    for row, prompt in enumerate(prompts):
        (loop,) = workload.step_loops(0)
        canvases = {(view.block, view.step): (view.canvas[row, first[row] :].numpy(), loop) for view in views}
        theirs = generate(
            reference, prompt, workload, force=lambda block, step, known=canvases: known.get((block, step))
        )
        for view, step in zip(views, theirs.steps, strict=True):
            np.testing.assert_allclose(view.logits[row], step.logits, atol=2e-3)


def test_scores_do_not_depend_on_the_batch(tensors, default_experiment):
    problems, model = load_problems(default_experiment.model)[:12], StudyModel(default_experiment.model, tensors)
    workload = Workload(generation_length=32, block_length=8, steps=8, commit="threshold")
    together, trips = score(model, problems, workload, batch_size=12)
    apart, others = score(model, problems, workload, batch_size=5)
    assert together == apart
    assert torch.equal(trips, others)
    assert (trips >= 1).all()


def test_batches_hold_each_problem_once_by_length():
    problems = [Problem(prompt=[0] * n, result=0) for n in (9, 2, 7, 7, 1)]
    assert batches(problems, 2) == [[4, 1], [2, 3], [0]]


def test_without_torch_one_line_says_what_to_install():
    program = "import sys; sys.modules['torch'] = None\ntry:\n    import accuracy.quality\nexcept ValueError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "accuracy.quality: torch is not installed; pip install 'tripath[study]'\n"


def test_the_main_paths_do_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None\nimport tripath.command.cli, accuracy.simulator, cycle, analytical"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
