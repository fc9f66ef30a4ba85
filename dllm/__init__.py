"""Diffusion language models: shapes, workloads and policies, checkpoints, the unquantised reference, other hardware."""
