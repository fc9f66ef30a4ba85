"""The schema of a state: words by name, and notes that depend on what a state means, not on where its rings stand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycle.code import INSTRUCTION as CODE
from cycle.code import NEITHER, code_of, facts_of
from cycle.fastforward import new_snapshots, repeats
from cycle.memory import DescriptorCosts
from cycle.schema import (
    ADDRESS,
    CLIPPED,
    EXACT,
    IDLE,
    INSTRUCTION,
    STRICT,
    Field,
    Part,
    allocate,
    watch_of,
    watch_rings,
)
from cycle.state import new_state
from cycle.stops import NO_STOPS
from tests.conftest import compiled, compose_experiment

ADDRESSES = 2


def parts(rows, elements):
    unit = Field(name="free", kind=STRICT), Field(name="waiting", ring=True), Field(name="scratch")
    place = (
        Field(name="entry", kind=INSTRUCTION),
        Field(name="free", spare=CLIPPED, lead=3),
        Field(name="address", kind=ADDRESS, shape=(ADDRESSES,)),
    )
    return [
        Part(name="unit", shape=(rows,), fields=unit),
        Part(name="queue", shape=(rows, elements), fields=place, ring=("unit", "waiting")),
    ]


@st.composite
def states(draw):
    """Rows, elements of a row's ring; by row which elements are in use: their instruction, else when their place was free."""
    rows, elements = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    used = st.lists(st.integers(0, 2), max_size=elements)
    return elements, draw(st.lists(used, min_size=rows, max_size=rows))


def build(elements, used, turn):
    """The state's words, parts, notes; its rings begin at `turn`."""
    schema = parts(len(used), elements)
    words, part = allocate(schema)
    code = np.zeros(3, CODE)
    code["addresses"], code["register"][:, :ADDRESSES] = [0, 1, 2], [5, 7]
    for row, instructions in enumerate(used):
        part["unit"]["free"][row] = 100 + row
        part["unit"]["waiting"][row] = turn % elements, len(instructions), elements
        for number in range(elements):
            place = part["queue"][row, (turn + number) % elements]
            place["free"], place["address"] = 10 * row + number, 1000 * row + number
            place["entry"] = instructions[number] if number < len(instructions) else -1
    watch = watch_of(schema)
    end = watch_rings(words, code, watch)
    return words, part, watch.note[:end]


@settings(deadline=None)
@given(states(), st.integers(0, 9))
def test_notes_follow_what_rings_hold_and_not_where_they_begin(state, turn):
    elements, used = state
    words, _, notes = build(elements, used, 0)
    turned, _, others = build(elements, used, turn)
    assert words[notes["word"]].tolist() == turned[others["word"]].tolist()
    for name in ("kind", "lead", "register"):
        assert notes[name].tolist() == others[name].tolist()


@settings(deadline=None)
@given(states())
def test_every_field_that_counts_is_noted_once_and_no_other(state):
    elements, used = state
    _, part, notes = build(elements, used, 1)
    assert len(set(notes["word"].tolist())) == len(notes)
    in_use = [number for instructions in used for number in instructions]
    kinds = notes["kind"].tolist()
    assert kinds.count(STRICT) == kinds.count(EXACT) == len(used)
    assert kinds.count(INSTRUCTION) == len(in_use)
    assert kinds.count(ADDRESS) == sum(in_use)
    assert kinds.count(CLIPPED) == elements * len(used) - len(in_use)
    assert notes["register"][notes["kind"] == ADDRESS].tolist() == [r for n in in_use for r in (5, 7)[:n]]
    assert set(notes["lead"][notes["kind"] == CLIPPED].tolist()) <= {3}
    assert part["unit"]["free"].tolist() == [100 + row for row in range(len(used))]


PERIOD, STEPS, LEVEL = 500, 2, 1


@pytest.fixture(scope="module")
def moment():
    """A machine in the middle of its work with all times ahead, noted in a snapshot; and the same a period later."""
    experiment = compose_experiment("workload.generation_length=16", "workload.steps=16")
    program, _ = compiled(experiment)
    hardware = experiment.hardware
    code, facts = code_of(program, hardware), facts_of(hardware, DescriptorCosts(hardware))
    state, control, _, watch = new_state(program, hardware, facts[0], (0, 1), 0)
    now = 1000
    state.machine["now"], state.machine["frontier"] = now, now + 90
    state.machine["bus_free"] = state.machine["port_free"] = now + 40
    for name in ("free", "retire", "issued"):
        state.unit[name] = now + 50
    state.unit["waiting"]["count"], state.semaphore["count"], state.machine["log"]["count"] = 1, 2, 3
    for q in range(len(state.unit)):
        with_addresses = np.flatnonzero(
            (code["queue"] == q) & ((code["addresses"] > 0) | (code["direction"] == NEITHER))
        )
        state.queue["entry"][q] = with_addresses[0]
    state.log["entry"] = np.flatnonzero(code["locks"] > 1)[0]
    state.queue["arrival"] = now + 1
    for array in (state.queue["free"], state.flight, state.token, state.log["end"], state.log["retire"]):
        array[...] = now + 70
    control.stride[:] = np.arange(control.stride.size).reshape(control.stride.shape) % 97
    end = watch_rings(state.words, code, watch)
    snapshots, notes = new_snapshots(state, watch, NO_STOPS), watch.note[:end]
    snapshot = snapshots.level[LEVEL]
    snapshot["taken_at"], snapshot["now"], snapshot["floor"], snapshot["notes"] = 0, now, now, end
    snapshots.word[LEVEL, :end] = state.words[notes["word"]]
    control.index[LEVEL] = STEPS
    time = np.isin(notes["kind"], (STRICT, IDLE, CLIPPED))
    state.words[notes["word"]] += np.where(time, PERIOD, 0)
    along = STEPS * control.stride[notes["register"], LEVEL]
    state.words[notes["word"]] += np.where(notes["kind"] == ADDRESS, along, 0)
    return state, control, snapshots, notes, now


def alike(moment):
    state, control, snapshots, notes, now = moment
    return repeats(0, len(notes), control, state, snapshots, LEVEL, now + PERIOD)


def test_a_moment_repeats_a_period_later_unless_one_word_differs(moment):
    words, notes = moment[0].words, moment[3]
    assert set(notes["kind"].tolist()) == {EXACT, STRICT, IDLE, CLIPPED, INSTRUCTION, ADDRESS}
    assert alike(moment)
    for word in notes["word"]:
        for change in (-1, 1):
            words[word] += change
            assert not alike(moment)
            words[word] -= change
    assert alike(moment)


def test_past_times_are_alike_and_an_idle_unit_may_stand(moment):
    state, _, snapshots, notes, now = moment
    for kind, past, differs in ((CLIPPED, -7, 3), (IDLE, -7, 0)):
        at = int(np.flatnonzero((notes["kind"] == kind) & (notes["lead"] == 0))[0])
        word, kept = int(notes["word"][at]), (int(state.words[notes["word"][at]]), int(snapshots.word[LEVEL, at]))
        snapshots.word[LEVEL, at], state.words[word] = now + past, now + past + differs
        assert alike(moment)
        snapshots.word[LEVEL, at] = now + 1  # not past in one of the two
        assert not alike(moment)
        state.words[word], snapshots.word[LEVEL, at] = kept
