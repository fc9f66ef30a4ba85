"""The training loop on a few small steps: the loss falls, and a resumed run gives the very same weights."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="training needs torch, which the package does not")

from safetensors.torch import load_file

from dllm.operators import Mask
from dllm_training import train as training
from dllm_training.corpus import ANSWER_TOKENS, build_tokenizer
from dllm_training.evaluate import load
from dllm_training.model import DiffusionTransformer

STATE = "state.safetensors"


@dataclass(frozen=True)
class Whole:
    """A run of 40 steps that nothing interrupted."""

    recipe: training.Recipe
    folder: Path
    losses: list[float]


def run(recipe: training.Recipe, folder: Path, steps: int) -> list[float]:
    """Train to `steps` of a schedule of 40 steps of eight problems."""
    return training.train(
        recipe, steps=40, stop_at=steps, work=folder / "work", out=folder / "out", save_every=20, batch_size=8,
        judged_problems=0,
    )  # fmt: skip


@pytest.fixture(scope="module", params=training.RECIPES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    recipe, folder = training.RECIPES[request.param], tmp_path_factory.mktemp("whole")
    return Whole(recipe, folder, run(recipe, folder, 40))


def test_loss_falls(whole: Whole) -> None:
    assert len(whole.losses) == 40
    assert sum(whole.losses[-8:]) < 0.85 * sum(whole.losses[:8])


def test_a_resumed_run_gives_identical_weights(whole: Whole, tmp_path: Path) -> None:
    first = run(whole.recipe, tmp_path, 17)
    second = run(whole.recipe, tmp_path, 40)
    assert first + second == whole.losses
    for name in ("work/state.safetensors", "out/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_nothing_partial_is_left_and_the_average_is_what_is_exported(whole: Whole) -> None:
    folder = whole.folder
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        STATE, "config.json", "tokenizer.json", "model.safetensors", "test.jsonl",
    }  # fmt: skip
    state = load_file(folder / "work" / STATE)
    assert int(state["step"]) == 40
    model, tokenizer, _ = load(folder / "out")
    expected = whole.recipe.spec(tokenizer)
    assert replace(model.spec, name=expected.name, checkpoint=None) == expected
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"average.{name}"])
        assert not torch.equal(value, state[f"model.{name}"])


def test_the_block_causal_checkpoint_has_the_names_of_sdar(tmp_path: Path) -> None:
    recipe, tokenizer = training.RECIPES["block_causal"], build_tokenizer()
    training.export(tmp_path, recipe, tokenizer, recipe.model(tokenizer))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= names
    assert {f"model.layers.3.self_attn.{each}.weight" for each in ("q_norm", "k_norm", "q_proj", "o_proj")} <= names
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["block_size"], config["mask_token_id"]) == ("sdar", 8, 1)


@pytest.mark.parametrize("recipe", training.RECIPES.values(), ids=list(training.RECIPES))
def test_only_answers_are_masked_and_padding_is_invisible(recipe: training.Recipe) -> None:
    tokenizer = build_tokenizer()
    batch, model = training.batch_of(tokenizer, 0, 6), recipe.model(tokenizer)
    packed = training.pack(tokenizer, batch, model.spec.eos_id, recipe)
    for row, problem in enumerate(batch):
        ids = packed.tokens[row][packed.visible[row]].tolist()
        prompt, answer = (tokenizer.encode(text).ids for text in (problem.prompt, problem.answer))
        assert ids[: len(prompt) + len(answer)] == prompt + answer
        assert set(ids[len(prompt) + len(answer) :]) == {model.spec.eos_id}
        assert packed.answer[row].sum() == len(ids) - len(prompt) >= ANSWER_TOKENS
    seen: list[torch.Tensor] = []

    class Recorder(DiffusionTransformer):
        def forward(
            self, tokens: torch.Tensor, visible: torch.Tensor, last: int | None = None,
            noisy: torch.Tensor | None = None,
        ) -> torch.Tensor:  # fmt: skip
            seen.extend([tokens] if noisy is None else [torch.cat([tokens[:, : packed.begin], noisy], 1), tokens])
            return super().forward(tokens, visible, last, noisy)

    training.loss_of(Recorder(model.spec), packed, recipe, torch.Generator().manual_seed(1))
    masked = seen[0] == model.spec.mask_id
    assert torch.equal(torch.where(masked, packed.tokens, seen[0]), packed.tokens)
    assert masked.any()
    assert not masked[~packed.answer].any()
    for clean in seen[1:]:
        assert torch.equal(clean, packed.tokens)
    garbled = torch.where(packed.visible, packed.tokens, 7)
    with torch.no_grad():
        given, other = (model(tokens, packed.visible, last=ANSWER_TOKENS) for tokens in (packed.tokens, garbled))
    torch.testing.assert_close(given, other, rtol=0, atol=0)


def test_a_noisy_block_sees_itself_and_what_is_clean_before_it() -> None:
    """The doubled sequence gives each block the logits that it has alone behind its clean prefix."""
    recipe, tokenizer = training.RECIPES["block_causal"], build_tokenizer()
    model = recipe.model(tokenizer)
    packed = training.pack(tokenizer, training.batch_of(tokenizer, 0, 6), model.spec.eos_id, recipe)
    target, block = packed.tokens[:, packed.begin :], recipe.diffused
    noise = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    noisy = torch.where(noise, model.spec.mask_id, target)
    with torch.no_grad():
        together = model(packed.tokens, packed.visible, last=target.shape[1], noisy=noisy)
        for start in range(0, target.shape[1], block):
            clean = packed.tokens[:, : packed.begin + start]
            tokens = torch.cat([clean, noisy[:, start : start + block]], 1)
            alone = model(tokens, packed.visible[:, : tokens.shape[1]], last=block)
            torch.testing.assert_close(together[:, start : start + block], alone)


@pytest.mark.parametrize("mask", list(Mask))
def test_a_token_moves_the_rows_that_see_it_and_no_other(mask: Mask) -> None:
    spec = replace(training.RECIPES["full"].spec(build_tokenizer()), attention_mask=mask.value)
    model, tokens = DiffusionTransformer(spec, 8), torch.arange(24)[None]
    visible = torch.ones(1, 24, dtype=torch.bool)
    with torch.no_grad():
        before = model(tokens, visible)
        for place in (0, 7, 8, 13):
            moved = (model(tokens.index_fill(1, torch.tensor([place]), 99), visible) != before).any(-1)[0]
            first = {Mask.FULL: 0, Mask.BLOCK_CAUSAL: place // 8 * 8, Mask.CAUSAL: place}[mask]
            assert moved.tolist() == [row >= first for row in range(24)]


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
