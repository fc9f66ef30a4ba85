"""The training loop on a few small steps: the loss falls, and a resumed run gives the very same weights."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="training needs torch, which the package does not")

from safetensors.torch import load_file

from dllm_training import train as training
from dllm_training.corpus import ANSWER_TOKENS, build_tokenizer
from dllm_training.model import DiffusionTransformer

STATE = "state.safetensors"


def run(folder: Path, steps: int, *, schedule: int = 40, save_every: int = 20) -> list[float]:
    """Train to `steps` of a schedule of 40 steps of eight problems."""
    return training.train(
        steps=schedule, stop_at=steps, work=folder / "work", out=folder / "out", save_every=save_every, batch_size=8,
        judged_problems=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, 40)


def test_loss_falls(whole: tuple[Path, list[float]]) -> None:
    losses = whole[1]
    assert len(losses) == 40
    assert sum(losses[-8:]) < 0.85 * sum(losses[:8])


def test_a_resumed_run_gives_identical_weights(whole: tuple[Path, list[float]], tmp_path: Path) -> None:
    first = run(tmp_path, 17)
    second = run(tmp_path, 40)
    assert first + second == whole[1]
    for name in ("work/state.safetensors", "out/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_nothing_partial_is_left_and_the_average_is_what_is_exported(whole: tuple[Path, list[float]]) -> None:
    folder = whole[0]
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        STATE, "config.json", "tokenizer.json", "model.safetensors", "test.jsonl",
    }  # fmt: skip
    state, exported = load_file(folder / "work" / STATE), load_file(folder / "out" / "model.safetensors")
    assert int(state["step"]) == 40
    for name, value in exported.items():
        assert torch.equal(value, state[f"average.{name.removeprefix('model.transformer.')}"])
        assert not torch.equal(value, state[f"model.{name.removeprefix('model.transformer.')}"])


def test_prompts_are_never_masked_and_padding_is_invisible() -> None:
    tokenizer = build_tokenizer()
    spec = training.spec_of(tokenizer)
    batch = training.batch_of(tokenizer, 0, 6)
    tokens, visible = training.pack(tokenizer, batch, spec.eos_id)
    seen = []

    class Recorder(DiffusionTransformer):
        def forward(self, tokens: torch.Tensor, visible: torch.Tensor, last: int | None = None) -> torch.Tensor:
            seen.append(tokens)
            return super().forward(tokens, visible, last)

    model = Recorder(spec)
    training.loss_of(model, tokens, visible, spec.mask_id, torch.Generator().manual_seed(1))
    assert torch.equal(seen[0][:, :-ANSWER_TOKENS], tokens[:, :-ANSWER_TOKENS])
    assert (seen[0][:, -ANSWER_TOKENS:] == spec.mask_id).any()
    for row, problem in enumerate(batch):
        assert tokens[row][visible[row]].tolist()[:-ANSWER_TOKENS] == tokenizer.encode(problem.prompt).ids
    garbled = torch.where(visible, tokens, 7)
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, visible, last=ANSWER_TOKENS), model(garbled, visible, last=ANSWER_TOKENS), rtol=0, atol=0
        )  # fmt: skip


def test_learning_rate_warms_up_and_ends_at_a_hundredth() -> None:
    rates = [training.learning_rate(step, 10_000) for step in range(10_000)]
    assert max(rates) == pytest.approx(training.PEAK_RATE, rel=0.01)
    assert rates.index(max(rates)) < 2 * training.WARMUP_STEPS
    assert rates[-1] == pytest.approx(training.PEAK_RATE / 100, rel=0.01)
    restart = training.restart_of(10_000)
    first, second = rates[:restart], rates[restart:]
    assert first[-1] == pytest.approx(training.PEAK_RATE / 100, rel=0.01)
    assert max(second) == pytest.approx(
        training.PEAK_RATE / 3, rel=0.3
    )  # the warm-up takes a fifth of so short a cycle
    for cycle in (first[training.WARMUP_STEPS :], second[training.WARMUP_STEPS :]):
        assert all(one > other for one, other in itertools.pairwise(cycle))
