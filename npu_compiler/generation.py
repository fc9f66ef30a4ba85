"""The whole generation: the passes in their order, and the tree of blocks, denoising steps and cache policies."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from dllm.canvas import canvas_of
from dllm.constants import CONSTANTS, further_constants
from dllm.layout import check_smoothing, laid_out
from dllm.model import ModelSpec
from dllm.numerics import SIDES, Numerics
from dllm.operators import ALL_TRAITS, Mask
from dllm.policies import Rows, Smoother
from dllm.workload import Workload, reference_only
from npu.collector import collector_paused
from npu.errors import CapacityError, TripathError
from npu.formats import FORMATS
from npu.hardware import HardwareConfig
from npu.isa import Memory
from npu.program import Program, Tensor, words_of
from npu_compiler.allocation import Allocation, allocate, could_fit, matrix_fits
from npu_compiler.arrangement import DEFAULT, Arrangement, CompilerOptions, arrangements, check_support
from npu_compiler.buffers import Buffers, working_sets
from npu_compiler.context import LOG2_ROW_BLOCK, Context
from npu_compiler.emission import RegisterError, emit
from npu_compiler.forward import forward
from npu_compiler.lifetimes import lifetimes
from npu_compiler.memory import hbm_map
from npu_compiler.mixing import load_hadamard
from npu_compiler.operators import LOWER
from npu_compiler.renoise import begin_uniform, end_uniform, renoise
from npu_compiler.rows import (
    Block,
    Span,
    block_loops,
    block_span,
    blocks_of_a_group,
    fixed,
    head_span,
    part_span,
    prompt_span,
    span_of,
    times,
)
from npu_compiler.sampling import (
    begin_ends,
    by_policy,
    count_going_again,
    count_masks,
    enter,
    enter_part,
    every,
    lm_head,
    note_ends,
    sample_and_commit,
    set_keys,
)
from npu_compiler.stages import Level, Steps, Tree
from npu_compiler.staying import could_stay, uses_staying
from npu_compiler.tiling import Tiling, check_measuring, make_tiling
from npu_compiler.tokens import Tokens, place_tokens


def target(hardware: HardwareConfig) -> tuple[object, ...]:
    """The facts of a piece of hardware that its program depends on: the rest costs time, and may differ from run to run."""
    h = hardware
    return h.name, h.blen, h.mlen, h.vlen, h.sram, h.prefetch_rows, h.fused_exponential


@collector_paused()
def compile_program(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int],
    options: CompilerOptions = DEFAULT,
) -> Program:  # fmt: skip
    """The program of a whole generation; its size does not depend on layers, blocks or steps.

    `prompt_lengths` are the prompts' tokens, one a sequence of the batch.

    Raises:
        TripathError: the combination is not possible, or a working set exceeds a memory (CapacityError).
    """
    return compile_passes(model, workload, hardware, numerics, prompt_lengths, options).program


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """The results of all passes: sizes, the tree of stages, addresses, semaphores, and the program."""

    tiling: Tiling
    tree: Tree
    allocation: Allocation
    tokens: Tokens
    program: Program


def compile_passes(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int],
    options: CompilerOptions = DEFAULT,
) -> Compiled:  # fmt: skip
    """As `compile_program`, with what each pass made.

    Weights that may stay while rows pass do so, unless the buffers for that leave less room for rows or heads in flight.

    Raises:
        TripathError: as `compile_program`.
    """
    numerics = numerics.suited(workload.written_rows)
    allowed = list(arrangements(options, model, workload))
    made = _compiled(model, workload, hardware, numerics, prompt_lengths, options, allowed)
    as_good = allowed[: allowed.index(made.tiling.arrangement) + 1]
    staying = [dataclasses.replace(each, weights_stay=True) for each in as_good]
    if not options.lets_weights_stay or not _could_stay(model, workload, hardware, numerics, made.tiling, staying[-1]):
        return made
    try:
        other = _compiled(model, workload, hardware, numerics, prompt_lengths, options, staying)
    except (CapacityError, RegisterError):
        return made
    return other if other.tiling.chunk_rows >= made.tiling.chunk_rows and uses_staying(other.tree.body) else made


def _could_stay(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, tiling: Tiling, arrangement: Arrangement
) -> bool:  # fmt: skip
    """Weights would stay in chunks of these rows."""
    vocab, model, tiling = model.vocab, laid_out(model), dataclasses.replace(tiling, arrangement=arrangement)
    if workload.samples_only:
        return False
    c = Context(
        e=Tree(), model=model, vocab=vocab, workload=workload, hardware=hardware, numerics=numerics, tiling=tiling, tensors={},
        buffers=working_sets(model, workload, hardware, numerics, tiling), geometry=model.geometry,
    )  # fmt: skip
    return could_stay(c, _spans(model, workload, tiling))


def _compiled(
    model: ModelSpec, workload: Workload, hardware: HardwareConfig, numerics: Numerics, prompt_lengths: Sequence[int],
    options: CompilerOptions, allowed: Sequence[Arrangement],
) -> Compiled:  # fmt: skip
    """As `compile_passes`, with one of the `allowed` arrangements, of which the best come first."""
    check_support(options, workload, hardware)
    model.network.check(LOWER, "the compiler", traits=ALL_TRAITS)
    vocab, model, given = model.vocab, laid_out(model), model
    if model.head_dim != given.head_dim and numerics.smoothing.sides:
        raise TripathError(
            f"numerics.smoothing.scheme: {numerics.smoothing.scheme} needs heads of whole MX blocks, model.head_dim is "
            f"{given.head_dim}"
        )
    check_smoothing(model, numerics.smoothing)
    if workload.caches.warm_up > 1 and numerics.smoothing.measured:
        raise TripathError(
            f"numerics.smoothing.scheme: {numerics.smoothing.scheme} measures one step of a block, "
            f"workload.cache={workload.cache} begins with {workload.caches.warm_up} over all rows; static measures none"
        )
    if beyond := reference_only(workload, numerics):
        raise TripathError(f"{beyond}: no program carries this out, the reference path does: paths=[quality]")
    if workload.block_length > hardware.vlen:
        raise TripathError(
            f"workload.block_length: {workload.block_length} exceeds hardware.vlen {hardware.vlen} (commit row)"
        )
    largest = dataclasses.replace(
        make_tiling(model, workload, hardware, numerics, prompt_lengths, options), arrangement=allowed[-1]
    )
    if workload.caches.appends:
        check_measuring(numerics, largest)
    tensors = hbm_map(model, workload, numerics, largest, hardware)
    while True:
        fitting = _fitting(model, vocab, workload, hardware, numerics, largest, tensors, allowed)
        tiling, tree, buffers, allocation = fitting.tiling, fitting.tree, fitting.buffers, fitting.allocation
        tokens = place_tokens(tree.body, allocation.shared)
        try:
            instructions, phases = emit(tree.body, tokens, allocation.addresses)
        except RegisterError:  # each head in flight has addresses of its own
            if tiling.arrangement == allowed[-1]:
                raise
            allowed = [each for each in allowed if each.heads < tiling.arrangement.heads] or allowed[-1:]
        else:
            break
    geometry = {"blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen, **allocation.used_bytes}
    facts = {
        "batch": workload.batch, "canvas": tiling.canvas, "prompt": tiling.prompt, "cache_tokens": tiling.cache_tokens,
        "generation_length": workload.generation_length, "block_length": workload.block_length,
        "blocks": tiling.blocks, "key_tile": tiling.key_tile, "chunk_rows": tiling.chunk_rows,
        "sampled": allocation.addresses[buffers[Memory.INT, "sampled"]],
        "confidence": allocation.addresses[buffers[Memory.FP, "confidence"]],
        "alpha_millionths": round(numerics.smoothing.alpha * 1e6),
    }  # fmt: skip
    if workload.commits.measures_entropy:
        facts["entropy"] = allocation.addresses[buffers[Memory.FP, "entropy"]]
    if (loops := len(workload.step_loops(0))) > 1:
        facts["step_loops"] = loops
    if workload.sub_block_cache:
        facts["untold"] = allocation.addresses[buffers[Memory.INT, "untold"]]
    if loops > 1 or workload.is_uniform:
        facts["remaining"] = allocation.addresses[buffers[Memory.INT, "remaining"]]
    if workload.stop_at_end:
        facts |= canvas_of(given, workload, prompt_lengths).tokens_of_blocks
    if numerics.smoothing.smoother is Smoother.STATIC:  # the host fills the factors in
        sides = numerics.smoothing.sides
        facts["static_sides"] = sum(1 << bit for bit, side in enumerate(SIDES) if side in sides)
        facts["power_of_two"] = int(numerics.smoothing.power_of_two)
    program = Program(words=words_of(instructions), hbm=tensors, geometry=geometry, layout=facts, phases=phases)
    return Compiled(tiling=tiling, tree=tree, allocation=allocation, tokens=tokens, program=program)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    """A program with chunks of so many rows, as far as its addresses."""

    tiling: Tiling
    tree: Tree
    buffers: Buffers
    allocation: Allocation


def _fitting(
    model: ModelSpec, vocab: int, workload: Workload, hardware: HardwareConfig, numerics: Numerics, largest: Tiling,
    tensors: Sequence[Tensor], allowed: Sequence[Arrangement],
) -> _Attempt:  # fmt: skip
    """The largest chunks whose working sets fit, by lifetime where that makes a pass of fewer chunks; of these the best of the
    `allowed` arrangements.

    Buffers that share bytes wait for each other, so they do only where more rows pay for it.

    Raises:
        CapacityError: not even one block of rows fits.
    """

    def attempt(tiling: Tiling, *, sharing: bool) -> _Attempt:
        buffers = working_sets(model, workload, hardware, numerics, tiling)
        allocation = None if sharing else allocate(buffers, hardware)  # before there is a tree: most are too large
        tree = _tree(model, vocab, workload, hardware, numerics, tiling, tensors, buffers)
        if allocation is None:
            allocation = allocate(buffers, hardware, lifetimes(tree.body))
        return _Attempt(tiling=tiling, tree=tree, buffers=buffers, allocation=allocation)

    def first_that_fits(candidates: Sequence[Tiling], *, sharing: bool) -> _Attempt | CapacityError:
        refused = CapacityError("")
        for tiling in candidates:
            hopeless = sharing and not could_fit(working_sets(model, workload, hardware, numerics, tiling), hardware)
            if hopeless and tiling is not candidates[-1]:  # of the last one, the error names phase and bytes
                continue
            try:
                return attempt(tiling, sharing=sharing)
            except CapacityError as error:
                refused = error
        return refused

    def arranged(cut: Tiling) -> list[Tiling]:
        return [dataclasses.replace(cut, arrangement=each) for each in allowed]

    def few_of(cut: Tiling) -> Iterable[Tiling]:
        """The best arrangement for which Matrix SRAM is large enough, those with one KV head and with one head, and the last."""
        *better, last = arranged(cut)
        fitting = [t for t in better if matrix_fits(working_sets(model, workload, hardware, numerics, t), hardware)]
        one_kv_head = (t for t in fitting if t.arrangement.kv_heads == 1)
        one_head = (t for t in fitting if t.arrangement.heads == 1)
        return dict.fromkeys([*fitting[:1], *itertools.islice(one_kv_head, 1), *itertools.islice(one_head, 1), last])

    cuts = _cuts(model, workload, largest)
    apart = first_that_fits([each for cut in cuts for each in arranged(cut)], sharing=False)
    if isinstance(apart, _Attempt):
        larger = cuts[: cuts.index(dataclasses.replace(apart.tiling, arrangement=largest.arrangement))]
    else:
        larger = cuts
    sharing = first_that_fits([each for cut in larger for each in few_of(cut)], sharing=True)
    for found in (sharing, apart):
        if isinstance(found, _Attempt):
            return found
    assert isinstance(sharing, CapacityError)
    raise sharing


def _cuts(model: ModelSpec, workload: Workload, largest: Tiling) -> list[Tiling]:
    """Every way to cut the passes of a program into chunks, the largest chunks first."""
    found: list[Tiling] = []
    seen: list[list[Span]] = []
    for limit in range(largest.chunk_rows, 0, -largest.token_block):
        tiling = dataclasses.replace(largest, chunk_rows=limit)
        if limit < workload.block_length and (model.mask is Mask.BLOCK_CAUSAL or Rows.SUFFIX in workload.caches.passes):
            break  # what changes from block to block, or within a prompt, does so by whole blocks
        spans = _spans(model, workload, tiling)
        if spans in seen:
            continue
        seen.append(spans)
        parts = [part for span in spans for part in span.parts]
        rows, sequences = max(part.size for part in parts), max(part.sequences for part in parts)
        found.append(dataclasses.replace(largest, chunk_rows=rows, chunk_sequences=sequences))
    if not found:
        raise TripathError(f"compiler.chunk_rows: too few for a block of {workload.block_length} rows")
    return found


def _period(workload: Workload, tiling: Tiling) -> int:
    """Blocks of a group (`rows.Block`)."""
    return min(blocks_of_a_group(workload, tiling, rows) for rows in workload.caches.passes)


def _spans(model: ModelSpec, workload: Workload, tiling: Tiling) -> list[Span]:
    """The rows of all passes of a program."""
    found, policy = [], workload.caches
    if policy.appends and tiling.prompt:
        found.append(prompt_span(workload, tiling, model.mask))
    for block in _blocks_apart(Tree(), workload, tiling, None):
        found += [span_of(workload, tiling, rows, block) for rows in policy.passes]
        found.append(_head_span(model, workload, tiling, block))
        if workload.sub_block_cache:
            found.append(part_span(workload, tiling, block))
    return found


def _head_span(model: ModelSpec, workload: Workload, tiling: Tiling, block: Block) -> Span:
    """The rows whose logits are a block's, or those of the part of it that is filled."""
    return head_span(workload, tiling, block, first=-int(model.shifted_logits), count=workload.part_length)


def _tree(
    model: ModelSpec, vocab: int, workload: Workload, hardware: HardwareConfig, numerics: Numerics, tiling: Tiling,
    tensors: Sequence[Tensor], buffers: Buffers,
) -> Tree:  # fmt: skip
    """The stages of the whole generation."""
    e = Tree()
    c = Context(
        e=e, model=model, vocab=vocab, workload=workload, hardware=hardware, numerics=numerics, tiling=tiling,
        tensors={tensor.name: tensor for tensor in tensors}, buffers=buffers,
        geometry=model.geometry,
    )  # fmt: skip
    with e.phase("setup"):
        with e.stage("load constants"):
            e.emit("H_LOAD_F", dst=c.fp(next(iter(CONSTANTS))), src=c.hbm("constants"), n=len(CONSTANTS))
            if c.centres:
                e.emit(
                    "H_LOAD_F", dst=c.fp("inverse_tokens"), src=c.hbm("inverse_tokens"), n=workload.forwarded_sequences
                )
            if further := further_constants(model):
                e.emit("H_LOAD_F", dst=c.fp(next(iter(further))), src=c.hbm("further_constants"), n=len(further))
            if model.experts is not None and not workload.samples_only:
                e.emit("H_LOAD_F", dst=c.fp("expert_scale"), src=c.hbm("expert_scale"), n=1)
            if c.measures_entropy:
                e.emit("H_LOAD_F", dst=c.fp("entropy_facts"), src=c.hbm("entropy"), n=2)
            if workload.is_uniform:
                e.emit("H_LOAD_F", dst=c.fp("coolness"), src=c.hbm("coolness"), n=workload.steps_per_block)
            if workload.stop_entropy is not None:
                e.emit("H_LOAD_F", dst=c.fp("stop_entropy"), src=c.hbm("stop_entropy"), n=1)
            if workload.temperature:
                e.emit("H_LOAD_F", dst=c.fp("noise_scale"), src=c.hbm("noise_scale"), n=1)
            if workload.guided:
                e.emit("H_LOAD_F", dst=c.fp("guidance"), src=c.hbm("guidance"), n=1)
            if workload.edits:
                e.emit("H_LOAD_F", dst=c.fp("edit_threshold"), src=c.hbm("edit_threshold"), n=1)
            e.emit("H_LOAD_I", dst=c.integer("constants"), src=c.hbm("integers"), n=2 + workload.block_length)
            for name in ("edge", "window"):
                if (row := c.tensors.get(name)) is not None and not workload.samples_only:
                    e.emit("H_LOAD_V", dst=c.vector(name), src=c.hbm(name), rows=1, cols=row.shape[-1],
                           format=FORMATS[row.format].code, block=LOG2_ROW_BLOCK)  # fmt: skip
        if numerics.smoothing.mixed and not workload.samples_only:
            load_hadamard(c)
        set_keys(c)
        begin_ends(c)
    when = numerics.smoothing.measured
    if workload.caches.appends:
        _append_blocks(c, measuring=when == "once")
        return e
    for block in _blocks_apart(e, workload, tiling, c if c.stops else None, first=when == "once"):
        _block(c, block, measuring=when == "each" or (when == "once" and block.first == 0))
    return e


def _blocks_apart(
    e: Tree, workload: Workload, tiling: Tiling, stops: Context | None, *, first: bool = False
) -> Iterator[Block]:
    """Loops over all blocks; the `first` has one of its own where it alone measures channels, warms up or has no row before it,
    and the last one where it has no neighbours behind it. `stops` is the context of a program that may end before that."""
    period, warms = _period(workload, tiling), workload.caches.warm_up > 1
    apart = {0, tiling.blocks, *([1] if first or warms else []), *([tiling.blocks - 1] if warms else [])}
    goes_on = stops.integer("going") if stops else None
    for begin, end in itertools.pairwise(sorted(apart)):
        if stops and begin > 1:
            count_going_again(stops)
        yield from block_loops(e, begin, end, tiling.blocks, period, goes_on)


def _block(c: Context, block: Block, *, measuring: bool) -> None:
    """The denoising steps of a block; where its warm steps are `measuring`, they look at the channels of K and V first."""
    e, workload, policy, once = c.e, c.workload, c.workload.caches, Level(number=None)
    if workload.samples_only:
        c.step = _streams(c, block, ())
        sample_and_commit(c, block, workload.block_length, by_policy(once, 0))
        return
    first = span_of(workload, c.tiling, policy.first, block)
    enter(c, block)
    if policy.warm_up > 1:
        later, (warm, more) = span_of(workload, c.tiling, policy.later, block), workload.step_loops(block.first)
        kinds = [("remaining", first, warm.most, 0), ("remaining", later, more.most, warm.most)]
        _fill_parts(c, block, kinds)
    elif not policy.caches:
        with e.loop(workload.most_steps, keep=True) as step:
            _step(c, block, step, 0, first, measuring=measuring)
            _leave_if_done(c, step)
    else:
        _step(c, block, once, 0, first, measuring=measuring)
        with e.loop(workload.most_steps, keep=True) as step:
            _leave_if_done(c, step)
            _step(c, block, step, 1, span_of(workload, c.tiling, policy.later, block), measuring=False)
    note_ends(c, block)


def _append_blocks(c: Context, *, measuring: bool) -> None:
    """The prompt's K and V into the cache, then block by block: its first token, its denoising steps, and a clean forward.

    Where no prompt fills a block, each opens the first one: there is no row before it, and no need of one.
    """
    e, model, workload, tiling = c.e, c.model, c.workload, c.tiling
    mask, length, stops = model.mask, workload.block_length, c if c.stops else None
    if tiling.prompt:
        forward(c, prompt_span(workload, tiling, mask), measuring=measuring, clean=True)
    for block in _blocks_apart(e, workload, tiling, stops, first=model.seeded_blocks and not tiling.prompt):
        seeded = model.seeded_blocks and (tiling.prompt or block.first)
        span = block_span(workload, tiling, block)
        enter(c, block)
        if length == 1 and seeded:  # one token a block: sampling is its only step
            with e.loop(1, keep=True) as step:
                _next_token(c, block)
                _leave_if_done(c, step)
        else:
            if seeded:
                _next_token(c, block)
            if workload.is_uniform:
                c.step = _streams(c, block, [(fixed(workload.most_steps), 1)])
                begin_uniform(c, block, span)
            if workload.sub_blocks > 1:
                size = workload.part_length
                kinds = [("remaining", span, size, 0)]
                if workload.sub_block_cache:
                    kinds = [("untold", span, size, 0), ("remaining", None, size, size)]
                _fill_parts(c, block, kinds)
            else:
                with e.loop(workload.most_steps, keep=True) as step:
                    _step(c, block, step, 0, span, measuring=False)
                    _leave_if_done(c, step)
            if workload.is_uniform:
                end_uniform(c, block)
        note_ends(c, block)
        by_row = mask if mask is Mask.CAUSAL and length > 1 else None
        forward(c, block_span(workload, tiling, block, by_row=by_row), measuring=False, clean=True)


def _fill_parts(c: Context, block: Block, kinds: Sequence[tuple[str, Span | None, int, int]]) -> None:
    """The denoising steps of a block whose parts are filled one after the other, or that is one part (`Workload.step_loops`).

    Of each kind of step: the integer that is zero where none is left, the rows that it forwards (None: those of the part), how
    many there are at most, and the number of the first.
    """
    e, workload = c.e, c.workload
    if workload.sub_block_cache:
        with e.phase("commit"), e.stage("nothing cached"):
            e.emit("S_MOV_FP", dst=c.fp("uncached"), a=c.fp("one"))
    with e.loop(workload.sub_blocks, keep=True) as part:
        block = dataclasses.replace(block, part=[(part, workload.part_length)])
        enter_part(c, block)
        for flag, rows, most, first in kinds:
            span = part_span(workload, c.tiling, block) if rows is None else rows
            count_masks(c)
            with e.loop(most + 1, keep=True) as step:
                with e.phase("commit"):
                    e.leave_if_zero(step, c.integer(flag))
                _step(c, block, step, first, span, measuring=False)


def _next_token(c: Context, block: Block) -> None:
    """The first token of a block, where it is masked, from the row before it, whose forward was the last one."""
    c.step = _streams(c, block, [(fixed(c.workload.most_steps), 1)])
    lm_head(c, head_span(c.workload, c.tiling, block, first=-1, count=1))
    sample_and_commit(c, block, 1, every)


def _streams(c: Context, block: Block, step: Steps) -> Steps:
    """Strides in streams of random numbers: those of a block are its steps', the last one that of its first token."""
    if not c.workload.draws:
        return ()
    of_part = times(block.part, 1 + c.workload.sub_block_cache)
    return [*block.steps(c.workload.most_steps + 1), *of_part, *step]


def _step(c: Context, block: Block, step: Level, first_step: int, span: Span, *, measuring: bool) -> None:
    """One denoising step over the rows of a span."""
    forward(c, span, measuring=measuring)
    c.cooling = [(fixed(first_step), 1), (step, 1)]
    c.step = _streams(c, block, c.cooling)
    lm_head(c, _head_span(c.model, c.workload, c.tiling, block), span)
    if c.workload.is_uniform:
        renoise(c, block)
        return
    sample_and_commit(c, block, c.workload.part_length, by_policy(step, first_step))


def _leave_if_done(c: Context, step: Level) -> None:
    """Leave the step loop when no sequence has a mask left in the block, or a change where tokens are edited. The loop has
    more trips than it can use."""
    with c.e.phase("commit"):
        c.e.leave_if_zero(step, c.integer("remaining"))
