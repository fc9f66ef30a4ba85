"""Mixtures of experts: scores and choice on the lanes, rows listed by expert, and a loop over the experts whose trips are data.

The list holds the numbers of the rows of the first expert, then those of the second, and so on: rows are counted in each lane
of what they picked, a scan of the counts says where each expert's begin. An expert that no row takes loads no weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from dllm.experts import Scoring
from dllm.operators import Moe
from npu_compiler.context import Context
from npu_compiler.flow import Flow
from npu_compiler.gated import Names, gated_mlp
from npu_compiler.rows import Chunk, times
from npu_compiler.stages import Count, Level, Place, Tree, Trips
from npu_compiler.tiling import row_tile, whole_tiles

EXPERT = Names(gate="expert_gate", up="expert_up", down="expert_down")
SHARED = Names(gate="shared_gate", up="shared_up", down="shared_down")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The rows of a chunk that take an expert, one below the other: as many as `count` says, in tiles of a power of two."""

    tile: int
    count: Count

    @property
    def most(self) -> int:
        """Rows of the chunk."""
        return self.count.most

    @property
    def size(self) -> int:
        """Rows of a buffer that holds them, and what the last tile has beyond them."""
        return whole_tiles(self.most, self.tile)

    def _loop(self, unit: int) -> Trips:
        return Trips(base=-(-self.most // unit), count=self.count, unit=unit)

    @property
    def any(self) -> Trips:
        """One trip, or none where there is no row."""
        return self._loop(1 << (self.most - 1).bit_length())

    def tiles(self, e: Tree, size: int) -> Iterator[tuple[list[tuple[Level, int]], int]]:
        """A loop over tiles; the last one goes beyond the last row."""
        assert self.tile <= size
        with e.loop(self._loop(self.tile)) as tile:
            yield [(tile, self.tile)], self.tile

    @contextmanager
    def each(self, e: Tree) -> Iterator[list[tuple[Level, int]]]:
        """A loop over single rows."""
        with e.loop(self._loop(1)) as row:
            yield [(row, 1)]


def mixture(op: Moe, c: Context, flow: Flow) -> None:
    """`y` := the shared expert's result or zero, plus for each expert the results of the rows that take it."""
    e, chunk, experts, width, source = c.e, flow.chunk, op.experts, op.width, flow.value
    seen = source
    if experts.router_norm:
        seen, place = "routed", flow.norms[op.norm.name] * width
        with e.stage("router_norm"):
            for first, piece, lanes in c.wide(width):
                row = c.vector("norm_weight", place + first, piece)
                e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("router_scale"), n=lanes)
            c.rms_norm(flow, "x", seen, "norm_weight", place)
    c.project(flow, weights="router", outputs=experts.count, inputs=width, dst="gates", acts=seen,
              activations=c.numerics.router)  # fmt: skip
    with e.stage("choose experts"):
        _Router(op=op, c=c, chunk=chunk).choose()
    with e.stage("list rows by expert"):
        _list_rows(op, c, chunk)
    if experts.shared:
        gated_mlp(c, flow, SHARED, width, experts.shared, op.activation)
    else:
        with e.stage("clear the result"):
            for first, piece, lanes in c.wide(width):
                with chunk.each(e) as rows:
                    row = c.vector(flow.result, first, [*piece, *times(rows, width)])
                    e.emit("V_FILL_VF", dst=row, scalar=c.fp("zero"), n=lanes)
    with e.loop(experts.count) as expert:
        count = e.count(c.integer("counts", 0, [(expert, 1)]), chunk.size)
        gathered = Gathered(tile=row_tile(c.hardware), count=count)
        with e.loop(gathered.any, keep=True):
            own = Flow(chunk=chunk, some=gathered, layer=flow.layer, value="gathered", result="expert_out")
            with e.stage("gather rows"):
                _fetch_listed(op, c, gathered, expert, source, "gathered")
            gated_mlp(c, own, EXPERT, width, experts.inner, op.activation, expert)
            with e.stage("add to rows"):
                _add_to_rows(op, c, flow, gathered, expert)
    flow.value = flow.result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Router:
    """The choice: `picked` becomes 1 where a row takes an expert, and `gates`, which holds logits, the weights of those.

    Every instruction is issued for all rows before the next one, so that none waits for the one before it.
    """

    op: Moe
    c: Context
    chunk: Chunk

    def each(self, mnemonic: str, **operands: tuple[str, int] | Place | int) -> None:
        """One instruction for each row; ("gates", 5) stands for lane 5 of the row of a buffer, ("sum", 0) for its sum."""
        with self.chunk.each(self.c.e) as rows:
            self.c.e.emit(mnemonic, **{
                name: self.lane(*value, [], rows) if isinstance(value, tuple) else value for name, value in operands.items()
            })  # fmt: skip

    def each_group(self, group: Level, mnemonic: str, **operands: tuple[str, int] | Place | int) -> None:
        """As `each`, of a group of experts: ("gates", 1) is its first lane of a buffer, ("group_ranks", 1) that of the group."""
        size = self.op.experts.count // self.op.experts.groups
        with self.chunk.each(self.c.e) as rows:
            self.c.e.emit(mnemonic, **{
                name: self.lane(value[0], 0, [(group, 1 if value[0].startswith("group_") else size)], rows)
                if isinstance(value, tuple) else value for name, value in operands.items()
            })  # fmt: skip

    def lane(self, buffer: str, first: int, group: list[tuple[Level, int]], rows: Sequence[tuple[Level, int]]) -> Place:
        """A lane of the row of a buffer, moved on by a group; a row of the sums has no lanes."""
        if buffer == "sum":
            return self.c.fp("square_sum", 0, rows)
        pitch = self.op.experts.groups if buffer.startswith("group_") else self.op.experts.count
        return self.c.vector(buffer, first, [*group, *times(rows, pitch)])

    def choose(self) -> None:
        """Scores, ranks, choice and weights."""
        c, experts, n = self.c, self.op.experts, self.op.experts.count
        gates, picked, left, total = ("gates", 0), ("picked", 0), ("left", 0), ("sum", 0)
        self.score()
        ranks = gates
        if experts.bias:
            ranks = ("ranks", 0)
            self.each("V_ADD_VV", dst=ranks, a=gates, b=c.vector("router_bias"), n=n)
        if experts.groups > 1:
            self.choose_groups(ranks[0])
        elif experts.block_capacity:
            self.choose_for_blocks(ranks[0])
        else:
            self.each("V_FILL_VF", dst=left, scalar=c.fp("one"), n=n)
        if self.chunk.has_padding:
            with self.chunk.each(c.e) as rows:
                row = c.vector("left", 0, times(rows, n))
                c.e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("valid", 0, rows), n=n)
        self.each("V_FILL_VF", dst=picked, scalar=c.fp("zero"), n=n)
        with c.e.loop(experts.chosen):
            self.each("V_PICK_V", picked=picked, left=left, a=ranks, n=n)
        self.each("V_MUL_VV", dst=gates, a=gates, b=picked, n=n)
        if experts.normalised:
            self.each("S_MOV_FP", dst=total, a=c.fp("zero"))
            self.each("V_RED_SUM", dst=total, a=gates, n=n)
            self.each("S_RECI_FP", dst=total, a=total)
            self.each("V_MUL_VF", dst=gates, a=gates, scalar=total, n=n)
        if experts.scale != 1:
            self.each("V_MUL_VF", dst=gates, a=gates, scalar=c.fp("expert_scale"), n=n)
        if experts.factors:
            self.each("V_MUL_VV", dst=gates, a=gates, b=c.vector("expert_factors"), n=n)

    def score(self) -> None:
        """Logits to scores."""
        c, n, gates, total = self.c, self.op.experts.count, ("gates", 0), ("sum", 0)
        match self.op.experts.scoring:
            case Scoring.SOFTMAX:
                self.each("S_MOV_FP", dst=total, a=c.fp("lowest"))
                self.each("V_RED_MAX", dst=total, a=gates, n=n)
                self.each("V_SUB_VF", dst=gates, a=gates, scalar=total, n=n)
                self.each("V_EXP_V", dst=gates, a=gates, n=n)
                self.each("S_MOV_FP", dst=total, a=c.fp("zero"))
                self.each("V_RED_SUM", dst=total, a=gates, n=n)
                self.each("S_RECI_FP", dst=total, a=total)
                self.each("V_MUL_VF", dst=gates, a=gates, scalar=total, n=n)
            case Scoring.SIGMOID:
                self.each("V_MUL_VF", dst=gates, a=gates, scalar=c.fp("minus_one"), n=n)
                self.each("V_EXP_V", dst=gates, a=gates, n=n)
                self.each("V_ADD_VF", dst=gates, a=gates, scalar=c.fp("one"), n=n)
                self.each("V_RECI_V", dst=gates, a=gates, n=n)

    def choose_groups(self, ranks: str) -> None:
        """`left` := 1 in the lanes of the groups whose two best ranks add up to most."""
        c, experts = self.c, self.op.experts
        size, groups, total = experts.count // experts.groups, experts.groups, ("sum", 0)
        one, zero, own = c.fp("one"), c.fp("zero"), ("left", 1)
        with c.e.loop(groups) as group:
            self.each_group(group, "V_FILL_VF", dst=own, scalar=one, n=size)
            self.each_group(group, "V_FILL_VF", dst=("picked", 1), scalar=zero, n=size)
            with c.e.loop(2):
                self.each_group(group, "V_PICK_V", picked=("picked", 1), left=own, a=(ranks, 1), n=size)
            self.each_group(group, "V_MUL_VV", dst=own, a=("picked", 1), b=(ranks, 1), n=size)
            self.each("S_MOV_FP", dst=total, a=zero)
            self.each_group(group, "V_RED_SUM", dst=("sum", 0), a=own, n=size)
            self.each_group(group, "V_FILL_VF", dst=("group_ranks", 1), scalar=("sum", 0), n=1)
        self.each("V_FILL_VF", dst=("group_left", 0), scalar=one, n=groups)
        self.each("V_FILL_VF", dst=("group_picked", 0), scalar=zero, n=groups)
        with c.e.loop(experts.kept_groups):
            self.each("V_PICK_V", picked=("group_picked", 0), left=("group_left", 0), a=("group_ranks", 0), n=groups)
        with c.e.loop(groups) as group:
            self.each("S_MOV_FP", dst=total, a=zero)
            self.each_group(group, "V_RED_SUM", dst=("sum", 0), a=("group_picked", 1), n=1)
            self.each_group(group, "V_FILL_VF", dst=own, scalar=("sum", 0), n=size)

    def choose_for_blocks(self, ranks: str) -> None:
        """`left` := 1 in the lanes of the experts whose best rank in the row's block is among the highest of the block."""
        c, e, n, tokens = self.c, self.c.e, self.op.experts.count, self.op.experts.block_tokens
        assert self.chunk.size % tokens == 0, "chunks of block-causal models are whole blocks"

        def of_blocks() -> AbstractContextManager[Level]:
            return e.loop(self.chunk.size // tokens)

        def of_block(buffer: str, block: Level) -> Place:
            return c.vector(buffer, 0, [(block, n)])

        each = e.one_by_one(of_blocks, lambda block: {
            "best": of_block("block_ranks", block), "one": of_block("block_left", block), "kept": of_block("block_picked", block),
            "first": c.vector(ranks, 0, [(block, tokens * n)]),
        })  # fmt: skip
        e.emit("S_SET_INT", dst=c.integer("block_capacity"), value=self.op.experts.block_capacity)
        each("V_FILL_VF", dst="one", scalar=c.fp("one"), n=n)
        each("V_MAX_VV", dst="best", a="first", b="first", n=n)
        with e.loop(tokens) as row, of_blocks() as block:
            best = of_block("block_ranks", block)
            e.emit("V_MAX_VV", dst=best, a=best, b=c.vector(ranks, 0, [(block, tokens * n), (row, n)]), n=n)
        each("V_TOPK_MASK", dst="kept", a="best", mask="one", count=c.integer("block_capacity"), n=n)
        with of_blocks() as block, e.loop(tokens) as row:
            kept, own = of_block("block_picked", block), c.vector("left", 0, [(block, tokens * n), (row, n)])
            e.emit("V_MAX_VV", dst=own, a=kept, b=kept, n=n)


def _list_rows(op: Moe, c: Context, chunk: Chunk) -> None:
    """`counts` of rows by expert, their `starts` in the list, and the `list`."""
    e, n = c.e, op.experts.count
    with e.loop(n) as expert:
        e.emit("S_SET_INT", dst=c.integer("counts", 0, [(expert, 1)]), value=0)
    with chunk.each(e) as rows:
        e.emit("V_COUNT_INT", dst=c.integer("counts"), mask=c.vector("picked", 0, times(rows, n)), n=n)
    for places in ("starts", "ends"):
        e.emit("V_SCAN_INT", dst=c.integer(places), a=c.integer("counts"), n=n)
    with chunk.each(e) as rows:
        e.emit("V_APPEND_INT", list=c.integer("list"), ends=c.integer("ends"), mask=c.vector("picked", 0, times(rows, n)),
               value=c.number(0, rows), n=n, size=chunk.size * op.experts.chosen)  # fmt: skip


def _fetch_listed(op: Moe, c: Context, gathered: Gathered, expert: Level, table: str, target: str) -> None:
    """The rows of `target` := those of `table` that the list names for an expert."""
    for first, piece, lanes in c.wide(op.width):
        with gathered.each(c.e) as rows:
            c.e.emit("V_FETCH_V", dst=c.vector(target, first, [*piece, *times(rows, op.width)]),
                     table=c.vector(table, first, piece, rows=op.width), n=lanes,
                     **_listed(op, c, gathered, expert, rows))  # fmt: skip


def _listed(
    op: Moe, c: Context, gathered: Gathered, expert: Level, rows: Sequence[tuple[Level, int]]
) -> dict[str, Place | int]:
    """The operands that name a row by its place in the list."""
    return {
        "list": c.integer("list", 0, rows), "start": c.integer("starts", 0, [(expert, 1)]), "rows": gathered.most,
        "size": gathered.most * op.experts.chosen,
    }  # fmt: skip


def _add_to_rows(op: Moe, c: Context, flow: Flow, gathered: Gathered, expert: Level) -> None:
    """The results of an expert, times the weights that its rows give it, are added to these rows."""
    e, experts = c.e, op.experts
    with gathered.each(e) as rows:
        weights = c.vector("gates", 0, [(expert, 1)], rows=experts.count)
        e.emit("V_FETCH_V", dst=c.vector("gate_of_row", 0, rows), table=weights, n=1,
               **_listed(op, c, gathered, expert, rows))  # fmt: skip
    with gathered.each(e) as rows:
        e.emit("S_MOV_FP", dst=c.fp("square_sum", 0, rows), a=c.fp("zero"))
    with gathered.each(e) as rows:
        e.emit("V_RED_SUM", dst=c.fp("square_sum", 0, rows), a=c.vector("gate_of_row", 0, rows), n=1)
    for first, piece, lanes in c.wide(op.width):
        with gathered.each(e) as rows:
            row = c.vector("expert_out", first, [*piece, *times(rows, op.width)])
            e.emit("V_MUL_VF", dst=row, a=row, scalar=c.fp("square_sum", 0, rows), n=lanes)
        with gathered.each(e) as rows:
            e.emit("V_ADD_AT_V", a=c.vector("expert_out", first, [*piece, *times(rows, op.width)]),
                   table=c.vector(flow.result, first, piece, rows=op.width), n=lanes,
                   **_listed(op, c, gathered, expert, rows))  # fmt: skip
