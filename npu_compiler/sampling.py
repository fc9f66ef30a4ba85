"""The sampling stage: LM head, streamed Stable-Max, commit of the most confident positions, in-place token update."""

from collections.abc import Callable, Mapping
from typing import TypeAlias, assert_never

from dllm.noise import Purpose
from dllm.policies import Take
from npu.formats import FORMATS
from npu_compiler.arrangement import Sampling
from npu_compiler.buffers import COMMIT_ROWS, EDIT_ROWS
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.operators import load, lower
from npu_compiler.rows import Block, Span, segments
from npu_compiler.stages import Level, Place


def lm_head(c: Context, span: Span, forwarded: Span | None = None) -> None:
    """Logits of the rows of the block, norm(x) W: to HBM, or sampled as they come; `forwarded` are the rows that are in Vector
    SRAM."""
    operators = c.model.network.head
    kept = forwarded is not None and c.keeps(forwarded) and span.has_rows_of(forwarded)
    with c.e.phase("lm_head"):
        for chunk in c.chunks(span):
            flow = Flow(chunk=chunk)
            with c.e.stage("load rows"):
                if not kept:
                    c.transfer_rows(chunk, "H_LOAD_V", "x", "x", c.model.hidden)
                load(operators, c, flow)
            lower(operators, c, flow)


def sample_and_commit(c: Context, block: Block, length: int, choose: "Choose") -> None:
    """Tokens in the place of masks, of the first `length` positions of a block: by the core, or by its host."""
    match c.tiling.arrangement.sampling:
        case Sampling.STORED | Sampling.FUSED:
            sample(c, block, length)
            commit(c, block, length, choose)
        case Sampling.HOST:
            hand_over(c, block, length)
        case other:
            assert_never(other)


def hand_over(c: Context, block: Block, length: int) -> None:
    """Let the host sample the first `length` positions of a block; `remaining` counts the masks that are left."""
    e, tokens, logits = c.e, c.tensor("tokens"), c.tensor("logits")
    with e.phase("host"):
        e.hand_over(
            logits=c.hbm("logits", rows=length * logits.row_bytes),
            tokens=c.hbm("tokens", 4 * c.tiling.prompt, block.places(c.workload.block_length, 4), rows=tokens.row_bytes),
            left=c.hbm("remaining"), rows=c.workload.batch, sent=length * logits.row_bytes, taken=4 * length,
        )  # fmt: skip
        with e.stage("load remaining"):
            e.emit("H_LOAD_I", dst=c.integer("remaining"), src=c.hbm("remaining"), n=1)


def sample(c: Context, block: Block, length: int) -> None:
    """The tokens of the first `length` positions of the block as they are; and where logits were stored, token and confidence by
    streamed Stable-Max over them."""
    e = c.e
    with e.phase("sampling"):
        with e.stage("load tokens"):
            _load_tokens(c, block, "tokens", length)
        if c.tiling.arrangement.fuses_sampling:
            return
        with e.loop(c.workload.batch * length) as position:
            with e.stage("load logits"):
                _load_logits(c, position, "logit_row")
                if c.workload.guided:
                    _load_logits(c, position, "unguided", first_row=c.workload.batch * length)
            if c.workload.guided:
                with e.stage("guide"):
                    _guide(c)
            with e.stage("stable max"):
                _stable_max(c, position, length)
            c.advance("logit_rows")


def enter(c: Context, block: Block) -> None:
    """The tokens of a block as they are before its first step, where it matters which of them it fills: those it may edit, or may
    end with."""
    if not c.workload.edits and (not c.stops or c.workload.is_uniform):
        return
    with c.e.phase("commit"), c.e.stage("load tokens at entry"):
        _load_tokens(c, block, "entered", c.workload.block_length)


def _load_tokens(c: Context, block: Block, buffer: str, length: int) -> None:
    """The first `length` tokens of a block, or of the part that is filled, into a buffer of Int SRAM."""
    with c.e.loop(c.workload.batch) as sequence:
        steps = [*block.places(c.workload.block_length, 4), (sequence, c.tensor("tokens").row_bytes)]
        c.e.emit("H_LOAD_I", dst=c.integer(buffer, 0, [(sequence, length)]),
                 src=c.hbm("tokens", 4 * c.tiling.prompt, steps), n=length)  # fmt: skip


def enter_part(c: Context, block: Block) -> None:
    """The tokens of the part of a block that is filled, as they are before its first step."""
    with c.e.phase("commit"), c.e.stage("load tokens of the sub-block"):
        _load_tokens(c, block, "tokens", c.workload.part_length)


def count_masks(c: Context) -> None:
    """The masks of the part of a block that is filled: how many are left, and whether a step has to forward the whole block."""
    e, workload, row = c.e, c.workload, _commit_rows(c)
    length = workload.part_length
    with e.phase("commit"), e.stage("count masks"):
        _begin_counts(c)
        with e.loop(workload.batch) as sequence:
            ids = c.integer("tokens", 0, [(sequence, length)])
            e.emit("V_CMP_EQ_INT", dst=row["left"], a=ids, key=c.integer("constants", 0), n=length)
            _count_left(c, row["left"], length)
            if workload.sub_block_cache:  # nothing of the block is in the cache yet
                e.emit("V_MUL_VF", dst=row["left"], a=row["left"], scalar=c.fp("uncached"), n=length)
                e.emit("V_RED_COUNT", dst=c.integer("untold"), mask=row["left"], n=length)


def _begin_counts(c: Context) -> None:
    """No mask is counted yet."""
    c.e.emit("S_SET_INT", dst=c.integer("remaining"), value=0)
    if c.workload.sub_block_cache:
        c.e.emit("S_SET_INT", dst=c.integer("untold"), value=0)


def _count_left(c: Context, left: Place, length: int) -> None:
    """Add a sequence's masks to `remaining`, and its first position to `untold` if that is one."""
    c.e.emit("V_RED_COUNT", dst=c.integer("remaining"), mask=left, n=length)
    if c.workload.sub_block_cache:
        c.e.emit("V_RED_COUNT", dst=c.integer("untold"), mask=left, n=1)


def _commit_rows(c: Context) -> dict[str, Place]:
    return {name: c.vector("commit", number * c.vlen) for number, name in enumerate(COMMIT_ROWS)}


def set_keys(c: Context) -> None:
    """Where tokens or commits are drawn: the keys of the random numbers."""
    if not c.workload.draws:
        return
    with c.e.stage("keys"):
        for place in (*Purpose,) if c.workload.is_uniform else (Purpose.SAMPLING, Purpose.RANKING):
            c.e.emit("S_SET_INT", dst=c.integer("key", place), value=c.workload.seed)
            c.e.emit("S_SET_INT", dst=c.integer("key", place + 1), value=place)


def begin_ends(c: Context) -> None:
    """Where a generation may stop: no sequence has an end token yet."""
    if not c.stops:
        return
    e = c.e
    with e.stage("no end token yet"):
        for number, value in enumerate((*c.model.end_ids, 0)):
            e.emit("S_SET_INT", dst=c.integer("end_id", number), value=value)
        with e.loop(c.workload.batch) as sequence:
            e.emit("S_SET_INT", dst=c.integer("ends", 0, [(sequence, 1)]), value=0)


def note_ends(c: Context, block: Block) -> None:
    """Where a generation may stop: `ends` counts the end tokens that each sequence generated, `going` the sequences without."""
    if not c.stops:
        return
    e, length, batch = c.e, c.workload.block_length, c.workload.batch
    row = _commit_rows(c)
    filled, end, other = row["masked"], row["chosen"], row["best"]
    if c.workload.sub_blocks > 1:
        with e.phase("commit"), e.stage("load tokens at end"):
            _load_tokens(c, block, "tokens", length)
    with e.phase("commit"), e.stage("note end tokens"):
        with e.loop(batch) as sequence:
            uniform = c.workload.is_uniform
            ids = c.integer("settled" if uniform else "tokens", 0, [(sequence, length)])
            if uniform:
                e.emit("V_FILL_VF", dst=filled, scalar=c.fp("one"), n=length)
            else:
                entered = c.integer("entered", 0, [(sequence, length)])
                e.emit("V_CMP_EQ_INT", dst=filled, a=entered, key=c.integer("constants", 0), n=length)
            e.emit("V_CMP_EQ_INT", dst=end, a=ids, key=c.integer("end_id"), n=length)
            for number in range(1, len(c.model.end_ids)):
                e.emit("V_CMP_EQ_INT", dst=other, a=ids, key=c.integer("end_id", number), n=length)
                e.emit("V_MAX_VV", dst=end, a=end, b=other, n=length)
            e.emit("V_MUL_VV", dst=end, a=end, b=filled, n=length)
            e.emit("V_RED_COUNT", dst=c.integer("ends", 0, [(sequence, 1)]), mask=end, n=length)
        _count_going(c)


def count_going_again(c: Context) -> None:
    """`going` as it is, from the vector unit once more: what leaves a loop by it has to enter it with a new value."""
    with c.e.phase("commit"), c.e.stage("count sequences that go on"):
        _count_going(c)


def _count_going(c: Context) -> None:
    end = c.vector("commit", COMMIT_ROWS.index("chosen") * c.vlen)
    c.e.emit("S_SET_INT", dst=c.integer("going"), value=0)
    for first, count, lanes in segments(c.workload.batch, c.vlen):
        with c.e.loop(count) as part:
            ends = c.integer("ends", first, [(part, lanes)])
            c.e.emit("V_CMP_EQ_INT", dst=end, a=ends, key=c.integer("end_id", len(c.model.end_ids)), n=lanes)
            c.e.emit("V_RED_COUNT", dst=c.integer("going"), mask=end, n=lanes)


def _stable_max(c: Context, position: Level, length: int) -> None:
    """Token and confidence of one of `length` positions of each sequence: the index of its largest logit, and the reciprocal of
    the sum of exp(logit - largest); or the index that is drawn, and the share of its logit in that sum."""
    e, vocab, pitch, drawn = c.e, c.vocab, c.model.vocab, bool(c.workload.temperature)
    best, index = c.fp("best"), c.integer("sampled", 0, [(position, 1)])
    total = c.fp("confidence", 0, [(position, 1)])
    e.emit("S_MOV_FP", dst=best, a=c.fp("lowest"))
    e.emit("S_SET_INT", dst=index, value=0)
    e.emit("S_MOV_FP", dst=total, a=c.fp("zero"))
    entropy, spread = c.fp("entropy", 0, [(position, 1)]), c.fp("spread")
    row_of_block = [(position, c.workload.block_length // length)]
    if drawn:
        e.emit("S_MOV_FP", dst=c.fp("noisy"), a=c.fp("lowest"))
    if c.measures_entropy:
        e.emit("S_MOV_FP", dst=spread, a=c.fp("zero"))
    for first, count, lanes in segments(vocab, c.vlen):
        with e.loop(count) as part:
            row = c.vector("logit_row", first, [(part, lanes)], slot_stride=pitch)
            number = c.number(first, [(part, lanes)])
            if drawn:
                e.emit("V_RED_MAX", dst=best, a=row, n=lanes)
                e.emit("V_RED_SAMPLE_IDX", best=c.fp("noisy"), place=index, a=row, n=lanes, first=number,
                       scale=c.fp("noise_scale"), key=c.integer("key", Purpose.SAMPLING),
                       stream=c.stream(row_of_block))  # fmt: skip
            else:
                e.emit("V_RED_MAX_IDX", best=best, place=index, a=row, n=lanes, first=number)
    for first, count, lanes in segments(vocab, c.vlen):
        with e.loop(count) as part:
            row, shifted = c.vector("logit_row", first, [(part, lanes)], slot_stride=pitch), c.vector("shifted")
            if c.hardware.fused_exponential and not c.measures_entropy:
                e.emit("V_EXP_SUM_VF", dst=shifted, sum=total, a=row, scalar=best, n=lanes)
                continue
            e.emit("V_SUB_VF", dst=shifted, a=row, scalar=best, n=lanes)
            shares = c.vector("shares") if c.measures_entropy else shifted
            e.emit("V_EXP_V", dst=shares, a=shifted, n=lanes)
            e.emit("V_RED_SUM", dst=total, a=shares, n=lanes)
            if c.measures_entropy:
                e.emit("V_MUL_VV", dst=shifted, a=shifted, b=shares, n=lanes)
                e.emit("V_RED_SUM", dst=spread, a=shifted, n=lanes)
    if c.measures_entropy:
        e.emit("S_LOG2_FP", dst=entropy, a=total)
        e.emit("S_MUL_FP", dst=entropy, a=entropy, b=c.fp("entropy_facts", 1))
    e.emit("S_RECI_FP", dst=total, a=total)
    if c.measures_entropy:
        e.emit("S_MUL_FP", dst=spread, a=spread, b=total)
        e.emit("S_SUB_FP", dst=entropy, a=entropy, b=spread)
    if drawn:
        value = c.fp("noisy", 1)
        e.emit("S_SUB_FP", dst=value, a=value, b=best)
        e.emit("S_EXP_FP", dst=value, a=value)
        e.emit("S_MUL_FP", dst=total, a=total, b=value)


def _guide(c: Context) -> None:
    """z := z' + (1 + w) (z - z'), where z are the logits of a position and z' those with the prompt masked."""
    for first, count, lanes in segments(c.vocab, c.vlen):
        with c.e.loop(count) as part:
            row, other = (
                c.vector(name, first, [(part, lanes)], slot_stride=c.model.vocab) for name in ("logit_row", "unguided")
            )
            c.e.emit("V_SUB_VV", dst=row, a=row, b=other, n=lanes)
            c.e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("guidance"), n=lanes)
            c.e.emit("V_ADD_VV", dst=row, a=row, b=other, n=lanes)


def _load_logits(c: Context, position: Level, buffer: str, first_row: int = 0) -> None:
    """One row of logits from `first_row` on, in as many descriptors as the hardware needs."""
    e, model, logits, fmt = c.e, c.model, c.tensor("logits"), FORMATS[c.numerics.logits]
    limit = model.vocab if c.hardware.prefetch_rows is None else c.hardware.prefetch_rows * c.vlen
    for first, count, lanes in segments(model.vocab, limit):
        with e.loop(count) as part:
            steps = [(position, logits.row_bytes), (part, fmt.row_bytes(lanes, c.numerics.block_size))]
            begin = first_row * logits.row_bytes + fmt.row_bytes(first, c.numerics.block_size)
            src = c.hbm("logits", begin, steps)
            dst = c.vector(buffer, first, [(part, lanes)], slot_stride=model.vocab)
            e.emit("H_LOAD_V", dst=dst, src=src, rows=1, cols=lanes, format=fmt.code, block=c.log2_block)


Choose: TypeAlias = Callable[[Context, Mapping[str, Place], int], None]
"""Makes the row `chosen` of the commit buffer: which masked positions of a sequence become tokens, of so many."""


def commit(c: Context, block: Block, length: int, choose: Choose) -> None:
    """Write the tokens of the chosen of `length` positions into the canvas; `remaining` counts the masks that are left."""
    e, row = c.e, _commit_rows(c)
    mask_id = c.integer("constants", 0)
    with e.phase("commit"):
        with e.stage("commit"):
            _begin_counts(c)
            if c.workload.sub_block_cache:
                e.emit("S_MOV_FP", dst=c.fp("uncached"), a=c.fp("zero"))
            with e.loop(c.workload.batch) as sequence:
                ids = c.integer("tokens", 0, [(sequence, length)])
                sampled = c.integer("sampled", 0, [(sequence, length)])
                if c.workload.ranks_at_random:
                    e.emit("V_RANDOM_V", dst=row["confidence"], key=c.integer("key", Purpose.RANKING), entry=c.number(0),
                           stream=c.stream([(sequence, c.workload.block_length)]), n=length)  # fmt: skip
                else:
                    ranks = c.fp("entropy" if c.measures_entropy else "confidence", 0, [(sequence, length)])
                    e.emit("S_MAP_V_FP", dst=row["confidence"], a=ranks, n=length)
                e.emit("V_CMP_EQ_INT", dst=row["masked"], a=ids, key=mask_id, n=length)
                choose(c, row, length)
                if c.workload.edits:
                    _edit(c, row, sequence, length)
                e.emit("V_SELECT_INT", dst=ids, mask=row["chosen"], on_true=sampled, on_false=ids, n=length)
                e.emit("V_CMP_EQ_INT", dst=row["left"], a=ids, key=mask_id, n=length)
                _count_left(c, row["left"], length)
        store_tokens(c, block, "tokens", length)


def store_tokens(c: Context, block: Block, buffer: str, length: int) -> None:
    """The first `length` tokens of a block, or of the part that is filled, from a buffer of Int SRAM into the canvas."""
    e, tokens, batch = c.e, c.tensor("tokens"), c.workload.batch
    with e.stage("store tokens"):
        for first in range(0, c.workload.forwarded_sequences, batch):
            with e.loop(batch) as sequence:
                steps = [*block.places(c.workload.block_length, 4), (sequence, tokens.row_bytes)]
                e.emit("H_STORE_I", dst=c.hbm("tokens", 4 * c.tiling.prompt + first * tokens.row_bytes, steps),
                       src=c.integer(buffer, 0, [(sequence, length)]), n=length)  # fmt: skip


def _edit(c: Context, row: Mapping[str, Place], sequence: Level, length: int) -> None:
    """Choose also the tokens that this block committed and that are sure to be others; `remaining` counts what changes."""
    e, mask_id = c.e, c.integer("constants", 0)
    edit = {name: c.vector("edit", number * c.vlen) for number, name in enumerate(EDIT_ROWS)}
    entered = c.integer("entered", 0, [(sequence, length)])
    e.emit("V_CMP_EQ_INT", dst=edit["placed"], a=entered, key=mask_id, n=length)
    e.emit("V_CMP_GE_VF", dst=edit["sure"], a=row["confidence"], scalar=c.fp("edit_threshold"), n=length)
    e.emit("V_MUL_VV", dst=edit["sure"], a=edit["sure"], b=edit["placed"], n=length)
    invert(c, edit["placed"], row["masked"], length)
    e.emit("V_MUL_VV", dst=edit["sure"], a=edit["sure"], b=edit["placed"], n=length)
    e.emit("V_MAX_VV", dst=row["chosen"], a=row["chosen"], b=edit["sure"], n=length)
    with e.loop(length) as position:
        e.emit("V_CMP_EQ_INT", dst=c.vector("edit", EDIT_ROWS.index("same") * c.vlen, [(position, 1)]),
               a=c.integer("tokens", 0, [(sequence, length), (position, 1)]),
               key=c.integer("sampled", 0, [(sequence, length), (position, 1)]), n=1)  # fmt: skip
    invert(c, edit["same"], edit["same"], length)
    e.emit("V_MUL_VV", dst=edit["same"], a=edit["same"], b=row["chosen"], n=length)
    e.emit("V_RED_COUNT", dst=c.integer("remaining"), mask=edit["same"], n=length)


def invert(c: Context, target: Place, row: Place, length: int) -> None:
    """target := 1 - row."""
    c.e.emit("V_MUL_VF", dst=target, a=row, scalar=c.fp("minus_one"), n=length)
    c.e.emit("V_ADD_VF", dst=target, a=target, scalar=c.fp("one"), n=length)


def every(c: Context, row: Mapping[str, Place], length: int) -> None:
    """All masked positions."""
    c.e.emit("V_MUL_VV", dst=row["chosen"], a=row["masked"], b=row["masked"], n=length)


def by_policy(step: Level, first_step: int) -> Choose:
    """The choice of positions by the commit policy at a step."""

    def take(c: Context, row: Mapping[str, Place], length: int, taken: Take, target: Place) -> None:
        masked = {"a": row["confidence"], "mask": row["masked"], "n": length}
        match taken:
            case Take.QUOTA:
                c.e.emit("V_TOPK_MASK", dst=target, count=c.integer("quota", first_step, [(step, 1)]), **masked)
            case Take.SURE:
                c.e.emit("V_CMP_GE_VF", dst=target, a=row["confidence"], scalar=c.fp("threshold"), n=length)
                c.e.emit("V_MUL_VV", dst=target, a=target, b=row["masked"], n=length)
            case Take.BEST:
                c.e.emit("V_TOPK_MASK", dst=target, count=c.integer("constants", 1), **masked)
            case Take.EVERY:
                c.e.emit("V_MUL_VV", dst=target, a=row["masked"], b=row["masked"], n=length)
            case Take.WITHIN_BOUND:
                c.e.emit("V_BUDGET_MASK", dst=target, budget=c.fp("entropy_facts"), **masked)
            case other:
                raise AssertionError(f"{other} has no lowering, and `reference_only` refuses it")

    def choose(c: Context, row: Mapping[str, Place], length: int) -> None:
        first, *others = c.workload.commits.takes
        take(c, row, length, first, row["chosen"])
        for each in others:
            take(c, row, length, each, row["best"])
            c.e.emit("V_MAX_VV", dst=row["chosen"], a=row["chosen"], b=row["best"], n=length)

    return choose
