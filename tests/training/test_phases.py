"""Phases in torch for owners of a GPU: a refine step is the prefill's last rows, and the file is one that measurements take."""

import torch

from dllm.folder import model_of
from dllm_training.phases import Phases, timed
from tests.conftest import CHECKPOINT
from tripath.command.measure_torch import main
from tripath.validation.measurements import read_measurements

SIZES = {"batch": 2, "canvas": 48, "block": 8}


def test_a_refine_step_gives_what_the_prefill_gave_for_its_rows():
    phases = Phases(model_of(CHECKPOINT), **SIZES, device="cpu", dtype="float32")
    whole = phases.forward(SIZES["canvas"])
    torch.testing.assert_close(phases.forward(SIZES["block"]), whole[:, -SIZES["block"] :], atol=1e-5, rtol=1e-4)


def test_a_prefill_is_the_forward_of_the_model_that_is_trained():
    phases = Phases(model_of(CHECKPOINT), **SIZES, device="cpu", dtype="float32")
    phases.hidden = phases.forward(SIZES["canvas"])[:, -SIZES["block"] :]
    with torch.inference_mode():
        expected = phases.model(phases.tokens, torch.ones(2, 48, dtype=torch.bool), last=SIZES["block"])
    torch.testing.assert_close(phases.lm_head(), expected, atol=1e-5, rtol=1e-4)


def test_the_confidence_is_the_probability_of_the_arg_max():
    phases = Phases(model_of(CHECKPOINT), **SIZES, device="cpu", dtype="bfloat16")
    chosen, confidence = phases.sampling()
    share = phases.logits.double().softmax(-1)
    assert torch.equal(confidence, share.amax(-1))
    assert torch.equal(phases.logits.gather(-1, chosen[..., None])[..., 0], phases.logits.amax(-1))


def test_every_execution_is_timed():
    calls = []
    assert len(timed(lambda: calls.append(1), "cpu", 5)) == 5
    assert len(calls) > 5


def test_the_file_is_one_of_measurements(tmp_path, capsys):
    file = tmp_path / "measured.csv"
    assert main(["--device", "cpu", "--name", "a100", "--model", "wordmath", "--canvas", "32", "--block", "8", "--dtype", "float32",
                 "--repeats", "2", "--out", str(file)]) == 0  # fmt: skip
    rows = read_measurements(str(file))
    assert [row.phase for row in rows] == ["prefill", "refine", "lm_head", "sampling", "softmax", "norm"]
    assert {(row.device, row.model, row.canvas, row.block) for row in rows} == {("a100", "wordmath", 32, 8)}
    assert f"validation.measurements={file}" in capsys.readouterr().out


def test_bad_sizes_and_devices_are_one_line(capsys):
    for given, said in ((["--device", "cpu", "--block", "9", "--canvas", "8"], "--block: 9 exceeds --canvas 8"),
                        (["--device", "cuda", "--model", "wordmath"], "--device: torch finds no cuda here"),
                        (["--device", "cpu", "--repeats", "0"], "--repeats: must be at least 1")):  # fmt: skip
        if "cuda" in given and torch.cuda.is_available():
            continue
        assert main(given) == 2
        assert said in capsys.readouterr().err
