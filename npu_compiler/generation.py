"""The whole generation: blocks, denoising steps, cache policies; and the program made of it."""

from collections.abc import Sequence

from dllm.model import ModelSpec
from dllm.workload import SIDES, Numerics, Workload, reference_only
from npu.errors import TripathError
from npu.hardware import HardwareConfig
from npu.program import Program, words_of
from npu.program.trace import Trace
from npu_compiler.emit import Emitter, Level
from npu_compiler.forward import forward
from npu_compiler.layout import CONSTANTS, STREAM_SLOTS, make_layout
from npu_compiler.lower import Context
from npu_compiler.mixing import load_hadamard
from npu_compiler.rows import Span, block_span, full_span, suffix_span
from npu_compiler.sampling import commit, lm_head, sample

CHANNELS = (
    ("weights", "dma_in", "matrix", STREAM_SLOTS),
    ("keys_values", "dma_in", "matrix", STREAM_SLOTS),
    ("gated", "matrix", "vector", STREAM_SLOTS),
    ("logits", "matrix", "dma_out", STREAM_SLOTS),
    ("logit_rows", "dma_in", "vector", STREAM_SLOTS),
    ("ids", "dma_in", "dma_in", 1),
    ("embedded", "dma_in", "dma_out", 1),
    ("qkv_in", "dma_in", "vector", 1),
    ("queries", "dma_in", "matrix", 1),
    ("head_in", "dma_in", "vector", 1),
    ("head_normed", "vector", "matrix", 1),
)
"""Buffers between two units: name, producer, consumer, slots."""

HANDSHAKES = (
    "qkv_normed", "scores", "weighted", "partial", "attended", "projected", "ffn_normed", "inner", "post_out",
    "rotated", "kv_stored", "x_stored", "logits_stored", "tokens_loaded", "committed", "flag",
)  # fmt: skip
"""Semaphores without a buffer of their own: what is awaited also orders the reuse."""

MEASURING_HANDSHAKES = ("factors_stored", "kv_scaled")
ROTATING_HANDSHAKES = ("keys_rotated", "rotated_stored")
MIXING_HANDSHAKES = ("hadamard_loaded", "unmixed")


def target(hardware: HardwareConfig) -> tuple[object, ...]:
    """What of a piece of hardware its program depends on: the rest costs time, and may differ from run to run of one program."""
    h = hardware
    return h.name, h.blen, h.mlen, h.vlen, h.sram, h.prefetch_rows, h.hbm.capacity_bytes


def compile_program(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int]
) -> Program:
    """The program of a whole generation; its size does not depend on layers, blocks or steps.

    `prompt_lengths` are the prompts' tokens, one a sequence of the batch.

    Raises:
        TripathError: the combination is not possible, or a working set exceeds a memory (CapacityError).
    """
    if beyond := reference_only(workload, numerics):
        raise TripathError(f"{beyond}: no program carries this out, the reference path does: paths=[quality]")
    if workload.block_length > hardware.vlen:
        raise TripathError(
            f"workload.block_length: {workload.block_length} exceeds hardware.vlen {hardware.vlen} (commit row)"
        )
    layout = make_layout(model, workload, hardware, numerics, prompt_lengths)
    c = make_context(model, workload, hardware, numerics, layout)
    e = c.e
    with e.phase("setup"):
        e.emit("H_LOAD_F", dst=e.address(layout.fp["constants"]), src=c.hbm("constants"), n=len(CONSTANTS))
        if c.centres:
            e.emit("H_LOAD_F", dst=c.fp("inverse_tokens"), src=c.hbm("inverse_tokens"), n=workload.batch)
        e.emit("H_LOAD_I", dst=c.integer("constants"), src=c.hbm("integers"), n=2 + workload.block_length,
               signal=c.semaphores["set_up"])  # fmt: skip
        e.sync("vector", wait=c.semaphores["set_up"])
        if numerics.smoothing.mixed and workload.stage == "generation":
            load_hadamard(c)
    when = numerics.smoothing.measured
    if when == "once" and workload.blocks > 1:  # the first block measures, the others are a loop of their own
        with e.loop(1, keep=True) as block:
            _block(c, block, measuring=True)
        with e.loop(workload.blocks - 1, keep=True, first=1) as block:
            _block(c, block, measuring=False)
    else:
        with e.loop(workload.blocks) as block:
            _block(c, block, measuring=bool(when))
    instructions, phases = e.finish()
    tiling = layout.tiling
    geometry = {
        "blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen,
        **{f"{name}_bytes": used for name, used in layout.used_bytes.items()},
    }  # fmt: skip
    facts = {
        "batch": workload.batch, "canvas": tiling.canvas, "prompt": tiling.prompt, "cache_tokens": tiling.cache_tokens,
        "generation_length": workload.generation_length, "block_length": workload.block_length,
        "key_tile": tiling.key_tile, "chunk_rows": tiling.chunk_rows, "sampled": layout.integer["sampled"],
        "confidence": layout.fp["confidence"], "alpha_millionths": round(numerics.smoothing.alpha * 1e6),
    }  # fmt: skip
    if numerics.smoothing.scheme == "static":  # the host fills the factors in
        sides = numerics.smoothing.sides
        facts["static_sides"] = sum(1 << bit for bit, side in enumerate(SIDES) if side in sides)
        facts["power_of_two"] = int(numerics.smoothing.power_of_two)
    return Program(words=words_of(instructions), hbm=layout.tensors, geometry=geometry, layout=facts, phases=phases)


def make_context(model, workload, hardware, numerics, layout) -> Context:
    """Emitter, channels and semaphores of a new program."""
    e = Emitter()
    channels = {name: e.channel(name, source, sink, slots=slots) for name, source, sink, slots in CHANNELS}
    # The QKV rows go from matrix to vector to DMA and free the buffer; hidden states from DMA to vector to DMA.
    channels["qkv"] = e.channel("qkv", "matrix", "dma_out")
    channels["post_in"] = e.channel("post_in", "dma_in", "dma_out")
    semaphores = {name: e.semaphore(name) for name in HANDSHAKES}
    if numerics.smoothing.sides:
        semaphores["queries_scaled"] = e.semaphore("queries_scaled")
    if numerics.smoothing.measured:
        channels["smoothing"] = e.channel("smoothing", "vector", "dma_out")
        channels["kv_in"] = e.channel("kv_in", "dma_in", "dma_out")
        semaphores |= {name: e.semaphore(name) for name in MEASURING_HANDSHAKES}
        if numerics.smoothing.centres:
            channels["kv_centred"] = e.channel("kv_centred", "dma_in", "vector")
            semaphores["raw_stored"] = e.semaphore("raw_stored")
    if numerics.smoothing.pre_rope:
        channels["keys_in"] = e.channel("keys_in", "dma_in", "dma_out")
        semaphores |= {name: e.semaphore(name) for name in ROTATING_HANDSHAKES}
    if numerics.smoothing.mixed:
        channels["mixed"] = e.channel("mixed", "matrix", "vector", slots=STREAM_SLOTS)
        semaphores |= {name: e.semaphore(name) for name in MIXING_HANDSHAKES}
    semaphores["set_up"] = e.semaphore("set_up")
    semaphores["tokens_stored"] = e.semaphore("tokens_stored", unit="dma_out", initial=1)
    return Context(
        e=e, model=model, workload=workload, hardware=hardware, numerics=numerics, layout=layout, channels=channels,
        semaphores=semaphores,
    )  # fmt: skip


def _block(c: Context, block: Level, *, measuring: bool) -> None:
    """The denoising steps of a block; where its warm steps are `measuring`, they look at the channels of K and V first."""
    e, workload, tiling = c.e, c.workload, c.layout.tiling
    canvas, once = full_span(workload, tiling), Level(number=None)
    if workload.stage == "sampling":
        sample(c, block)
        commit(c, block, once, 0)
    elif workload.cache == "none":
        with e.loop(workload.block_length, keep=True) as step:
            _step(c, block, step, 0, canvas, measuring=measuring)
            _leave_if_done(c, step)
    else:
        _step(c, block, once, 0, canvas, measuring=measuring)
        with e.loop(workload.block_length, keep=True) as step:
            _leave_if_done(c, step)
            suffix = workload.cache == "prefix"
            rows = suffix_span(workload, tiling, block) if suffix else block_span(workload, tiling)
            _step(c, block, step, 1, rows, measuring=False)


def _step(c: Context, block: Level, step: Level, first_step: int, span: Span, *, measuring: bool) -> None:
    """One denoising step over the rows of a span."""
    forward(c, span, block, measuring=measuring)
    lm_head(c, block_span(c.workload, c.layout.tiling, back=int(c.model.shifted_logits)), block)
    sample(c, block)
    commit(c, block, step, first_step)


def _leave_if_done(c: Context, step: Level) -> None:
    """Leave the step loop when no sequence has a mask left in the block. The loop has more trips than it can use."""
    assert step.number is not None
    with c.e.phase("commit"):
        c.e.emit("C_BREAK_IF", level=step.number, flag=c.integer("remaining"), wait=c.semaphores["flag"])


def schedule(workload: Workload) -> Trace:
    """Trip counts without data: every block takes its scheduled number of denoising steps."""
    return Trace(breaks=(workload.steps_per_block - 1,) * workload.blocks)
