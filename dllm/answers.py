"""Answers in generated texts: the number that a pattern finds, and the interval of a share of right ones."""

import math
import re

from npu.errors import TripathError

ANSWER = r"####\s*(-?\d+)"
"""Where a worked answer ends with its number."""
KEY = "workload.answer"


def answer_pattern(text: str) -> re.Pattern[str]:
    """The regular expression that finds a number in a generated text.

    Raises:
        TripathError: it is no regular expression with one group.
    """
    try:
        found = re.compile(text)
    except re.error as error:
        raise TripathError(f"{KEY}: {text!r} is no regular expression ({error})") from None
    if found.groups != 1:
        raise TripathError(f"{KEY}: {text!r} must have one group, which holds the number")
    return found


def number_in(text: str, pattern: re.Pattern[str]) -> int | None:
    """The number that a generated text answers with, commas left out: the first match; None: there is none."""
    hit = pattern.search(text)
    try:
        return int(hit[1].replace(",", "")) if hit else None
    except ValueError:
        return None


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a binomial share (95 % by default)."""
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # At the ends the interval reaches the share itself, which rounding must not cut off.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def exact_match(solved: int, problems: int) -> dict[str, float]:
    """The share of problems that are solved, with its interval, as metrics."""
    low, high = wilson(solved, problems)
    return {"solved": solved, "exact_match": solved / problems, "exact_match_low": low, "exact_match_high": high}
