"""The study's files, its resumption, its command line; problems and scores on the shipped checkpoint."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from accuracy.reference import ReferenceModel, generate
from accuracy.study import kv
from accuracy.study.decode import Policy, decode, layout
from accuracy.study.model import Arithmetic, StudyModel
from accuracy.study.problems import CHECKPOINT, Problem, batches, load_problems, score, spec_of
from accuracy.study.table import COLUMNS, markdown
from tests.conftest import compose_experiment
from tripath.errors import TripathError
from tripath.workload import Workload

SHORT = Policy(generation_length=8, block_length=8, steps=2)


def rows(formats=("mxint4",), schemes=("plain", "static"), planted=(1.0, 8.0), problems=6):
    arithmetic = Arithmetic(weights="mxint8", activations="mxint8", logits="mxint8", lanes="bf16", sampling="bf16")
    return kv.configurations(
        formats, schemes, planted, arithmetic=arithmetic, policy=SHORT, problems=problems, probed=4
    )


def test_a_study_leaves_a_table_and_two_pictures_with_every_metric(tmp_path):
    results = kv.study(rows(), tmp_path)
    names = [
        f"{name}{planted}.json"
        for planted in ("", "-planted8")
        for name in ("bf16-plain", "mxint4-plain", "mxint4-static")
    ]
    assert {"kv.csv", "kv.json", "exact_match.png", "logit_kl.png", *names} == {
        file.name for file in tmp_path.iterdir()
    }
    with (tmp_path / "kv.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(results) == len(json.loads((tmp_path / "kv.json").read_text())) == 6
    for row, result in zip(table, results, strict=True):
        for metric in COLUMNS.keys() - {"drift_blocks_k", "drift_blocks_v"}:  # one block has no block before it
            assert float(row[metric]) == pytest.approx(result[metric])
        assert result["exact_match_low"] <= result["exact_match"] <= result["exact_match_high"]
    for picture in ("exact_match.png", "logit_kl.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    by_name = {(row["format"], row["planted"]): row["logit_kl"] for row in results if row["scheme"] == "plain"}
    assert by_name["bf16", 1.0] < by_name["mxint4", 1.0]
    assert markdown(results).count("\n") == 8


def test_what_is_measured_is_not_run_again_until_an_input_changes(tmp_path, monkeypatch):
    chosen = rows(schemes=("plain",), planted=(1.0,))
    first = kv.study(chosen, tmp_path)
    (tmp_path / "mxint4-plain.part").write_text("{")  # of an interrupted run
    calls = []
    original = kv.run
    monkeypatch.setattr(kv, "run", lambda row, *a, **k: calls.append(row.name) or original(row, *a, **k))
    assert kv.study(chosen, tmp_path) == first
    assert not calls
    kv.study(rows(schemes=("plain",), planted=(1.0,), problems=5), tmp_path)
    assert calls == ["bf16-plain", "mxint4-plain"]
    calls.clear()
    monkeypatch.setattr(kv, "checkpoint_digest", lambda folder: "another checkpoint")
    kv.study(chosen[:1], tmp_path)
    assert calls == ["bf16-plain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "mxint5"], "study.formats: unknown format 'mxint5'"),
        (["--schemes", "magic"], "study.schemes: unknown scheme 'magic'"),
        (["--problems", "600"], "study.problems: 600 exceed the 560"),
        (["--cache", "all"], "study.cache: unknown 'all'"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments, message, tmp_path, capsys):
    assert kv.main([*arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_command_prints_the_table(tmp_path, capsys):
    assert (
        kv.main(
            ["--out", str(tmp_path), "--formats", "mxint8", "--schemes", "plain", "--problems", "4", "--probed", "2"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "mxint8" in printed
    assert "KV bytes" in printed


def test_the_shape_of_a_checkpoint_is_that_of_the_model_group(tmp_path):
    model = compose_experiment().model
    spec = spec_of(CHECKPOINT)
    for field in (
        "layers",
        "hidden",
        "heads",
        "kv_heads",
        "head_dim",
        "ffn",
        "vocab",
        "rope_theta",
        "rms_eps",
        "mask_id",
        "eos_id",
    ):
        assert getattr(spec, field) == getattr(model, field)
    with pytest.raises(TripathError, match=r"model\.checkpoint: config\.json"):
        spec_of(tmp_path)
    with pytest.raises(TripathError, match=r"model\.checkpoint: no test\.jsonl"):
        load_problems(tmp_path)


def test_fp32_equals_the_numpy_reference_on_the_shipped_model(tensors):
    spec, prompts = spec_of(CHECKPOINT), [problem.prompt for problem in load_problems()[:4]]
    workload = Workload(generation_length=16, block_length=8, steps=16)
    policy, model, reference = Policy.of(workload), StudyModel(spec, tensors), ReferenceModel(spec, tensors)
    views = []
    decode(model, prompts, policy, observe=views.append)
    _, first = layout(prompts, policy, model)
    for row, prompt in enumerate(prompts):
        canvases = {(view.block, view.step): view.canvas[row, first[row] :].numpy() for view in views}
        theirs = generate(
            reference, prompt, workload, force=lambda block, step, known=canvases: known.get((block, step))
        )
        for view, step in zip(views, theirs.steps, strict=True):
            np.testing.assert_allclose(view.logits[row], step.logits, atol=2e-3)


def test_scores_do_not_depend_on_the_batch(tensors):
    problems, model = load_problems()[:12], StudyModel(spec_of(CHECKPOINT), tensors)
    policy = Policy(steps=8, commit="threshold")
    together, trips = score(model, problems, policy, batch_size=12)
    apart, others = score(model, problems, policy, batch_size=5)
    assert together == apart
    assert torch.equal(trips, others)
    assert (trips >= 1).all()


def test_batches_hold_each_problem_once_by_length():
    problems = [Problem(prompt=[0] * n, result=0) for n in (9, 2, 7, 7, 1)]
    assert batches(problems, 2) == [[4, 1], [2, 3], [0]]


def test_without_torch_one_line_says_what_to_install():
    program = "import sys; sys.modules['torch'] = None\ntry:\n    import accuracy.study\nexcept ValueError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "accuracy.study: torch is not installed; pip install 'tripath[study]'\n"


def test_the_main_paths_do_without_torch():
    program = "import sys; sys.modules['torch'] = None\nimport tripath.cli, accuracy.simulator, cycle, analytical"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
