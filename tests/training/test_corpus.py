"""Laws of the generated corpus and of its tokenizer."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dllm_training.corpus import (
    ANSWER_TOKENS,
    EOS,
    MASK,
    UNKNOWN,
    VOCABULARY,
    Problem,
    build_tokenizer,
    problems,
    sample_problem,
)  # fmt: skip

FOLDER = Path(__file__).parents[2] / "accuracy" / "checkpoints" / "wordmath"
SAMPLES = 20_000


@pytest.fixture(scope="module")
def training() -> list[Problem]:
    return list(itertools.islice(problems(11, held_out=False), SAMPLES))


@pytest.fixture(scope="module")
def shipped() -> list[Problem]:
    return [Problem(**json.loads(line)) for line in (FOLDER / "test.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def evaluate_text(answer: str) -> int:
    """Check every equation of an answer from its text alone, and that steps chain; the stated result."""
    body, _, result = answer.partition("#### ")
    previous = None
    for line in body.strip().split(". "):
        match = re.fullmatch(r"(\d+) ([+*-]) (\d+) = (\d+)\.?", line)
        assert match, answer
        left, right, value = int(match[1]), int(match[3]), int(match[4])
        assert value == {"+": left + right, "-": left - right, "*": left * right}[match[2]], answer
        assert previous in (None, left), answer
        previous = value
    assert int(result) == previous, answer
    return int(result)


def test_answers_are_arithmetically_right(training: list[Problem], shipped: list[Problem]) -> None:
    for problem in training + shipped:
        assert evaluate_text(problem.answer) == problem.result >= 0


def test_operands_of_the_answer_are_those_of_the_prompt(training: list[Problem], shipped: list[Problem]) -> None:
    for problem in training + shipped:
        told = re.findall(r"\d+", problem.prompt)
        worked = re.findall(r"(\d+) [+*-] (\d+)", problem.answer)
        assert told == [worked[0][0], *(right for _, right in worked)]


def test_kind_names_the_operations(training: list[Problem]) -> None:
    symbols = {"add": "+", "sub": "-", "mul": "*"}
    for problem in training:
        assert re.findall(r" ([+*-]) ", problem.answer) == [symbols[part] for part in problem.kind.split("-")]


def test_kinds_are_as_likely_as_another_but_for_those_of_which_more_is_asked() -> None:
    for more, share in (((), 1 / 7), (("mul",) * 3, 4 / 10)):
        kinds = [p.kind for p in itertools.islice(problems(5, held_out=False, more=more), 4_000)]
        assert abs(kinds.count("mul") / len(kinds) - share) < 4 * (share * (1 - share) / len(kinds)) ** 0.5


def test_split_is_disjoint_by_text_alone(training: list[Problem], shipped: list[Problem]) -> None:
    assert all(problem.held_out for problem in shipped)
    assert not any(problem.held_out for problem in training)
    assert not {problem.prompt for problem in training} & {problem.prompt for problem in shipped}


def test_shipped_test_set_covers_every_kind(training: list[Problem], shipped: list[Problem]) -> None:
    assert len({problem.prompt for problem in shipped}) >= 512
    counts = [sum(p.kind == kind for p in shipped) for kind in {p.kind for p in training}]
    assert min(counts) >= 50


def test_answers_leave_room_for_an_end(training: list[Problem], shipped: list[Problem], tokenizer: Tokenizer) -> None:
    for problem in training + shipped:
        assert len(tokenizer.encode(problem.answer).ids) < ANSWER_TOKENS
        assert len(tokenizer.encode(problem.prompt).ids) <= 48


def test_tokenizer_round_trip(training: list[Problem], shipped: list[Problem], tokenizer: Tokenizer) -> None:
    unknown = tokenizer.token_to_id(UNKNOWN)
    for problem in training + shipped:
        for text in (problem.prompt, problem.answer):
            ids = tokenizer.encode(text).ids
            assert unknown not in ids
            assert tokenizer.decode(ids) == text


def test_digits_are_tokens_and_numbers_read_back(tokenizer: Tokenizer) -> None:
    text = "12 + 30 = 42. #### 42"
    assert tokenizer.encode(text).tokens == ["1", "~2", "+", "3", "~0", "=", "4", "~2", ".", "####", "4", "~2"]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for number in range(1000):
        assert len(tokenizer.encode(str(number)).ids) == len(str(number))
        assert tokenizer.decode(tokenizer.encode(f"has {number} more").ids) == f"has {number} more"


def test_special_tokens_and_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCABULARY
    config = json.loads((FOLDER / "config.json").read_text())
    assert tokenizer.token_to_id(MASK) == config["mask_token_id"]
    assert tokenizer.token_to_id(EOS) == config["eos_token_id"]
    assert tokenizer.encode("Zork").tokens == [UNKNOWN]
    ids = [*tokenizer.encode("#### 7").ids, config["eos_token_id"], config["mask_token_id"]]
    assert tokenizer.decode(ids) == "#### 7"


def test_shipped_tokenizer_is_the_built_one(tokenizer: Tokenizer) -> None:
    assert json.loads(tokenizer.to_str()) == json.loads(build_tokenizer().to_str())


def test_the_example_of_the_documentation_is_in_the_distribution(tokenizer: Tokenizer) -> None:
    example = "Tom has 12 apples and finds 30 more. How many apples does Tom have now?"
    assert UNKNOWN not in tokenizer.encode(example).tokens
    shape = re.compile(r"\w+ has \d+ \w+ and \w+ \d+ more\. How many \w+ does \w+ have now\?")
    assert shape.fullmatch(example)
    rng = random.Random(3)
    similar = [p for p in (sample_problem(rng) for _ in range(SAMPLES)) if shape.fullmatch(p.prompt)]
    assert len(similar) > 100
    operands = [int(n) for p in similar for n in re.findall(r"\d+", p.prompt)]
    assert min(operands) <= 12
    assert max(operands) == 30
