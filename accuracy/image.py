"""The HBM image that a program starts from: weights in their formats, and what the host prepares for a workload."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from accuracy.calibration import static_factors
from accuracy.quantised import keep, place_of, read
from dllm.canvas import canvas_of
from dllm.constants import CONSTANTS, HIDDEN, LOWEST, Facts, further_constants
from dllm.families import tensor_name
from dllm.layout import fill_up, laid_out
from dllm.model import ModelSpec
from dllm.operators import Mask
from dllm.weights import Role
from dllm.workload import Workload
from npu.errors import TripathError
from npu.formats import FORMATS
from npu.formats.rounding import encode_rows
from npu.program import Program, Tensor


def build_image(
    program: Program,
    model: ModelSpec,
    workload: Workload,
    tensors: Mapping[str, np.ndarray],
    prompts: Sequence[Sequence[int]],
    *,
    quantised: Path | None = None,
) -> np.ndarray:
    """HBM contents (uint8) before the first instruction.

    Weights of a checkpoint that is read as needed are taken from the folder `quantised` where they are there, else left
    there (None: neither).

    Raises:
        TripathError: the prompts do not fit the program, or it needs a calibration that the checkpoint lacks.
    """
    image = np.zeros(program.hbm_bytes, np.uint8)
    for name, values in _host(program, model, workload, prompts).items():
        write_tensor(image, program.tensor(name), values)
    if "static_sides" in program.layout:
        write_tensor(image, program.tensor("smoothing"), static_factors(program, model))
    kept = {stored.name: stored.weight.parts for stored in laid_out(model).network.weights()}
    for stored in model.network.weights():
        whole, parts = program.tensor(stored.name), kept[stored.name]
        for index, layer in stored.of_layers():
            tensor = _layer_tensor(whole, index)
            names = [tensor_name(part.name, layer) for part in stored.weight.parts]
            file, place = quantised and place_of(tensor, names, tensors, quantised), _bytes_of(image, tensor)
            if file and read(file, place):
                continue
            filled = [fill_up(tensors[name], part.shape, model) for name, part in zip(names, parts, strict=True)]
            values = np.concatenate(filled)
            if stored.weight.role is Role.MIXTURE:
                values = sliced(values, tensor.shape[-1])
            write_tensor(image, tensor, values)  # one at a time in memory
            if file:
                keep(file, place)
    return image


def sliced(values: np.ndarray, size: int) -> np.ndarray:
    """Rows [V, width] as slices of so many, each turned [slices, width, size]; zeros fill the last one up."""
    slices = -(-len(values) // size)
    filled = np.pad(values, ((0, slices * size - len(values)), (0, 0)))
    return filled.reshape(slices, size, -1).swapaxes(1, 2)


def _layer_tensor(tensor: Tensor, index: int | None) -> Tensor:
    """One layer of a tensor [layers, ...]; None: all of one that has no layers."""
    if index is None:
        return tensor
    return dataclasses.replace(tensor, address=tensor.address + index * tensor.stride_bytes(0), shape=tensor.shape[1:])


def _bytes_of(image: np.ndarray, tensor: Tensor) -> np.ndarray:
    return image[tensor.address : tensor.address + tensor.size_bytes]


def write_tensor(image: np.ndarray, tensor: Tensor, values: np.ndarray) -> None:
    """Store `values` (the tensor's shape) in its format."""
    place = _bytes_of(image, tensor)
    if tensor.format == "int32":
        place[:] = np.ascontiguousarray(values, "<i4").reshape(-1).view(np.uint8)
    else:
        rows = np.ascontiguousarray(values, np.float32).reshape(-1, tensor.shape[-1])
        encode_rows(rows, FORMATS[tensor.format].code, tensor.block, place)


def read_tokens(image: np.ndarray, program: Program) -> np.ndarray:
    """The canvas (int32 [batch, S])."""
    tensor = program.tensor("tokens")
    return _bytes_of(image, tensor).view("<i4").reshape(tensor.shape)[: program.layout["batch"]].astype(np.int32)


def _host(
    program: Program, model: ModelSpec, workload: Workload, prompts: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    layout = program.layout
    batch, canvas, cache = layout["batch"], layout["canvas"], layout["cache_tokens"]
    plan = canvas_of(model, workload, [len(prompt) for prompt in prompts])
    if (len(prompts), plan.rows, plan.prompt) != (batch, canvas, layout["prompt"]):
        raise TripathError(f"workload.prompt: the program was compiled for {batch} prompts of other lengths")
    if workload.guided:  # the same once more, with prompts of masks
        prompts, batch = (
            [*prompts, *([model.mask_id] * len(prompt) for prompt in prompts)],
            workload.forwarded_sequences,
        )
        plan = canvas_of(model, workload, [len(prompt) for prompt in prompts])
    tokens = np.full((batch, canvas), model.eos_id)
    mask, valid = np.full((batch, cache), LOWEST, np.float32), np.zeros((batch, canvas), np.float32)
    rope = {each: np.zeros((batch, canvas, each.turned_channels), np.float32) for each in model.geometries}
    for row, prompt in enumerate(prompts):
        first = plan.first(row)
        tokens[row, first : first + len(prompt)] = prompt
        tokens[row, first + len(prompt) : plan.end(row)] = model.mask_id
        mask[row, cache - canvas + first :] = 0.0
        valid[row, first:] = 1.0
        for each, table in rope.items():
            angle = np.outer(np.arange(canvas - first), each.rotation.frequencies(each.turned_channels))
            table[row, first:] = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    unscheduled = workload.block_length - workload.steps_per_block
    facts = Facts(model=model, workload=workload, alpha=layout["alpha_millionths"] / 1e6)
    constants = [value(facts) for value in CONSTANTS.values()]
    present, optional = {tensor.name for tensor in program.hbm}, {}
    if "inverse_tokens" in present:
        optional["inverse_tokens"] = 1 / valid.sum(1)[None]
    if "further_constants" in present:
        optional["further_constants"] = np.array([list(further_constants(model).values())])
    if "expert_scale" in present:
        assert model.experts is not None
        optional["expert_scale"] = np.array([[model.experts.scale]])
    if "edit_threshold" in present:
        optional["edit_threshold"] = np.array([[workload.edit_threshold]])
    if "entropy" in present:
        optional["entropy"] = np.array([[workload.entropy_bound, np.log(2.0)]])
    if "guidance" in present:
        optional["guidance"] = np.array([[1 + workload.guidance]])
    if "noise_scale" in present:  # logits of uniform diffusion are over their temperature already
        temperature = 1.0 if workload.is_uniform else workload.temperature
        optional["noise_scale"] = np.array([[1 / (temperature * np.log(2.0))]])
    if "coolness" in present:
        optional["coolness"] = 1 / np.array([workload.temperatures()])
    if "stop_entropy" in present:
        assert workload.stop_entropy is not None
        optional["stop_entropy"] = np.array([[workload.stop_entropy * workload.block_length]])
    if "edge" in present:
        optional["edge"] = np.where(np.arange(2 * cache) < cache, 0.0, HIDDEN)[None]
    if "window" in present:
        assert model.window is not None
        place = np.arange(program.tensor("window").shape[-1])
        beyond = (place >= cache + 2 * model.window - 1) & (model.mask is Mask.FULL)
        optional["window"] = np.where((place < cache) | beyond, HIDDEN, 0.0)[None]
    if "hadamard" in present:
        optional["hadamard"] = _hadamard(model.head_dim)
    return optional | {each.tensor("rope"): table for each, table in rope.items()} | {
        "tokens": tokens, "mask": mask, "valid": valid, "constants": np.array([constants]),
        "integers": np.array([[model.mask_id, 1, *workload.quotas(), *[0] * unscheduled]]),
    }  # fmt: skip


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix over sqrt(size): the sign at (i, j) is that of the bits which i and j share."""
    shared = np.arange(size)[:, None] & np.arange(size)
    signs = np.array([1 - 2 * (value.bit_count() & 1) for value in range(size)])
    return signs[shared] / np.sqrt(size)
