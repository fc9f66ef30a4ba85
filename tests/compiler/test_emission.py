"""Emission: a wait or signal is on the instruction it belongs to where there is room, else on a sync of the unit."""

import pytest

from npu.isa import Memory
from npu_compiler.emission import emit
from npu_compiler.semaphores import Semaphore
from npu_compiler.stages import Buffer, Stream, Tree, Trips, place
from npu_compiler.tokens import Tokens
from tests.compiler.trees import LANES

X = Buffer(name="x", memory=Memory.VECTOR, elements=4 * LANES, phase="p")


def add(tree, steps=()):
    at = place(X, 0, steps)
    tree.emit("V_ADD_VV", dst=at, a=at, b=at, n=LANES)


def semaphores(node, count):
    """So many semaphores for which the vector unit waits before a node, and that it signals behind it."""
    return Tokens(semaphores=[
        Semaphore(name="s", giver="vector", taker="vector", initial=0, signals=[node], waits=[node], number=number)
        for number in range(1, count + 1)
    ])  # fmt: skip


def code_of(tree, tokens, address=0):
    code, phases = emit(tree.body, tokens, {X: address})
    return [i for i in code if not i.mnemonic.startswith("A_")], phases


@pytest.mark.parametrize(
    ("count", "mnemonics"),
    [(2, ["V_ADD_VV", "C_END"]), (3, ["V_SYNC", "V_SYNC", "V_ADD_VV", "V_SYNC", "V_SYNC", "C_END"])],
)
def test_two_tokens_fit_an_instruction(count, mnemonics):
    tree = Tree()
    with tree.stage("add"):
        add(tree)
    code, _ = code_of(tree, semaphores(tree.body[0], count))
    assert [i.mnemonic for i in code] == mnemonics
    assert (
        sorted(s for i in code for s in i.waits)
        == sorted(s for i in code for s in i.signals)
        == list(range(1, count + 1))
    )


def test_a_stage_that_begins_and_ends_with_a_loop_has_syncs_around_it():
    tree = Tree()
    with tree.stage("add"), tree.loop(3) as level:
        add(tree, [(level, LANES)])
    code, _ = code_of(tree, semaphores(tree.body[0], 1))
    assert [i.mnemonic for i in code] == ["V_SYNC", "C_LOOP", "V_ADD_VV", "C_NEXT", "V_SYNC", "C_END"]
    assert code[1].operands == {"level": 0, "trips": 3, "length": 2}


def test_an_affine_trip_count_is_a_register_of_the_loop_around():
    tree = Tree()
    with tree.loop(3) as outer, tree.loop(Trips(base=6, factor=-2, level=outer)), tree.stage("add"):
        add(tree)
    code, _ = code_of(tree, Tokens(semaphores=[]))
    assert [i.mnemonic for i in code][1:3] == ["C_AFFINE", "C_LOOP_R"]
    assert code[1].operands == {"register": 0, "base": 6, "factor": -2, "level": 0}


def test_equal_places_share_a_register_and_carry_base_strides_and_ring():
    tree, stream = Tree(), Stream(name="slots", slots=2)
    turning = Buffer(name="t", memory=Memory.VECTOR, elements=2 * LANES, phase="p", stream=stream)
    with tree.loop(3) as level, tree.stage("add"):
        at = place(turning, 7, [(level, LANES)], rows=64, slot_stride=LANES)
        tree.emit("V_ADD_VV", dst=at, a=at, b=place(turning, 7, [(level, LANES)], rows=64, slot_stride=LANES), n=LANES)
    code, _ = emit(tree.body, Tokens(semaphores=[]), {turning: 100})
    set_up = [(i.mnemonic, dict(i.operands)) for i in code if i.mnemonic.startswith("A_")]
    assert set_up == [
        ("A_BASE", {"register": 0, "base": 107}), ("A_STEP", {"register": 0, "level": 0, "stride": LANES}),
        ("A_ROWS", {"register": 0, "stride": 64}), ("A_RING", {"register": 0, "ring": 0, "length": 2, "stride": LANES}),
    ]  # fmt: skip


def test_phases_are_where_their_stages_are():
    tree = Tree()
    for name in ("first", "first", "second"):
        with tree.phase(name), tree.stage("add"):
            add(tree)
    _, phases = code_of(tree, Tokens(semaphores=[]))
    assert [(p.name, p.stop - p.start) for p in phases] == [("first", 2), ("second", 1)]
