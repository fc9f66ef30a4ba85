"""Stable-Max of logits as the LM head makes them: a running maximum, its index, and a sum that is rescaled as the maximum grows.

No logit leaves Vector SRAM. Tokens are those of two passes over stored logits; the sum is rounded otherwise (docs/numerics.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dllm.noise import Purpose
from npu_compiler.context import Context
from npu_compiler.rows import Chunk, times
from npu_compiler.stages import Level, Place, Steps


@dataclass(frozen=True, kw_only=True, slots=True)
class StableMax:
    """The running state of the rows of a chunk."""

    c: Context
    chunk: Chunk

    @property
    def drawn(self) -> bool:
        """Tokens are drawn, so that the largest logit need not be the token's."""
        return bool(self.c.workload.temperature)

    def _each(self, width: int = 0) -> Callable[..., None]:
        """Emits an instruction for every row; names stand for its state and its logits, of which a row has `width`."""
        c, chunk = self.c, self.chunk

        def places(rows: Steps) -> Mapping[str, Place]:
            at = [*chunk.batch_steps(chunk.span.rows), *chunk.row_steps(1), *rows]
            if self.drawn:  # a first token of a block is one row of its sequence
                place = times(at, c.workload.block_length // chunk.span.rows)
                pair = times(at, 2)
                drawn = {"noisy": c.fp("noisy", 0, pair), "drawn": c.fp("noisy", 1, pair), "stream": c.stream(place)}
            else:
                drawn = {}
            if c.workload.is_uniform:
                drawn["likeliest"] = c.integer("likeliest", 0, at)
            return drawn | {
                "best": c.fp("best", 0, at), "total": c.fp("confidence", 0, at), "index": c.integer("sampled", 0, at),
                "rescale": c.fp("rescale", 0, rows),
                **self._of_entropy(at, rows, width),
                "logits": c.vector("logits", 0, times(rows, width), slot_stride=chunk.size * c.tiling.slice),
            }  # fmt: skip

        return c.e.one_by_one(lambda: chunk.each(c.e), places)

    def _of_entropy(self, at: Steps, rows: Steps, width: int) -> Mapping[str, Place]:
        c = self.c
        if not c.measures_entropy:
            return {}
        return {
            "entropy": c.fp("entropy", 0, at), "spread": c.fp("spread", 0, at), "shift": c.fp("shift", 0, rows),
            "shares": c.vector("shares", 0, times(rows, width)),
        }  # fmt: skip

    def begin(self) -> None:
        """No logit has been seen."""
        each = self._each()
        with self.c.e.stage("begin stable max"):
            each("S_MOV_FP", dst="best", a=self.c.fp("lowest"))
            each("S_SET_INT", dst="index", value=0)
            each("S_MOV_FP", dst="total", a=self.c.fp("zero"))
            if self.drawn:
                each("S_MOV_FP", dst="noisy", a=self.c.fp("lowest"))
            if self.c.workload.is_uniform:
                each("S_SET_INT", dst="likeliest", value=0)
            if self.c.measures_entropy:
                each("S_MOV_FP", dst="spread", a=self.c.fp("zero"))

    def update(self, first: int, part: Level, width: int, lanes: int) -> None:
        """The first `lanes` of the `width` logits of the vocabulary from `first` + part * `width` on, which lie in the buffer
        `logits` and are overwritten."""
        each, number = self._each(width), self.c.number(first, [(part, width)])
        with self.c.e.stage("stable max"):
            each("S_MOV_FP", dst="rescale", a="best")
            if self.drawn:
                if self.c.workload.is_uniform:
                    each("V_RED_MAX_IDX", best="best", place="likeliest", a="logits", n=lanes, first=number)
                else:
                    each("V_RED_MAX", dst="best", a="logits", n=lanes)
                each("V_RED_SAMPLE_IDX", best="noisy", place="index", a="logits", n=lanes, first=number,
                     scale=self.c.fp("noise_scale"), key=self.c.integer("key", Purpose.SAMPLING), stream="stream")  # fmt: skip
            else:
                each("V_RED_MAX_IDX", best="best", place="index", a="logits", n=lanes, first=number)
            each("S_SUB_FP", dst="rescale", a="rescale", b="best")
            if self.c.measures_entropy:  # each d that was summed up becomes less by what the maximum grew by
                each("S_MUL_FP", dst="shift", a="rescale", b="total")
                each("S_ADD_FP", dst="spread", a="spread", b="shift")
            each("S_EXP_FP", dst="rescale", a="rescale")
            if self.c.hardware.fused_exponential and not self.c.measures_entropy:
                each("S_MUL_FP", dst="total", a="total", b="rescale")
                each("V_EXP_SUM_VF", dst="logits", sum="total", a="logits", scalar="best", n=lanes)
                return
            each("V_SUB_VF", dst="logits", a="logits", scalar="best", n=lanes)
            shares = "shares" if self.c.measures_entropy else "logits"
            each("V_EXP_V", dst=shares, a="logits", n=lanes)
            each("S_MUL_FP", dst="total", a="total", b="rescale")
            each("V_RED_SUM", dst="total", a=shares, n=lanes)
            if self.c.measures_entropy:
                each("V_MUL_VV", dst="logits", a="logits", b="shares", n=lanes)
                each("S_MUL_FP", dst="spread", a="spread", b="rescale")
                each("V_RED_SUM", dst="spread", a="logits", n=lanes)

    def end(self) -> None:
        """`confidence` := the probability of the token; `entropy` := log(sum exp(d)) - (sum d exp(d)) / sum exp(d)."""
        each = self._each()
        with self.c.e.stage("end stable max"):
            if self.c.measures_entropy:
                each("S_LOG2_FP", dst="entropy", a="total")
                each("S_MUL_FP", dst="entropy", a="entropy", b=self.c.fp("entropy_facts", 1))
            each("S_RECI_FP", dst="total", a="total")
            if self.c.conditions:
                each("S_MOV_FP", dst="rescale", a="total")
            if self.c.measures_entropy:
                each("S_MUL_FP", dst="spread", a="spread", b="total")
                each("S_SUB_FP", dst="entropy", a="entropy", b="spread")
            if self.drawn:
                each("S_SUB_FP", dst="drawn", a="drawn", b="best")
                each("S_EXP_FP", dst="drawn", a="drawn")
                each("S_MUL_FP", dst="total", a="total", b="drawn")
