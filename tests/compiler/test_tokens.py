"""Tokens: what the pass places orders every program, and no more than that; the race check, which shares nothing with it, judges."""

import dataclasses

import pytest

from cycle.races import find_race
from npu.isa import Memory
from npu.program import words_of
from npu_compiler.stages import Buffer, Stream, Tree, place
from npu_compiler.tokens import place_tokens
from tests.compiler.trees import BF16, BLOCK, LANES, program_of, random_addresses, random_tree, tensors

CASES = 300


def test_random_trees_have_no_race():
    for seed in range(CASES):
        tree, members, known = random_tree(seed)
        program, _ = program_of(tree, members, known, random_addresses(seed, members))
        program.check_bounds()
        race = find_race(program)
        assert race is None, (seed, race.describe(program))


def test_every_semaphore_of_a_random_tree_but_a_few_is_needed():
    """Where a loop has one trip or two, what holds for any number may be more than is needed."""
    placed = superfluous = 0
    for seed in range(60):
        tree, members, known = random_tree(seed)
        program, tokens = program_of(tree, members, known, random_addresses(seed, members))
        for each in tokens.semaphores:
            code = [
                dataclasses.replace(
                    i,
                    waits=tuple(s for s in i.waits if s != each.number),
                    signals=tuple(s for s in i.signals if s != each.number),
                )
                for i in program.instructions
            ]
            placed += 1
            superfluous += find_race(dataclasses.replace(program, words=words_of(code))) is None
    assert placed > 100
    assert superfluous < 0.25 * placed


def names(tree):
    found = place_tokens(tree.body, lambda a, b: False)
    return [(each.giver, each.taker, each.initial, len(each.signals), len(each.waits)) for each in found.semaphores]


def load(tree, buffer, tensor):
    with tree.stage("load"):
        tree.emit(
            "H_LOAD_V",
            dst=place(buffer, rows=LANES),
            src=place(tensor, rows=64),
            rows=1,
            cols=LANES,
            format=BF16,
            block=BLOCK,
        )


def add(tree, buffer):
    with tree.stage("add"):
        at = place(buffer)
        tree.emit("V_ADD_VV", dst=at, a=at, b=at, n=LANES)


@pytest.fixture
def x():
    return Buffer(name="x", memory=Memory.VECTOR, elements=LANES, phase="p")


def test_a_load_before_a_loop_of_its_reader_is_one_token(x):
    tree = Tree()
    load(tree, x, tensors()[2])
    with tree.loop(5):
        add(tree, x)
    assert names(tree) == [("dma_in", "vector", 0, 1, 1)]


def test_a_buffer_that_is_filled_in_a_loop_goes_back_and_forth(x):
    tree = Tree()
    with tree.loop(5):
        load(tree, x, tensors()[2])
        add(tree, x)
    assert names(tree) == [("dma_in", "vector", 0, 1, 1), ("vector", "dma_in", 1, 1, 1)]


def test_stages_of_one_unit_that_completes_in_order_need_none(x):
    tree = Tree()
    with tree.loop(5):
        add(tree, x)
        add(tree, x)
    assert names(tree) == []


def test_a_token_that_enters_a_loop_and_leaves_it_is_one_semaphore(x):
    """Stored, then loaded and stored in each trip, then loaded: as the hidden states of the layers."""
    tree, (a, *_) = Tree(), tensors()

    def store():
        with tree.stage("store"):
            tree.emit(
                "H_STORE_V",
                dst=place(a, rows=64),
                src=place(x, rows=LANES),
                rows=1,
                cols=LANES,
                format=BF16,
                block=BLOCK,
            )

    store()
    with tree.loop(4):
        load(tree, x, a)
        add(tree, x)
        store()
    load(tree, x, a)
    between = [row for row in names(tree) if row[:2] == ("dma_out", "dma_in")]
    assert between == [("dma_out", "dma_in", 0, 2, 2)]


def test_the_slots_of_a_stream_are_handed_over_by_two_semaphores_wherever_it_turns():
    tree, stream = Tree(), Stream(name="slots", slots=2)
    buffer = Buffer(name="t", memory=Memory.VECTOR, elements=2 * LANES, phase="p", stream=stream)
    for _ in range(2):
        with tree.loop(3):
            load(tree, buffer, tensors()[2])
            with tree.stage("add"):
                at = place(buffer, slot_stride=LANES)
                tree.emit(
                    "V_RED_SUM", dst=place(Buffer(name="f", memory=Memory.FP, elements=1, phase="p")), a=at, n=LANES
                )
            tree.advance(stream)
    assert names(tree)[:2] == [("dma_in", "vector", 0, 2, 2), ("vector", "dma_in", 2, 2, 2)]
