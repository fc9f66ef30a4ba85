"""Exact match of what a program generated, and what a solved problem costs: where the prompts come with their results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dllm.answers import answer_pattern, exact_match, number_in
from npu.metrics import Result
from tripath.experiment import Experiment
from tripath.experiment.outcome import Generated
from tripath.paths import Fact


def scored(results: Mapping[str, Result], giver: str, generated: Generated, expected: Sequence[int | None], answer: str,
           block_length: int) -> dict[str, Result]:  # fmt: skip
    """The results, that of the path `giver` with the problems that its texts solve and the denoising steps of each sequence.

    A sequence's steps are those until its last token of each block is committed; the batch goes on until all are.
    """
    pattern, found = answer_pattern(answer), dict(results)
    asked = [(text, number) for text, number in zip(generated.texts, expected, strict=False) if number is not None]
    if not asked:
        return found
    solved = sum(number_in(text, pattern) == number for text, number in asked)
    steps = [
        max(row[first : first + block_length])
        for row in generated.commit_steps
        for first in range(0, len(row), block_length)
    ]
    more = {"problems": len(asked), **exact_match(solved, len(asked)), "steps_per_block": sum(steps) / len(steps)}
    found[giver] = replace(found[giver], metrics={**found[giver].metrics, **more})
    return found


def with_costs(results: Mapping[str, Result], experiment: Experiment) -> dict[str, Result]:
    """The results, those of the program's cost with seconds and joules of a solved problem."""
    shares = [share for result in results.values() if (share := result.metrics.get("exact_match"))]
    found = dict(results)
    for row in experiment.rows:
        if shares and Fact.CYCLES in row.gives and row.name in found:
            solved = shares[0] * experiment.workload.batch
            metrics = dict(found[row.name].metrics)
            for name, total in (("seconds_per_solved", "seconds"), ("joules_per_solved", "energy_joules")):
                if total in metrics:
                    metrics[name] = metrics[total] / solved
            found[row.name] = replace(found[row.name], metrics=metrics)
    return found
