"""Answers in texts: the number that a pattern finds."""

import pytest

from dllm.answers import ANSWER, answer_pattern, number_in
from npu.errors import TripathError


@pytest.mark.parametrize(
    ("pattern", "text", "number"),
    [(ANSWER, "3 + 4 = 7. #### 7", 7), (ANSWER, "#### -12 #### 5", -12), (ANSWER, "seven", None),
     (r"answer is ([-\d,]+)", "the answer is 1,234.", 1234), (r"is (.*)", "is nothing", None)],
)  # fmt: skip
def test_a_number_is_found_by_the_pattern(pattern, text, number):
    assert number_in(text, answer_pattern(pattern)) == number


@pytest.mark.parametrize(("pattern", "said"), [("(", "is no regular expression"), ("####", "must have one group"),
                                               (r"(\d)(\d)", "must have one group")])  # fmt: skip
def test_a_pattern_that_finds_no_number_is_refused(pattern, said):
    with pytest.raises(TripathError, match=f"workload.answer: .* {said}"):
        answer_pattern(pattern)
