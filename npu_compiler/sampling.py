"""The sampling stage: LM head, streamed Stable-Max, commit of the most confident positions, in-place token update."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from dllm.policies import Commit
from npu.formats import FORMATS
from npu_compiler.buffers import COMMIT_ROWS
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.operators import load, lower
from npu_compiler.rows import Block, Span, segments
from npu_compiler.stages import Level, Place


def lm_head(c: Context, span: Span) -> None:
    """logits := norm(x) W for the rows of the block, written to HBM in the logit format."""
    operators = c.model.network.head
    with c.e.phase("lm_head"):
        for chunk in c.chunks(span):
            flow = Flow(chunk=chunk)
            with c.e.stage("load rows"):
                c.transfer_rows(chunk, "H_LOAD_V", "x", "x", c.model.hidden)
                load(operators, c, flow)
            lower(operators, c, flow)


def sample(c: Context, block: Block, length: int) -> None:
    """Token and confidence of the first `length` positions of the block, by streamed Stable-Max over their logits."""
    e, tokens = c.e, c.tensor("tokens")
    with e.phase("sampling"):
        with e.stage("load tokens"), e.loop(c.workload.batch) as sequence:
            steps = [*block.steps(4 * c.workload.block_length), (sequence, tokens.row_bytes)]
            e.emit("H_LOAD_I", dst=c.integer("tokens", 0, [(sequence, length)]),
                   src=c.hbm("tokens", 4 * c.tiling.prompt, steps), n=length)  # fmt: skip
        with e.loop(c.workload.batch * length) as position:
            with e.stage("load logits"):
                _load_logits(c, position)
            with e.stage("stable max"):
                _stable_max(c, position)
            c.advance("logit_rows")


def _stable_max(c: Context, position: Level) -> None:
    """The largest logit of a position with its index, and the reciprocal of the sum of exp(logit - largest)."""
    e, vocab = c.e, c.model.vocab
    best, index = c.fp("best"), c.integer("sampled", 0, [(position, 1)])
    total = c.fp("confidence", 0, [(position, 1)])
    e.emit("S_MOV_FP", dst=best, a=c.fp("lowest"))
    e.emit("S_SET_INT", dst=index, value=0)
    e.emit("S_MOV_FP", dst=total, a=c.fp("zero"))
    for first, count, lanes in segments(vocab, c.vlen):
        with e.loop(count) as part:
            row = c.vector("logit_row", first, [(part, lanes)], slot_stride=vocab)
            number = c.number(first, [(part, lanes)])
            e.emit("V_RED_MAX_IDX", best=best, place=index, a=row, n=lanes, first=number)
    for first, count, lanes in segments(vocab, c.vlen):
        with e.loop(count) as part:
            row, shifted = c.vector("logit_row", first, [(part, lanes)], slot_stride=vocab), c.vector("shifted")
            e.emit("V_SUB_VF", dst=shifted, a=row, scalar=best, n=lanes)
            e.emit("V_EXP_V", dst=shifted, a=shifted, n=lanes)
            e.emit("V_RED_SUM", dst=total, a=shifted, n=lanes)
    e.emit("S_RECI_FP", dst=total, a=total)


def _load_logits(c: Context, position: Level) -> None:
    """One row of logits, in as many descriptors as the hardware needs."""
    e, model, logits, fmt = c.e, c.model, c.tensor("logits"), FORMATS[c.numerics.logits]
    limit = model.vocab if c.hardware.prefetch_rows is None else c.hardware.prefetch_rows * c.vlen
    for first, count, lanes in segments(model.vocab, limit):
        with e.loop(count) as part:
            steps = [(position, logits.row_bytes), (part, fmt.row_bytes(lanes, c.numerics.block_size))]
            src = c.hbm("logits", fmt.row_bytes(first, c.numerics.block_size), steps)
            dst = c.vector("logit_row", first, [(part, lanes)], slot_stride=model.vocab)
            e.emit("H_LOAD_V", dst=dst, src=src, rows=1, cols=lanes, format=fmt.code, block=c.log2_block)


Choose: TypeAlias = Callable[[Context, Mapping[str, Place], int], None]
"""Makes the row `chosen` of the commit buffer: which masked positions of a sequence become tokens, of so many."""


def commit(c: Context, block: Block, length: int, choose: Choose) -> None:
    """Write the tokens of the chosen of `length` positions into the canvas; `remaining` counts the masks that are left."""
    e, tokens = c.e, c.tensor("tokens")
    row = {name: c.vector("commit", number * c.vlen) for number, name in enumerate(COMMIT_ROWS)}
    mask_id = c.integer("constants", 0)
    with e.phase("commit"):
        with e.stage("commit"):
            e.emit("S_SET_INT", dst=c.integer("remaining"), value=0)
            with e.loop(c.workload.batch) as sequence:
                ids = c.integer("tokens", 0, [(sequence, length)])
                sampled = c.integer("sampled", 0, [(sequence, length)])
                e.emit("S_MAP_V_FP", dst=row["confidence"], a=c.fp("confidence", 0, [(sequence, length)]), n=length)
                e.emit("V_CMP_EQ_INT", dst=row["masked"], a=ids, key=mask_id, n=length)
                choose(c, row, length)
                e.emit("V_SELECT_INT", dst=ids, mask=row["chosen"], on_true=sampled, on_false=ids, n=length)
                e.emit("V_CMP_EQ_INT", dst=row["left"], a=ids, key=mask_id, n=length)
                e.emit("V_RED_COUNT", dst=c.integer("remaining"), mask=row["left"], n=length)
        with e.stage("store tokens"), e.loop(c.workload.batch) as sequence:
            steps = [*block.steps(4 * c.workload.block_length), (sequence, tokens.row_bytes)]
            e.emit("H_STORE_I", dst=c.hbm("tokens", 4 * c.tiling.prompt, steps),
                   src=c.integer("tokens", 0, [(sequence, length)]), n=length)  # fmt: skip


def every(c: Context, row: Mapping[str, Place], length: int) -> None:
    """All masked positions."""
    c.e.emit("V_MUL_VV", dst=row["chosen"], a=row["masked"], b=row["masked"], n=length)


def by_policy(step: Level, first_step: int) -> Choose:
    """What the commit policy takes at a step."""

    def choose(c: Context, row: Mapping[str, Place], length: int) -> None:
        masked = {"a": row["confidence"], "mask": row["masked"], "n": length}
        match c.workload.commits:
            case Commit.QUOTA:
                quota = c.integer("quota", first_step, [(step, 1)])
                c.e.emit("V_TOPK_MASK", dst=row["chosen"], count=quota, **masked)
            case Commit.THRESHOLD:
                threshold, one = c.fp("threshold"), c.integer("constants", 1)
                c.e.emit("V_CMP_GE_VF", dst=row["chosen"], a=row["confidence"], scalar=threshold, n=length)
                c.e.emit("V_MUL_VV", dst=row["chosen"], a=row["chosen"], b=row["masked"], n=length)
                c.e.emit("V_TOPK_MASK", dst=row["best"], count=one, **masked)
                c.e.emit("V_MAX_VV", dst=row["chosen"], a=row["chosen"], b=row["best"], n=length)
            case other:
                raise AssertionError(f"{other} has no lowering, and `reference_only` refuses it")

    return choose
