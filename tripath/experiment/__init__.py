"""One experiment: its inputs, its prompts, and what came out of it."""

from tripath.experiment.inputs import Experiment
from tripath.experiment.outcome import Generated, Outcome
from tripath.experiment.prompts import Prompts, Tokenizer

__all__ = ["Experiment", "Generated", "Outcome", "Prompts", "Tokenizer"]
