"""Training of the shipped model: `corpus` generates problems, `model` and `train` learn them, `evaluate` measures.

Needs torch, which the simulators do not.
"""
