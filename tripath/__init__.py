"""Launches, compares, reports and tracks: three independent simulators of one NPU program for diffusion language models."""
