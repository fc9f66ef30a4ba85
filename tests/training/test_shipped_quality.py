"""Quality of the shipped checkpoints, and that the batched torch decoding is what other decoders decode."""

import math

import pytest

torch = pytest.importorskip("torch", reason="batched evaluation needs torch, which the package does not")

from tokenizers import Tokenizer  # noqa: E402  (after the skip)

from dllm.reference import ReferenceModel, generate  # noqa: E402  (after the skip)
from dllm.workload import Workload  # noqa: E402
from dllm_training.corpus import ANSWER_TOKENS, Problem  # noqa: E402
from dllm_training.evaluate import (  # noqa: E402
    BLOCK,
    CHECKPOINT,
    Decoded,
    decode,
    final_number,
    load,
    score,
    wilson_interval,
)  # fmt: skip
from dllm_training.model import DiffusionTransformer  # noqa: E402
from dllm_training.train import RECIPES  # noqa: E402

PROBLEMS, FLOOR = 300, 0.90


Loaded = tuple[DiffusionTransformer, Tokenizer, list[Problem]]


@pytest.fixture(scope="module")
def shipped() -> Loaded:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def decoded(shipped: Loaded) -> Decoded:
    model, tokenizer, test = shipped
    return decode(model, tokenizer, test[:PROBLEMS], steps=ANSWER_TOKENS)


@pytest.fixture(scope="module")
def block_causal() -> Loaded:
    return load(RECIPES["block_causal"].out)


def right_of(test: list[Problem], answers: list[str]) -> int:
    return sum(s.result_right for s in score(test, answers).values())


def test_exact_match_of_the_shipped_checkpoint(shipped: Loaded, decoded: Decoded) -> None:
    assert right_of(shipped[2][:PROBLEMS], decoded.answers) / PROBLEMS >= FLOOR
    assert decoded.steps == [ANSWER_TOKENS] * PROBLEMS


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_exact_match_of_the_block_causal_checkpoint(block_causal: Loaded, threshold: float | None) -> None:
    """One token a step, and by threshold; a sequence takes no step behind the block of its end."""
    model, tokenizer, test = block_causal[0], block_causal[1], block_causal[2][:PROBLEMS]
    made = decode(model, tokenizer, test, steps=ANSWER_TOKENS, threshold=threshold)
    assert right_of(test, made.answers) / PROBLEMS >= FLOOR
    for problem, answer, steps in zip(test, made.answers, made.steps, strict=True):
        tail = len(tokenizer.encode(problem.prompt).ids) % BLOCK
        blocks = math.ceil((tail + len(tokenizer.encode(answer).ids) + 1) / BLOCK)
        assert blocks <= steps <= blocks * BLOCK - tail
        assert threshold is not None or steps == blocks * BLOCK - tail


def test_a_block_causal_batch_gives_each_prompt_what_it_gets_alone(block_causal: Loaded) -> None:
    model, tokenizer, test = block_causal[0], block_causal[1], block_causal[2][:6]
    together = decode(model, tokenizer, test, steps=ANSWER_TOKENS)
    alone = [decode(model, tokenizer, [problem], steps=ANSWER_TOKENS) for problem in test]
    assert together == Decoded(answers=[d.answers[0] for d in alone], steps=[d.steps[0] for d in alone])


def test_both_checkpoints_are_judged_by_the_same_problems() -> None:
    for name in ("test.jsonl", "tokenizer.json"):
        assert (CHECKPOINT / name).read_bytes() == (RECIPES["block_causal"].out / name).read_bytes()


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
    assert final_number("no number") is None


def test_wilson_interval_against_published_values() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662, 15 of 148 gives 0.0624 to 0.1605."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
