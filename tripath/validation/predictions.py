"""Predictions of figures by the models: a function for each kind, from device, engine, precision and settings.

A figure that no model can express is refused by name, with the reason.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import mean

import numpy as np

from cycle.dram import CLOSED, READ, all_banks, memory_of, stream
from dllm.devices import ENGINES, Device, Product, Shape
from dllm.model import ModelSpec
from dllm.policies import Diffusion
from npu.hardware import Hbm
from tripath.validation.figures import MIXTURES, Figure, NotExpressedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models that predict: device models, model shapes and memories, by name."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    memories: Mapping[str, Hbm] = field(default_factory=dict)

    def device(self, figure: Figure) -> Device:
        """The device of a figure.

        Raises:
            NotExpressedError: there are several at work, or no model of it.
        """
        if figure.count != 1:
            raise NotExpressedError(f"{figure.count} devices at work: what passes between them is not modelled")
        if figure.device_name not in self.devices:
            raise NotExpressedError(f"no model of device {figure.device}")
        return self.devices[figure.device_name]

    def shape(self, figure: Figure) -> ModelSpec:
        """The shape of a figure's model.

        Raises:
            NotExpressedError: no model has it.
        """
        if figure.model_name in self.models:
            return self.models[figure.model_name]
        if any(part in figure.model.replace(".", "_") for part in MIXTURES):
            raise NotExpressedError(f"conf/model lacks {figure.model}, a mixture of experts")
        raise NotExpressedError(f"no model {figure.model_name} in conf/model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A model's prediction in the figure's unit, and the assumption that matters most."""

    value: float
    assumption: str


# ---- products


def _start_seconds(figure: Figure, device: Device) -> tuple[float, str]:
    """Seconds that a single kernel takes besides its work, in a stream of kernels or as a library call, and its assumption."""
    if re.search(r"graph|DeepGEMM|ttnn|tt-metal", figure.engine):
        return device["kernel_seconds"], "kernels follow each other on the device"
    return device["call_seconds"], "a call of a library, one after the other"


def _products(figure: Figure) -> list[Product]:
    """The shapes that a figure may be of."""
    w, size = figure.workload, 1 if "FP8" in figure.precision else 2
    if isinstance(w.get("shape"), list) and len(w["shape"]) == 3:
        shapes = [(1, *w["shape"])]
    elif "M_per_group" in w or "M" in w:
        groups, rows = (
            (w.count("groups"), w.count("M_per_group")) if "M_per_group" in w else (w.count("experts", 1), w.count("M"))
        )
        shapes = [(groups, rows, w.count("N"), w.count("K"))]
    elif re.search(r"best|maximum", figure.measured):
        shapes = [
            (1, side, side, side)
            for side in ((1024, 2048, 4096, 8192, 10240) if "square" in figure.measured else (8192, 16384))
        ]
    else:
        raise NotExpressedError("the shape of the product is not stated")
    return [Product(groups=g, rows=m, columns=n, contraction=k, element_bytes=size) for g, m, n, k in shapes]


def _gemm(figure: Figure, models: Models) -> Prediction:
    device = models.device(figure)
    if not re.search(r"FP8|BF16|FP16", figure.precision):
        raise NotExpressedError(f"no rate for precision {figure.precision}")
    start, assumption = _start_seconds(figure, device)
    seconds = {product: start + device.product_seconds(product) for product in _products(figure)}
    rates = {product: product.flops / value for product, value in seconds.items()}
    best = max(rates, key=lambda product: rates[product])
    return Prediction(value=_in_unit(figure, {"s": seconds[best], "FLOP/s": rates[best]}), assumption=assumption)


def _in_unit(figure: Figure, values: Mapping[str, float]) -> float:
    if figure.unit not in values:
        raise NotExpressedError(f"no prediction in {figure.unit}")
    return values[figure.unit]


# ---- attention and memory

FLASH2_ON_HOPPER = 0.663
"""Rate of FlashAttention 2 over that of 3, which uses Hopper's asynchronous units: h20_fa2_hd128, 83.7 of 126.2 TFLOP/s."""


def _attention(figure: Figure, models: Models) -> Prediction:
    device, w = models.device(figure), figure.workload
    hopper = "matrix_fp8_flops" in device.numbers
    share = device["attention_fraction"] * (
        FLASH2_ON_HOPPER if hopper and re.search(r"FA2|FlashAttention 2", figure.engine) else 1.0
    )
    if figure.unit == "bytes/s":
        return Prediction(value=device.bandwidth, assumption="bound by memory")
    queries, keys = (w.count(name) if name in w else w.count("sequence") for name in ("q_rows", "kv"))
    heads = _heads(figure)
    kv_heads, width = w.count("kv_heads", heads), w.count("head_dim")
    value_width = w.count("v_dim", width)
    work = 2.0 * w.count("batch") * heads * queries * keys * (width + value_width) * (0.5 if w.get("causal") else 1.0)
    # Of MLA the values are a part of the keys.
    kept = kv_heads * keys * (width if value_width != width else width + value_width)
    moved = 2.0 * w.count("batch") * (kept + heads * queries * (width + value_width))
    seconds = device["kernel_seconds"] + max(work / (device["matrix_bf16_flops"] * share), moved / device.bandwidth)
    return Prediction(
        value=_in_unit(figure, {"s": seconds, "FLOP/s": work / seconds}),
        assumption=f"{share:.0%} of the matrix rate, or its bytes",
    )


def _heads(figure: Figure) -> int:
    """Heads of the queries, a number or at the end of a text: `hidden 2048 (32)`."""
    given = figure.workload.get("q_heads", figure.workload.get("heads"))
    found = re.findall(r"\d+", str(given))
    if not found:
        raise NotExpressedError("heads are not stated")
    return int(found[-1])


MEMORIES = {"alveo_u280": "hbm2", "dgx_spark_gb10": "lpddr5x"}
"""Memories that are simulated burst by burst, of devices without a model."""
STREAMED_BYTES = 4 << 20


def _dram(figure: Figure, models: Models) -> Prediction:
    if figure.unit != "bytes/s":
        raise NotExpressedError("a share of a run whose bytes the source estimates")
    if figure.device in MEMORIES:
        memory = models.memories[MEMORIES[figure.device]]
        share = _simulated_share(memory)
        return Prediction(
            value=figure.workload.amount("peak") * share,
            assumption=f"one stream in order through the burst model: {share:.1%}",
        )
    return Prediction(value=models.device(figure).bandwidth, assumption="the share of a device of its family")


def _simulated_share(memory: Hbm) -> float:
    """Share of the peak that one stream of reads in order reaches, refresh included."""
    hbm = replace(memory, refresh="absolute")
    facts = memory_of(hbm)
    numbers = np.arange(STREAMED_BYTES // hbm.burst_bytes)
    cycles = stream(numbers, np.full(numbers.shape, READ, np.int64), facts, all_banks(CLOSED, facts)).cycles
    return float(STREAMED_BYTES / cycles / hbm.bytes_per_memory_cycle)


# ---- kernels of sampling

PASSES = (
    # what is measured, engine, bytes of an element, source
    (r"softmax", r"quack|torch\.compile", 0, "bandwidth: the bytes that the source counts"),
    (r"cross-entropy", r"liger", 12, "two reads, and the gradient written in place"),
    (r"cross-entropy", r"torch", 16, "log_softmax: reads for maximum, sum and result, a write"),
    (
        r"cross-entropy",
        r"megatron_unfused",
        44,
        "FP32 copy, maximum, difference, exponential, sum, quotient, each a kernel",
    ),
    (r"cross-entropy", r"megatron_fused", 32, "the same, in fused pairs"),
    (r"kl_div", r"torch", 36, "xlogy, product, difference and sum, a kernel each"),
    (r"tvd", r"torch", 32, "difference, absolute value, half and sum, a kernel each"),
    (r"kl_div", r"liger", 8, "both tensors read once"),
    (r"tvd", r"liger", 12, "both tensors read, the gradient written in place"),
    (r"log-probability", r"torch", 22, "FP32 copy, then log_softmax of it"),
    (r"log-probability", r"fused", 4, "two reads of FP16"),
    (r"argmax|entropy", r"torch|triton|flashinfer", 4, "one read"),
)
"""Bytes that a kernel moves for each element of FP32 logits, as its code makes passes: by what is measured and by whom."""
TRITON_LAUNCH_SECONDS = 70e-6
"""From Python, of one kernel that is waited for: gumbel_greedy_128."""
NOISE_OPERATIONS = {"FP32": 300.0, "FP64": 300.0}
"""Of a counter-based random number with two logarithms, at the vector rate: gumbel_fp32_1024, gumbel_fp64_128 (on an H200)."""
TOPK_ROW_SECONDS = 139e-6
"""torch.topk's fallback takes row by row: a100_topk_16_512."""


def _sampling(figure: Figure, models: Models) -> Prediction:
    device, w = models.device(figure), figure.workload
    elements = w.amount("rows") * w.amount("vocab")
    if re.search(r"top-k|topk", figure.measured) and "torch" in figure.engine:
        return Prediction(value=w.amount("rows") * TOPK_ROW_SECONDS, assumption="the fallback takes row by row")
    if "gumbel" in figure.engine.lower() or "Gumbel" in figure.measured:
        return Prediction(
            value=_gumbel_seconds(figure, device, elements), assumption="an H200; a launch of Triton from Python"
        )
    for measured, engine, size, assumption in PASSES:
        if re.search(measured, figure.measured) and re.search(engine, figure.engine):
            return Prediction(value=_in_unit(figure, _passes(figure, device, elements, size)), assumption=assumption)
    raise NotExpressedError(f"how often {figure.engine} passes over the logits is not known")


def _passes(figure: Figure, device: Device, elements: float, size: int) -> dict[str, float]:
    counted = 0.75 if "compile" in figure.engine else 1.0  # of four passes the source counts three
    return {"s": device["call_seconds"] + elements * size / device.bandwidth, "bytes/s": device.bandwidth * counted}


def _gumbel_seconds(figure: Figure, device: Device, elements: float) -> float:
    kind = "FP64" if "FP64" in figure.precision else "FP32"
    read = 4 * elements / device.bandwidth
    noise = (
        0.0
        if figure.workload.get("temperature") == 0
        else elements * NOISE_OPERATIONS[kind] / device[f"vector_{kind.lower()}_flops"]
    )
    return max(TRITON_LAUNCH_SECONDS, read, noise)


# ---- generations

EXAMPLE_TOKENS, CHAIN_TOKENS, QUESTION_TOKENS, CHAT_TOKENS = 150, 100, 50, 130
"""Of an example of GSM8K, MATH or MBPP, of a written chain of thought, of a question, of one in a chat template: assumed."""


def _described(prompt: str) -> int | None:
    """Tokens of a prompt that a source describes; a stated length wins."""
    if found := re.search(r"\babout (\d+)(?: to (\d+))? tokens", prompt):
        low, high = int(found[1]), int(found[2] or found[1])
        return (low + high) // 2
    if re.search(r"\b0-shot|zero-shot", prompt, re.IGNORECASE):
        return CHAT_TOKENS
    if found := re.search(r"cot.* (\d+)-shot", prompt, re.IGNORECASE):
        return QUESTION_TOKENS + CHAIN_TOKENS * int(found[1])
    if found := re.search(r"(\d+)-shot", prompt):
        return QUESTION_TOKENS + EXAMPLE_TOKENS * int(found[1])
    return CHAT_TOKENS if "GSM8K" in prompt else None


def _prompt(figure: Figure) -> tuple[int, str]:
    given = figure.workload.get("prompt")
    if isinstance(given, int):
        return given, ""
    tokens = _described(str(given))
    if tokens is None:
        raise NotExpressedError(f"the length of the prompt is not stated ({given})")
    return tokens, f"a prompt of {tokens} tokens"


def _engine(figure: Figure) -> str:
    for pattern, engine in (
        (r"vLLM|SGLang|dInfer|serving", "serving"),
        (r"CUDA graph", "graphs"),
        (r"HF|eager|transformers|Fast-dLLM|llama", "eager"),
    ):
        if re.search(pattern, figure.engine):
            return engine
    raise NotExpressedError(f"no engine like {figure.engine}, one of eager, graphs, serving")


def _generation(figure: Figure, models: Models) -> Prediction:
    """Time of a generation, of a step, or tokens a second, counted as the source counts them."""
    device, w = models.device(figure), figure.workload
    if "weights_bytes" in w:
        return Prediction(
            value=w.amount("weights_bytes") / device.bandwidth, assumption="the weights stream once a token"
        )
    model, engine = models.shape(figure), _engine(figure)
    if Diffusion(model.decoding.diffusion) is Diffusion.UNIFORM:
        raise NotExpressedError(
            "canvases of uniform diffusion, and the clean pass over each, are not modelled on devices"
        )
    prompt, assumption = _prompt(figure)
    device = replace(
        device, engine=engine, sampling_format="fp64" if engine == "eager" and "llada" in figure.model_name else "fp32",
        temperature=w.amount("temperature", 0.0) if engine == "eager" and "llada" in figure.model_name else 0.0,
    )  # fmt: skip
    if figure.kind == "ar_baseline":
        seconds = _decode_seconds(device, model, w.count("batch", 1), prompt + w.count("output", 256) // 2)
        values = {"s/token": seconds, "tokens/s": w.count("batch", 1) / seconds}
        return Prediction(value=_in_unit(figure, values), assumption=f"engine {engine}, one token a step")
    output = w.count("output", 256)
    own = "append" if model.decoding.cache == "append" else "none"
    filtered = output // 2 if "top-p" in w.text("sampler") else 0  # half of the positions are masked, on the mean
    canvas, batch = prompt + output, w.count("batch", 1)
    step = mean(
        _step_seconds(device, model, rows, canvas, batch, filtered) for rows in _rows(figure, prompt, output, own)
    )
    steps = _steps(figure, output)
    counted, count_note = _counted(figure, output)
    values = {"s/step": step, "s/request": step * steps, "tokens/s": counted / (step * steps)}
    notes = [f"engine {engine}", assumption, count_note]
    return Prediction(value=_in_unit(figure, values), assumption=", ".join(note for note in notes if note))


def _steps(figure: Figure, output: int) -> float:
    w = figure.workload
    if "tokens_per_forward" in w:
        return output / w.amount("tokens_per_forward")
    if "steps" not in w and any("per forward" in remark for remark in figure.open):
        raise NotExpressedError("tokens per forward are not stated")
    if "threshold" in w.text("steps") and not re.search(r"about \d+", w.text("steps")):
        raise NotExpressedError("the number of steps under a threshold is not stated")
    return w.amount("steps", output)


def _counted(figure: Figure, output: int) -> tuple[float, str]:
    """Tokens that the source counts: stated, or as it says elsewhere, or all positions.

    Raises:
        NotExpressedError: answers are cut, and how long they then are is not known.
    """
    w = figure.workload
    if "counted_tokens" in w or ("tokens_per_forward" in w and "cut" not in w.text("token")):
        return w.amount("counted_tokens", output), ""
    for remark in figure.open:
        if found := re.search(r"counted tokens:? .*?(\d{2,})", remark):
            return float(found[1]), f"{found[1]} counted tokens"
    if "cut" in w.text("token"):
        if not ("gsm8k" in w.text("prompt").lower() and "llada" in figure.model_name):
            raise NotExpressedError("answers are cut, and how many tokens are left is not stated")
        return min(CUT_ANSWER_TOKENS, output), f"{CUT_ANSWER_TOKENS} counted tokens"
    return float(output), ""


CUT_ANSWER_TOKENS = 186
"""Of an answer of LLaDA to a problem of GSM8K, cut at the stop strings: 266 s x 0.7 tokens/s in Fast-dLLM's table."""


def _rows(figure: Figure, prompt: int, output: int, own: str) -> list[int]:
    """Rows of each step of a generation, one block after the other; `own`: the policy of the model where none is stated."""
    w, canvas = figure.workload, prompt + output
    policy, block = (w.text("cache_policy") or own).lower(), min(w.count("block", 32), output)
    if re.match(r"none|no kv|full attention", policy):
        return [canvas]
    if policy.startswith("append"):
        return [block]
    per_block = max(1, round(_steps(figure, output) * block / output))
    starts = range(0, output - block + 1, block)
    if policy.startswith("prefix"):
        return [row for start in starts for row in (canvas, *[output - start] * (per_block - 1))]
    if policy.startswith("dual"):
        return [row for _ in starts for row in (canvas, *[block] * (per_block - 1))]
    raise NotExpressedError(f"no cache policy like {policy!r}, one of none, prefix, dual, append")


TOP_P_BYTES = 130
"""Of a logit that Dream's code filters by top-p: radix sort with indices, two softmaxes, running sum, mask and its way back."""


def _step_seconds(device: Device, model: ModelSpec, rows: int, canvas: int, batch: int, filtered: int) -> float:
    head = rows if ENGINES[device.engine].every_row else min(rows, 32)
    shape = Shape(batch=batch, canvas=canvas, block=head, rows=rows)
    tail = [*device.phase(model, "lm_head", shape), *device.phase(model, "sampling", shape)]
    return (
        device.step_seconds(device.phase(model, "refine", shape), tail)
        + filtered * model.vocab * TOP_P_BYTES / device.bandwidth
    )


def _decode_seconds(device: Device, model: ModelSpec, batch: int, keys: int) -> float:
    shape = Shape(batch=batch, canvas=keys, block=1, rows=1)
    return device.step_seconds(device.phase(model, "refine", shape), device.phase(model, "lm_head", shape))


# ---- the rest


def _kernel_share(figure: Figure, models: Models) -> Prediction:
    device, w = models.device(figure), figure.workload
    if "launches" not in w:
        raise NotExpressedError("launches and kernel time are not stated")
    kernels = w.amount("kernel_ms") * 1e-3
    return Prediction(
        value=kernels / max(kernels, w.amount("launches") * device["dispatch_seconds"]),
        assumption="the host is ahead, or never is",
    )


def _traffic(figure: Figure, _: Models) -> Prediction:
    logits = 2.0 * figure.workload.amount("rows") * figure.workload.amount("vocab")
    return Prediction(
        value=_in_unit(figure, {"bytes": 2 * logits}), assumption="BF16 logits are written once and read once"
    )


PREDICTORS: Mapping[str, Callable[[Figure, Models], Prediction]] = {
    "gemm": _gemm, "attention": _attention, "dram": _dram, "sampling": _sampling, "step": _generation, "throughput": _generation,
    "ar_baseline": _generation, "kernel_share": _kernel_share, "traffic": _traffic,
}  # fmt: skip
"""By kind."""
REFUSED_KINDS = {
    "accelerator_phase": "phases of a mixture of experts over several devices",
    "collective": "what passes between devices is not modelled",
    "device_peak": "it follows from the cores and the clock that it states",
    "algorithm": "how many tokens a forward commits depends on the model's weights",
    "accuracy": "needs the weights of a model of 7B and more",
    "gpu_power": "device models take the board power, not a mean",
    "silicon_energy": "energy is accounted at 7 nm; the chip is another process and voltage",
    "accelerator": "another accelerator's own simulator: steps and prompt lengths are not stated",
    "accelerator_energy": "another accelerator's own simulator: steps and prompt lengths are not stated",
}
"""Why a kind is not expressed."""
