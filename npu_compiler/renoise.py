"""Uniform diffusion: a block begins as random tokens, each step keeps those that entropies admit and draws the others anew, and
the likeliest tokens of the last step are its output."""

from dllm.noise import Purpose
from npu_compiler.buffers import COMMIT_ROWS
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.rows import Block, Span
from npu_compiler.sampling import invert, store_tokens
from npu_compiler.soft_tokens import clear_soft_tokens
from npu_compiler.stages import Level


def begin_uniform(c: Context, block: Block, span: Span) -> None:
    """Random tokens in a block, of which nothing is known; `span` are its rows."""
    e, length = c.e, c.workload.block_length
    with e.phase("commit"):
        with e.stage("random tokens"), e.loop(c.workload.batch) as sequence:
            _draw(c, "tokens", sequence, [(sequence, length)])
            e.emit("S_MOV_FP", dst=c.fp("alive", 0, [(sequence, 1)]), a=c.fp("one"))
        with e.stage("nothing is settled"), e.loop(c.workload.batch * length) as position:
            e.emit("S_SET_INT", dst=c.integer("settled", 0, [(position, 1)]), value=c.vocab)
        store_tokens(c, block, "tokens", length)
        if c.conditions:
            for chunk in c.chunks(span):
                clear_soft_tokens(c, Flow(chunk=chunk))
                with e.stage("store soft tokens"):
                    c.transfer_rows(chunk, "H_STORE_V", "soft", "soft", c.model.hidden)


def _draw(c: Context, buffer: str, sequence: Level, steps: list[tuple[Level, int]]) -> None:
    """Random tokens of the whole vocabulary for the positions of a sequence's block."""
    length = c.workload.block_length
    c.e.emit("V_RANDOM_INT", dst=c.integer(buffer, 0, steps), key=c.integer("key", Purpose.CANVAS), entry=c.number(0),
             stream=c.stream([(sequence, length)]), bound=c.vocab, n=length)  # fmt: skip


def renoise(c: Context, block: Block) -> None:
    """Keep the drawn tokens that entropies admit, draw the others anew; `remaining` counts the sequences that are not done.

    A sequence is done once its likeliest tokens are those of the step before and its mean entropy is low: `settled` then stays.
    """
    e, length, entropy_sum, restless = c.e, c.workload.block_length, c.fp("entropy_sum"), c.fp("restless")
    row = {name: c.vector("commit", number * c.vlen) for number, name in enumerate(COMMIT_ROWS)}
    with e.phase("commit"):
        with e.stage("renoise"):
            e.emit("S_SET_INT", dst=c.integer("remaining"), value=0)
            with e.loop(c.workload.batch) as sequence:
                own = [(sequence, length)]
                ids, sampled, likeliest, settled = (
                    c.integer(name, 0, own) for name in ("tokens", "sampled", "likeliest", "settled")
                )
                alive = c.fp("alive", 0, [(sequence, 1)])
                e.emit("S_MAP_V_FP", dst=row["confidence"], a=c.fp("entropy", 0, own), n=length)
                e.emit("V_FILL_VF", dst=row["masked"], scalar=c.fp("one"), n=length)
                e.emit("V_BUDGET_MASK", dst=row["chosen"], a=row["confidence"], mask=row["masked"],
                       budget=c.fp("entropy_facts"), n=length)  # fmt: skip
                _draw(c, "fresh", sequence, [])
                e.emit(
                    "V_SELECT_INT", dst=ids, mask=row["chosen"], on_true=sampled, on_false=c.integer("fresh"), n=length
                )
                with e.loop(length) as position:
                    e.emit("V_CMP_EQ_INT", dst=c.vector("commit", COMMIT_ROWS.index("best") * c.vlen, [(position, 1)]),
                           a=c.integer("likeliest", 0, [*own, (position, 1)]),
                           key=c.integer("settled", 0, [*own, (position, 1)]), n=1)  # fmt: skip
                invert(c, row["best"], row["best"], length)
                e.emit("V_FILL_VF", dst=row["masked"], scalar=alive, n=length)
                e.emit("V_SELECT_INT", dst=settled, mask=row["masked"], on_true=likeliest, on_false=settled, n=length)
                if c.workload.stop_entropy is not None:
                    e.emit("S_MOV_FP", dst=restless, a=c.fp("zero"))
                    e.emit("V_RED_MAX", dst=restless, a=row["best"], n=length)
                    e.emit("S_MOV_FP", dst=entropy_sum, a=c.fp("zero"))
                    e.emit("V_RED_SUM", dst=entropy_sum, a=row["confidence"], n=length)
                    e.emit("S_MAP_V_FP", dst=row["left"], a=entropy_sum, n=1)
                    e.emit("V_CMP_GE_VF", dst=row["left"], a=row["left"], scalar=c.fp("stop_entropy"), n=1)
                    e.emit("V_RED_MAX", dst=restless, a=row["left"], n=1)
                    e.emit("S_MUL_FP", dst=alive, a=alive, b=restless)
                e.emit("S_MAP_V_FP", dst=row["left"], a=alive, n=1)
                e.emit("V_RED_COUNT", dst=c.integer("remaining"), mask=row["left"], n=1)
        store_tokens(c, block, "tokens", length)


def end_uniform(c: Context, block: Block) -> None:
    """The likeliest tokens into the canvas."""
    with c.e.phase("commit"):
        store_tokens(c, block, "settled", c.workload.block_length)
