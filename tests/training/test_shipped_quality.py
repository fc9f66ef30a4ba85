"""Quality of the shipped checkpoint, and that its batched torch decoding is what the NumPy reference decodes."""

import pytest

torch = pytest.importorskip("torch", reason="batched evaluation needs torch, which the package does not")

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

PROBLEMS, FLOOR = 300, 0.90


@pytest.fixture(scope="module")
def shipped() -> tuple:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def decoded(shipped: tuple) -> Decoded:
    model, tokenizer, test = shipped
    return decode(model, tokenizer, test[:PROBLEMS], steps=ANSWER_TOKENS)


def test_exact_match_of_the_shipped_checkpoint(shipped: tuple, decoded: Decoded) -> None:
    scores = score(shipped[2][:PROBLEMS], decoded.answers)
    right = sum(s.result_right for s in scores.values())
    assert right / PROBLEMS >= FLOOR, scores
    assert decoded.steps == [ANSWER_TOKENS] * PROBLEMS


def test_the_reference_decodes_the_same_text(shipped: tuple, decoded: Decoded) -> None:
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


def test_threshold_decoding_takes_fewer_steps(shipped: tuple) -> None:
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
