"""Lifetimes and allocation: no buffer is given bytes that another needs still, which a run of every trip tells."""

import dataclasses
from collections import defaultdict

import pytest

from npu.errors import CapacityError
from npu.isa import Memory
from npu_compiler.allocation import allocate, could_fit
from npu_compiler.buffers import IN_ATTENTION, working_sets
from npu_compiler.generation import compile_passes
from npu_compiler.lifetimes import lifetimes, stages_in
from npu_compiler.stages import Advance, Buffer, Loop, Stage, Tree, ops_of, place
from tests.compiler.trees import LANES, ROWS, random_tree
from tests.conftest import compose_experiment


def run(body, members):
    """For each buffer the stages at which one of its rows holds a value that is read later, by running every trip.

    The first write after a use begins the whole buffer anew, in the first trips of the loops that move it.
    """
    number = iter(range(10_000))
    numbers = {}

    def count(nodes):
        for node in nodes:
            if isinstance(node, Loop):
                count(node.body)
            elif isinstance(node, Stage):
                numbers[id(node)] = next(number)

    count(body)
    events, index, slots = [], {}, defaultdict(int)

    def rows(at, size):
        base = at.offset + sum(stride * index[level] for level, stride in at.strides)
        if at.stream is not None:
            base += slots[at.stream] % at.stream.slots * at.slot_stride
        return range(base // LANES, -(-(base + size) // LANES))

    def walk(nodes):
        for node in nodes:
            if isinstance(node, Loop):
                for trip in range(node.trips.base):
                    index[node.level] = trip
                    walk(node.body)
            elif isinstance(node, Advance):
                slots[node.stream] += 1
            elif isinstance(node, Stage):
                for op in ops_of(node.body):
                    size = op.operands.get("n", op.operands.get("cols"))
                    for written in (False, True):
                        places = [at for at in op.touched(written=written) if isinstance(at.target, Buffer)]
                        read = {at.target for at in op.touched(written=False)}
                        for at in places:
                            first = at.stream is not None or not any(index[level] for level, _ in at.strides)
                            slot = ROWS * (slots[at.stream] % 2) if at.stream else 0
                            begun = range(slot, slot + ROWS)
                            anew = begun if written and first and at.target not in read else ()
                            fills = written and at.target not in read
                            events.append((numbers[id(node)], at.target, list(rows(at, size)), written, fills, anew))

    walk(body)
    alive = {buffer: set() for buffer in members}
    since: dict = {}
    used = set()
    for time, (_, buffer, touched, written, fills, anew) in enumerate(events):
        if buffer in used or buffer.stream:
            since = {key: begun for key, begun in since.items() if key[0] is not buffer or key[1] not in anew}
        used = used - {buffer} if fills else used | {buffer}
        for row in touched:
            if written:
                since[buffer, row] = time
            elif (buffer, row) in since:
                alive[buffer] |= {event[0] for event in events[since[buffer, row] : time + 1]}
    return alive


def test_whatever_is_read_later_is_alive():
    for seed in range(200):
        tree, members, _ = random_tree(seed)
        spans = lifetimes(tree.body)
        for buffer, stages in run(tree.body, members).items():
            for stage in stages:
                assert any(first <= stage <= last for first, last in spans.get(buffer, [])), (seed, buffer.name, stage)


def add(tree, dst, a):
    with tree.stage("add"):
        tree.emit("V_ADD_VV", dst=place(dst), a=place(a), b=place(a), n=LANES)


def fill(tree, dst, steps=()):
    with tree.stage("fill"):
        tree.emit("V_FILL_VF", dst=place(dst, 0, steps), scalar=place(Buffer(name="f", memory=Memory.FP, elements=1, phase="p")),
                  n=LANES)  # fmt: skip


@pytest.fixture
def p():
    return Buffer(name="p", memory=Memory.VECTOR, elements=ROWS * LANES, phase="p")


@pytest.fixture
def q():
    return Buffer(name="q", memory=Memory.VECTOR, elements=ROWS * LANES, phase="p")


def test_a_buffer_that_each_trip_fills_anew_is_free_between(p, q):
    tree = Tree()
    with tree.loop(3):
        fill(tree, p)
        add(tree, q, p)
        fill(tree, q)
        add(tree, q, q)
    spans = lifetimes(tree.body)
    assert not stages_in(spans[p]) & 0b1100


def test_a_buffer_that_the_trips_fill_in_parts_lives_through_the_loop(p, q):
    tree = Tree()
    with tree.loop(3) as level:
        fill(tree, q)
        fill(tree, p, [(level, LANES)])
    add(tree, q, p)
    assert stages_in(lifetimes(tree.body)[p]) & 0b1


def test_what_the_last_trip_left_lives_through_the_loop(p, q):
    tree = Tree()
    fill(tree, p)
    with tree.loop(3):
        add(tree, q, p)
        fill(tree, q)
        add(tree, p, q)
    assert stages_in(lifetimes(tree.body)[p]) & 0b100


def test_what_does_not_fit_even_by_lifetime_is_named():
    from npu_compiler import compile_program
    from tests.conftest import compose_experiment

    experiment = compose_experiment("hardware.sram.vector_bytes=9000")
    with pytest.raises(CapacityError, match=r"hardware\.sram\.vector_bytes: working set .* exceeds 8\.789 KiB \(phase"):
        compile_program(experiment.model, experiment.workload, experiment.hardware, experiment.numerics, [19])


PROGRAMS = {
    "dual": (), "prefix": ("workload.cache=prefix", "workload.batch=3"), "plain": ("compiler=plain",),
    "baos": ("numerics=mxint4_baos", "workload.cache=none"), "stored": ("compiler.sampling=stored",),
    "append": ("model=wordmath_moe", "workload.cache=append"), "one block": ("model=wordmath_block", "workload.generation_length=8"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_refused_before_there_is_a_tree_is_alive_together(name):
    """So no allocation by lifetime puts it into fewer bytes than `could_fit` asks for."""
    x = compose_experiment("workload.prompt_length=21", "workload.prompt=null", "paths=[cycle]", *PROGRAMS[name])
    lengths = [21] * x.workload.batch
    made = compile_passes(x.model, x.workload, x.hardware, x.numerics, lengths, x.compiler)
    alive = {
        buffer.name: stages_in(spans)
        for buffer, spans in lifetimes(made.tree.body).items()
        if buffer.memory is Memory.FP
    }
    state, *others = (alive[each] for each in reversed(IN_ATTENTION))
    for each in others:
        state &= each
    assert state
    buffers = working_sets(x.model, x.workload, x.hardware, x.numerics, made.tiling)
    least = 4 * sum(buffers[Memory.FP, each].elements for each in IN_ATTENTION)
    for fp_bytes, fits in ((least, True), (least - 4, False)):
        smaller = dataclasses.replace(x.hardware, sram=dataclasses.replace(x.hardware.sram, fp_bytes=fp_bytes))
        assert could_fit(buffers, smaller) is fits
        if not fits:
            with pytest.raises(CapacityError, match=r"hardware\.sram\.fp_bytes"):
                allocate(
                    buffers,
                    smaller,
                    {buffer: [(0, 0)] for buffer in buffers.by_name.values() if buffer.name in IN_ATTENTION},
                )
