"""Programs: the container and its digest, the rules that each obeys, where it may reach, flat arrays for compiled code."""

from npu.program.container import Phase, Program, Tensor, fact_of_program, loop_tree, words_of

__all__ = ["Phase", "Program", "Tensor", "fact_of_program", "loop_tree", "words_of"]
