"""Writes the calibration of a checkpoint, for programs of the static scheme: `python -m dllm_training.calibrate [FOLDER]`.

Channel maxima over the warm steps of its last held-out problems (no path scores these), in FP32, one token a step, blocks of 8.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save

from accuracy.calibration import FILE
from accuracy.quality.calibrate import calibrate
from accuracy.quality.model import UNQUANTISED
from accuracy.quality.problems import CALIBRATION_PROBLEMS, load_problems
from dllm.folder import model_of
from dllm.model import ModelSpec
from dllm.numerics import SIDES, Smoothing
from dllm.workload import Workload
from dllm_training.corpus import ANSWER_TOKENS
from dllm_training.evaluate import BLOCK, CHECKPOINT, load
from npu.files import write_atomically


def write_calibration(spec: ModelSpec, tensors: Mapping[str, np.ndarray], folder: Path) -> None:
    """Calibrate on the last problems of `folder` (`CALIBRATION_PROBLEMS`) and leave the maxima there.

    Raises:
        TripathError: the folder has no held-out problems.
    """
    prompts = [problem.prompt for problem in load_problems(model_of(folder))[-CALIBRATION_PROBLEMS:]]
    workload = Workload(generation_length=ANSWER_TOKENS, block_length=BLOCK, steps=ANSWER_TOKENS)
    numerics = replace(UNQUANTISED, smoothing=Smoothing(scheme="static"))
    found = calibrate(spec, tensors, numerics, prompts, workload)
    sides = {f"layers.{number}.{side}": layer[side][0][0, :, 0] for number, layer in enumerate(found) for side in SIDES}
    write_atomically(folder / FILE, save({name: values.contiguous() for name, values in sides.items()}))


def main() -> None:
    """Calibrate a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=CHECKPOINT)
    folder = parser.parse_args().folder
    model, _, _ = load(folder)
    write_calibration(model.spec, {name: value.numpy() for name, value in model.named_tensors().items()}, folder)


if __name__ == "__main__":
    main()
