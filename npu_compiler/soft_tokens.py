"""Soft tokens: the embeddings that the distributions of a step expect, summed up slice by slice of the vocabulary as logits come.

Like attention over the vocabulary: the shares of a slice, exp(logit - largest so far), times its embeddings; what was summed up
before is rescaled as the largest logit grows, and the sum of all shares divides it at the end.
"""

from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.rows import times
from npu_compiler.stages import Level


def clear_soft_tokens(c: Context, flow: Flow) -> None:
    """No embedding has been summed up."""
    with c.e.stage("clear soft tokens"):
        for offset, piece, lanes in c.wide(c.model.hidden):
            with flow.chunk.each(c.e) as rows:
                row = c.vector("soft", offset, [*piece, *times(rows, c.model.hidden)])
                c.e.emit("V_FILL_VF", dst=row, scalar=c.fp("zero"), n=lanes)


def add_slice(c: Context, flow: Flow, first: int, part: Level, width: int, lanes: int) -> None:
    """The embeddings of the slice of the vocabulary from `first` + `part` * `width` on, of which the first `lanes` are tokens, in
    proportion to the shares that lie in the buffer of that name."""
    e, hidden = c.e, c.model.hidden
    if lanes < width:
        with e.stage("no shares beyond the vocabulary"), flow.chunk.each(e) as rows:
            rest = c.vector("shares", lanes, times(rows, width))
            e.emit("V_FILL_VF", dst=rest, scalar=c.fp("zero"), n=width - lanes)
    number = first // c.tiling.slice * hidden
    c.project(flow, weights="soft_embedding", first_row=number, outputs=hidden, inputs=width, acts="shares", dst="soft_part",
              steps=[(part, hidden)])  # fmt: skip
    with e.stage("rescale soft tokens"):
        _rescale(c, flow)
    with e.stage("add the slice"):
        c.add_rows(flow.chunk, "soft", "soft_part", hidden)


def _rescale(c: Context, flow: Flow) -> None:
    """Each row times its own number in `rescale`."""
    for offset, piece, lanes in c.wide(c.model.hidden):
        with flow.chunk.each(c.e) as rows:
            row = c.vector("soft", offset, [*piece, *times(rows, c.model.hidden)])
            c.e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("rescale", 0, rows), n=lanes)


def store_soft_tokens(c: Context, flow: Flow) -> None:
    """Sums over the sum of all shares, which `rescale` holds the reciprocal of, in the scale of embeddings, to HBM."""
    hidden = c.model.hidden
    with c.e.stage("divide by the sum of shares"):
        _rescale(c, flow)
        if c.model.embedding_scale != 1:
            c.scale_rows(flow.chunk, "soft", hidden, "embedding_scale")
    with c.e.stage("store soft tokens"):
        c.transfer_rows(flow.chunk, "H_STORE_V", "soft", "soft", hidden)
