"""Quality of the shipped checkpoints, and that the batched torch decoding is what other decoders decode."""

import math

import pytest

torch = pytest.importorskip("torch", reason="batched evaluation needs torch, which the package does not")

from tokenizers import Tokenizer  # noqa: E402  (after the skip)

from dllm.decoding import generate  # noqa: E402  (after the skip)
from dllm.reference import ReferenceModel  # noqa: E402
from dllm.workload import Workload  # noqa: E402
from dllm_training.corpus import ANSWER_TOKENS, Problem  # noqa: E402
from dllm_training.evaluate import (  # noqa: E402
    BLOCK,
    CHECKPOINT,
    Decoded,
    decode,
    load,
    score,
)  # fmt: skip
from dllm_training.model import DiffusionTransformer  # noqa: E402
from dllm_training.train import RECIPES  # noqa: E402

PROBLEMS, FLOOR = 100, 0.90


Loaded = tuple[DiffusionTransformer, Tokenizer, list[Problem]]


@pytest.fixture(scope="module")
def shipped() -> Loaded:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def decoded(shipped: Loaded) -> Decoded:
    model, tokenizer, test = shipped
    return decode(model, tokenizer, test[:PROBLEMS], steps=ANSWER_TOKENS)


@pytest.fixture(scope="module", params=["block_causal", "experts"])
def by_block(request: pytest.FixtureRequest) -> Loaded:
    return load(RECIPES[request.param].out)


def right_of(test: list[Problem], answers: list[str]) -> int:
    return sum(s.result_right for s in score(test, answers).values())


def test_exact_match_of_the_shipped_checkpoint(shipped: Loaded, decoded: Decoded) -> None:
    assert right_of(shipped[2][:PROBLEMS], decoded.answers) / PROBLEMS >= FLOOR
    assert decoded.steps == [ANSWER_TOKENS] * PROBLEMS


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_exact_match_of_the_block_causal_checkpoints(by_block: Loaded, threshold: float | None) -> None:
    """One token a step, and by threshold; a sequence takes no step behind the block of its end."""
    model, tokenizer, test = by_block[0], by_block[1], by_block[2][:PROBLEMS]
    made = decode(model, tokenizer, test, steps=ANSWER_TOKENS, threshold=threshold)
    assert right_of(test, made.answers) / PROBLEMS >= FLOOR
    for problem, answer, steps in zip(test, made.answers, made.steps, strict=True):
        tail = len(tokenizer.encode(problem.prompt).ids) % BLOCK
        blocks = math.ceil((tail + len(tokenizer.encode(answer).ids) + 1) / BLOCK)
        assert blocks <= steps <= blocks * BLOCK - tail
        assert threshold is not None or steps == blocks * BLOCK - tail


def test_a_block_causal_batch_gives_each_prompt_what_it_gets_alone(by_block: Loaded) -> None:
    model, tokenizer, test = by_block[0], by_block[1], by_block[2][:6]
    together = decode(model, tokenizer, test, steps=ANSWER_TOKENS)
    alone = [decode(model, tokenizer, [problem], steps=ANSWER_TOKENS) for problem in test]
    assert together == Decoded(answers=[d.answers[0] for d in alone], steps=[d.steps[0] for d in alone])


@pytest.mark.parametrize("recipe", ["block_causal", "experts"])
def test_all_checkpoints_are_judged_by_the_same_problems(recipe: str) -> None:
    for name in ("test.jsonl", "tokenizer.json"):
        assert (CHECKPOINT / name).read_bytes() == (RECIPES[recipe].out / name).read_bytes()


def test_the_reference_decodes_the_same_text(shipped: Loaded, decoded: Decoded) -> None:
    model, tokenizer, test = shipped
    reference = ReferenceModel(model.spec, {name: value.numpy() for name, value in model.named_tensors().items()})
    for problem, answer in list(zip(test, decoded.answers, strict=False))[:12]:
        prompt = tokenizer.encode(problem.prompt).ids
        workload = Workload(
            generation_length=ANSWER_TOKENS, block_length=BLOCK, steps=ANSWER_TOKENS, cache="none", commit="quota"
        )  # fmt: skip
        ids = generate(reference, prompt, workload).token_ids
        end = ids.index(model.spec.eos_id) if model.spec.eos_id in ids else len(ids)
        assert tokenizer.decode(ids[:end]) == answer


def test_threshold_decoding_takes_fewer_steps(shipped: Loaded) -> None:
    model, tokenizer, test = shipped
    quick = decode(model, tokenizer, test[:64], steps=ANSWER_TOKENS, threshold=0.9)
    assert min(quick.steps) >= ANSWER_TOKENS // BLOCK
    assert sum(quick.steps) / 64 < ANSWER_TOKENS * 0.75


def test_score_separates_results_from_whole_answers() -> None:
    problem = Problem(prompt="?", answer="2 + 3 = 5. #### 5", result=5, kind="add")
    scores = score([problem] * 3, ["2 + 3 = 5. #### 5", "3 + 2 = 5. #### 5", "2 + 3 = 6. #### 6"])["add"]
    assert (scores.problems, scores.result_right, scores.answer_equal) == (3, 2, 1)
