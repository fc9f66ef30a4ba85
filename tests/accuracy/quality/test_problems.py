"""Problems and scores on the shipped checkpoint."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from accuracy.quality.decode import decode, layout
from accuracy.quality.model import StudyModel
from accuracy.quality.problems import Problem, batches, load_problems, score
from dllm.reference import ReferenceModel, generate
from dllm.workload import Workload
from npu.errors import TripathError
from tests.conftest import CHECKPOINT


def test_a_checkpoint_without_problems_is_named(tmp_path):
    with pytest.raises(TripathError, match=r"model\.checkpoint: no test\.jsonl"):
        load_problems(tmp_path)


def test_fp32_equals_the_numpy_reference_on_the_shipped_model(tensors, default_experiment):
    spec, prompts = default_experiment.model, [problem.prompt for problem in load_problems(CHECKPOINT)[:4]]
    workload = Workload(generation_length=16, block_length=8, steps=16)
    model, reference = StudyModel(spec, tensors), ReferenceModel(spec, tensors)
    views = []
    decode(model, prompts, workload, observe=views.append)
    _, first = layout(prompts, workload, model)
    for row, prompt in enumerate(prompts):
        canvases = {(view.block, view.step): view.canvas[row, first[row] :].numpy() for view in views}
        theirs = generate(
            reference, prompt, workload, force=lambda block, step, known=canvases: known.get((block, step))
        )
        for view, step in zip(views, theirs.steps, strict=True):
            np.testing.assert_allclose(view.logits[row], step.logits, atol=2e-3)


def test_scores_do_not_depend_on_the_batch(tensors, default_experiment):
    problems, model = load_problems(CHECKPOINT)[:12], StudyModel(default_experiment.model, tensors)
    workload = Workload(generation_length=32, block_length=8, steps=8, commit="threshold")
    together, trips = score(model, problems, workload, CHECKPOINT, batch_size=12)
    apart, others = score(model, problems, workload, CHECKPOINT, batch_size=5)
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
