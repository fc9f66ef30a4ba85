"""The schema of a state: words by name, and notes that depend on what a state means, not on where its rings stand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cycle.code import INSTRUCTION as CODE
from cycle.schema import ADDRESS, CLIPPED, EXACT, INSTRUCTION, STRICT, Field, Part, allocate, watch_of, watch_rings

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


@given(states(), st.integers(0, 9))
def test_notes_follow_what_rings_hold_and_not_where_they_begin(state, turn):
    elements, used = state
    words, _, notes = build(elements, used, 0)
    turned, _, others = build(elements, used, turn)
    assert words[notes["word"]].tolist() == turned[others["word"]].tolist()
    for name in ("kind", "lead", "register"):
        assert notes[name].tolist() == others[name].tolist()


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
