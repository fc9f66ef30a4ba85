"""Every pass forwards its rows once, in chunks of nearly one size; what a longer prompt costs grows with it, without cliffs."""

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.operators import Mask
from dllm.policies import CACHE_POLICIES, Rows
from npu_compiler.rows import block_loops, block_span, blocks_of_a_group, full_span, prompt_span, suffix_span
from npu_compiler.stages import Level, Tree
from tests.conftest import compose_experiment
from tripath.api import analytical, cycle, prepare, schedule


@dataclass
class Indices:
    """The value of every running loop."""

    values: dict[int | None, int] = field(default_factory=dict)

    def trips(self, count):
        level = None if count.level is None else count.level.number
        return count.base + count.factor * self.values.get(level, 0)

    def of(self, steps):
        return sum((level.first + self.values.get(level.number, 0)) * stride for level, stride in steps)


def rows_of(part, now):
    """Sequence and row of everything that a part forwards, and the rows of each of its chunks."""
    for batch, chunk in itertools.product(range(part.sequence_chunks), range(now.trips(part.row_chunks))):
        rows = now.trips(part.rows)
        assert rows <= part.pitch
        first = now.of(part.at) + part.before + chunk * part.pitch
        sequences = part.first_sequence + batch * part.sequences
        yield [(s, r) for s in range(sequences, sequences + part.sequences) for r in range(first, first + rows)]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 13),
    st.sampled_from([4, 8, 16]),
    st.integers(0, 6),
    st.integers(1, 5),
    st.integers(1, 40),
    st.booleans(),
)
def test_the_parts_of_a_span_hold_every_row_once(blocks, length, prompt_blocks, batch, limit, first_apart):
    prompt, generation = prompt_blocks * length, blocks * length
    limit = max(length, limit * 4 // length * length)
    workload = SimpleNamespace(
        block_length=length, batch=batch, forwarded_sequences=batch, caches=CACHE_POLICIES["prefix"]
    )
    tiling = SimpleNamespace(
        canvas=prompt + generation, prompt=prompt, blocks=blocks, chunk_rows=limit, token_block=length, cache_tokens=512,
        key_tile=32,
    )  # fmt: skip
    period = blocks_of_a_group(workload, tiling, Rows.SUFFIX)
    tree, seen = Tree(), []
    ranges = [(0, 1), (1, blocks)] if first_apart else [(0, blocks)]
    for first, last in ranges:
        for block in block_loops(tree, first, last, blocks, period):
            for group, within in itertools.product(
                *(range(_trips(tree, level)) for level in (block.group, block.within))
            ):
                now = Indices({block.group.number: group, block.within.number: within, None: 0})
                number = now.of(block.steps(1))
                seen.append(number)
                start = prompt + number * length
                for span, expected in (
                    (suffix_span(workload, tiling, block), range(start, prompt + generation)),
                    (block_span(workload, tiling, block), range(start, start + length)),
                    (full_span(workload, tiling), range(prompt + generation)),
                ):
                    chunks = [chunk for part in span.parts for chunk in rows_of(part, now)]
                    assert max(map(len, chunks)) <= limit
                    assert sorted(row for chunk in chunks for row in chunk) == [
                        (s, r) for s in range(batch) for r in expected
                    ]
    assert seen == list(range(blocks))


@given(st.integers(1, 40), st.sampled_from([1, 4, 8, 16, 32, 64]), st.integers(0, 6), st.sampled_from([16, 32, 64]))
def test_an_appended_cache_is_read_to_the_end_of_the_block(blocks, length, prompt_blocks, key_tile):
    prompt = prompt_blocks * length
    canvas = prompt + blocks * length
    cache = -(-canvas // key_tile) * key_tile
    workload = SimpleNamespace(block_length=length, batch=1, forwarded_sequences=1, caches=CACHE_POLICIES["append"])
    tiling = SimpleNamespace(
        canvas=canvas, prompt=prompt, blocks=blocks, chunk_rows=256, token_block=length, cache_tokens=cache,
        key_tile=key_tile, pad=cache - canvas,
    )  # fmt: skip
    tree, period = Tree(), blocks_of_a_group(workload, tiling, Rows.BLOCK)
    for block in block_loops(tree, 0, blocks, blocks, period):
        for group, within in itertools.product(*(range(_trips(tree, level)) for level in (block.group, block.within))):
            now = Indices({block.group.number: group, block.within.number: within, None: 0})
            span = block_span(workload, tiling, block)
            end = tiling.pad + prompt + (now.of(block.steps(1)) + 1) * length
            assert now.trips(span.key_tiles) == -(-end // key_tile)
            hidden = now.of(span.edge)  # the place in a row of `cache` zeros and then what hides
            assert cache - hidden == end
    if prompt:
        clean = prompt_span(workload, tiling, Mask.CAUSAL)
        assert clean.key_tiles.base == -(-(tiling.pad + prompt) // key_tile)


def _trips(tree: Tree, level: Level) -> int:
    """Iterations of the loop that was opened last at a level."""
    if level.number is None:
        return 1
    return tree._open[level.number][-1].trips.base


def cost(*changes: str) -> tuple[int, float, float, float]:
    """Chunks of the whole canvas; cycles, HBM bursts and energy of a run."""
    experiment = compose_experiment("paths=[cycle]", *changes)
    program = prepare(experiment, "").program
    result = cycle.simulate(
        program, hardware=experiment.hardware, trace=schedule(experiment.workload), technology=experiment.technology,
        race_check=False,
    )  # fmt: skip
    metrics, layout = result.metrics, program.layout
    chunks = -(-layout["canvas"] // layout["chunk_rows"])
    return chunks, metrics["makespan_cycles"], metrics["hbm_bursts"], metrics["energy_joules"]


DREAM = ("model.qkv_bias=true", "model.shifted_logits=true", "model.checkpoint=null")
LLADA = ("model=llada_8b", "hardware=npu_datacenter", "workload=llada_gsm8k", "numerics=mxint4", "workload.steps=64",
         "workload.generation_length=64")  # fmt: skip
SMALL = (
    *LLADA[:4],
    "workload.steps=4",
    "workload.generation_length=32",
    "workload.batch=4",
    "hardware.sram.vector_bytes=4194304",
)
"""Many chunks, so that weights stay where that moves fewer bytes."""


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(
    ("changes", "block", "key_tile", "prompts"),
    [
        ((), 8, 32, range(176, 216, 8)),
        (DREAM, 8, 32, range(184, 208, 8)),
        (LLADA, 32, 512, range(224, 320, 32)),
        (SMALL, 32, 512, range(192, 288, 32)),
    ],
    ids=["wordmath", "dream", "llada_8b", "llada_8b with weights that stay"],
)
def test_what_a_longer_prompt_costs_has_no_cliff(changes, block, key_tile, prompts, cache):
    """Nothing falls by more than 2 %, nor rises by more than the shares of one block of rows and of one tile of keys; traffic and
    energy also by one more stream of the weights, where the canvas needs one more chunk."""
    costs = {n: cost(*changes, f"workload.cache={cache}", f"workload.prompt_length={n}") for n in prompts}
    assert cost(*changes, f"workload.cache={cache}", f"workload.prompt_length={prompts[1] - 1}") == costs[prompts[1]]
    for before, after in itertools.pairwise(prompts):
        (chunks, *old), (more, *new) = costs[before], costs[after]
        share = block / before + key_tile / 2 / before
        for number, (less, much) in enumerate(zip(old, new, strict=True)):
            assert much > 0.98 * less
            assert much < (1 + share) * less * (more / chunks if number else 1)


@pytest.mark.parametrize(
    "changes",
    [
        ("workload.cache=prefix", "workload.generation_length=72", "workload.prompt_length=9", "workload.batch=2"),
        ("model=wordmath_block", "workload.generation_length=80", "workload.prompt_length=21"),
    ],
    ids=["a suffix in several chunks", "keys that grow by tiles"],
)
def test_blocks_in_groups_are_counted_and_estimated(changes):
    """Two nested loops decide about trip counts: both timing paths retire the same, and the estimate stays near."""
    x = compose_experiment("paths=[analytical,cycle]", "hardware.sram.vector_bytes=65536", *changes)
    prepared = prepare(x, "")
    program, trace = prepared.program, x.schedule(prepared.token_ids)
    times = cycle.simulate(program, hardware=x.hardware, trace=trace)
    found = analytical.simulate(program, hardware=x.hardware, trace=trace)
    assert found.counts == times.counts
    assert found.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert found.metrics["estimated_cycles"] == pytest.approx(times.metrics["makespan_cycles"], rel=0.06)
