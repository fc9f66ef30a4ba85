"""The sampling stage: LM head, streamed Stable-Max, commit of the most confident positions, in-place token update."""

from npu.formats import FORMATS
from npu_compiler.emit import Level
from npu_compiler.lower import Context, segments
from npu_compiler.rows import Span

COMMIT_ROWS = ("confidence", "masked", "chosen", "best", "left")
"""Rows of the commit buffer, one VLEN row each."""


def lm_head(c: Context, span: Span, block: Level) -> None:
    """logits := norm(x) W for the rows of the block, written to HBM in the logit format."""
    e, model = c.e, c.model
    source, normed, stream = c.channels["head_in"], c.channels["head_normed"], c.channels["logits"]
    logits, width = c.layout.tensor("logits"), c.layout.tiling.slice
    fmt, length = FORMATS[c.numerics.logits], c.workload.block_length
    with e.phase("lm_head"):
        e.sync("dma_in", wait=c.semaphores["x_stored"])
        with c.chunks(span, block) as chunk:
            e.sync("dma_in", wait=source.free)
            c.transfer_rows(chunk, "H_LOAD_V", "x", "x", model.hidden)
            c.load_row("final_norm", "norm_weight", model.hidden)
            e.sync("dma_in", signal=source.full)
            e.sync("vector", wait=(source.full, normed.free))
            c.rms_norm(chunk, "x", "h")
            e.sync("vector", signal=(source.free, normed.full))
            e.sync("matrix", wait=normed.full)
            rows = chunk.span.sequences * chunk.span.rows
            for first, count, lanes in segments(model.vocab, width):
                with e.loop(count) as part:
                    e.sync("matrix", wait=stream.free)
                    row_bytes = c.layout.tensor("lm_head").row_bytes
                    c.project(chunk, weights="lm_head", first_row=first, outputs=lanes, inputs=model.hidden, acts="h",
                              dst="logits", dst_width=lanes, steps=[(part, lanes * row_bytes)], ring="logits",
                              ring_stride=rows * width)  # fmt: skip
                    e.sync("matrix", signal=stream.full)
                    steps = [(chunk.batch_loop, span.sequences * length * logits.row_bytes),
                             (part, fmt.row_bytes(lanes, c.numerics.block_size))]  # fmt: skip
                    place = c.hbm("logits", fmt.row_bytes(first, c.numerics.block_size), steps, rows=logits.row_bytes)
                    staged = c.vector("logits", rows=lanes, ring="logits", ring_stride=rows * width)
                    e.emit("H_STORE_V", dst=place, src=staged, rows=rows, cols=lanes, format=fmt.code,
                           block=c.log2_block, wait=stream.full, signal=stream.free)  # fmt: skip
                    e.emit("A_NEXT", ring=stream.ring)
            e.sync("matrix", signal=normed.free)
        e.sync("dma_out", signal=c.semaphores["logits_stored"])


def sample(c: Context, block: Level) -> None:
    """Token and confidence of every position of the block, by streamed Stable-Max over its logits."""
    e, model, length = c.e, c.model, c.workload.block_length
    tokens, stream = c.layout.tensor("tokens"), c.channels["logit_rows"]
    prompt = c.layout.tiling.prompt
    with e.phase("sampling"):
        if c.workload.stage == "generation":
            e.sync("dma_in", wait=c.semaphores["logits_stored"])
        with e.loop(c.workload.batch) as sequence:
            steps = [(block, 4 * length), (sequence, tokens.row_bytes)]
            e.emit("H_LOAD_I", dst=c.integer("tokens", 0, [(sequence, length)]), src=c.hbm("tokens", 4 * prompt, steps),
                   n=length)  # fmt: skip
        e.sync("dma_in", signal=c.semaphores["tokens_loaded"])
        with e.loop(c.workload.batch * length) as position:
            _load_logits(c, position)
            best, place = c.fp("best"), c.integer("sampled", 0, [(position, 1)])
            total = c.fp("confidence", 0, [(position, 1)])
            e.emit("S_MOV_FP", dst=best, a=c.fp("lowest"), wait=stream.full)
            e.emit("S_SET_INT", dst=place, value=0)
            e.emit("S_MOV_FP", dst=total, a=c.fp("zero"))
            for first, count, lanes in segments(model.vocab, c.vlen):
                with e.loop(count) as part:
                    row = c.vector("logit_row", first, [(part, lanes)], ring="logit_rows", ring_stride=model.vocab)
                    e.emit("V_RED_MAX_IDX", best=best, place=place, a=row, n=lanes,
                           first=e.address(first, [(part, lanes)]))  # fmt: skip
            for first, count, lanes in segments(model.vocab, c.vlen):
                with e.loop(count) as part:
                    row = c.vector("logit_row", first, [(part, lanes)], ring="logit_rows", ring_stride=model.vocab)
                    shifted = c.vector("shifted")
                    e.emit("V_SUB_VF", dst=shifted, a=row, scalar=best, n=lanes)
                    e.emit("V_EXP_V", dst=shifted, a=shifted, n=lanes)
                    e.emit("V_RED_SUM", dst=total, a=shifted, n=lanes)
            e.emit("S_RECI_FP", dst=total, a=total, signal=stream.free)
            e.emit("A_NEXT", ring=stream.ring)


def _load_logits(c: Context, position: Level) -> None:
    """One row of logits into the next buffer, in as many descriptors as the hardware needs."""
    e, model, stream = c.e, c.model, c.channels["logit_rows"]
    logits, fmt = c.layout.tensor("logits"), FORMATS[c.numerics.logits]
    limit = model.vocab if c.hardware.prefetch_rows is None else c.hardware.prefetch_rows * c.vlen
    pieces = segments(model.vocab, limit)
    alone = len(pieces) == 1 and pieces[0][1] == 1
    if not alone:
        e.sync("dma_in", wait=stream.free)
    for first, count, lanes in pieces:
        with e.loop(count) as part:
            src = c.hbm(
                "logits",
                fmt.row_bytes(first, c.numerics.block_size),
                [(position, logits.row_bytes), (part, fmt.row_bytes(lanes, c.numerics.block_size))],
            )
            dst = c.vector("logit_row", first, [(part, lanes)], ring="logit_rows", ring_stride=model.vocab)
            e.emit("H_LOAD_V", dst=dst, src=src, rows=1, cols=lanes, format=fmt.code, block=c.log2_block,
                   wait=stream.free if alone else (), signal=stream.full if alone else ())  # fmt: skip
    if not alone:
        e.sync("dma_in", signal=stream.full)


def commit(c: Context, block: Level, step: Level, first_step: int) -> None:
    """Write the tokens of the positions to commit into the canvas; `remaining` counts the masks that are left."""
    e, length, tokens = c.e, c.workload.block_length, c.layout.tensor("tokens")
    row = {name: c.vector("commit", number * c.vlen) for number, name in enumerate(COMMIT_ROWS)}
    mask_id, one = c.integer("constants", 0), c.integer("constants", 1)
    with e.phase("commit"):
        e.sync("vector", wait=c.semaphores["tokens_loaded"])
        e.emit("S_SET_INT", dst=c.integer("remaining"), value=0)
        with e.loop(c.workload.batch) as sequence:
            ids = c.integer("tokens", 0, [(sequence, length)])
            sampled = c.integer("sampled", 0, [(sequence, length)])
            e.emit("S_MAP_V_FP", dst=row["confidence"], a=c.fp("confidence", 0, [(sequence, length)]), n=length)
            e.emit("V_CMP_EQ_INT", dst=row["masked"], a=ids, key=mask_id, n=length)
            if c.workload.commit == "quota":
                quota = c.integer("quota", first_step, [(step, 1)])
                e.emit("V_TOPK_MASK", dst=row["chosen"], a=row["confidence"], mask=row["masked"], count=quota, n=length)
            else:
                e.emit("V_CMP_GE_VF", dst=row["chosen"], a=row["confidence"], scalar=c.fp("threshold"), n=length)
                e.emit("V_MUL_VV", dst=row["chosen"], a=row["chosen"], b=row["masked"], n=length)
                e.emit("V_TOPK_MASK", dst=row["best"], a=row["confidence"], mask=row["masked"], count=one, n=length)
                e.emit("V_MAX_VV", dst=row["chosen"], a=row["chosen"], b=row["best"], n=length)
            e.emit("V_SELECT_INT", dst=ids, mask=row["chosen"], on_true=sampled, on_false=ids, n=length)
            e.emit("V_CMP_EQ_INT", dst=row["left"], a=ids, key=mask_id, n=length)
            e.emit("V_RED_COUNT", dst=c.integer("remaining"), mask=row["left"], n=length)
        e.sync("vector", signal=(c.semaphores["committed"], c.semaphores["flag"]))
        e.sync("dma_out", wait=c.semaphores["committed"])
        with e.loop(c.workload.batch) as sequence:
            steps = [(block, 4 * length), (sequence, tokens.row_bytes)]
            e.emit("H_STORE_I", dst=c.hbm("tokens", 4 * c.layout.tiling.prompt, steps),
                   src=c.integer("tokens", 0, [(sequence, length)]), n=length)  # fmt: skip
        e.sync("dma_out", signal=c.semaphores["tokens_stored"])
