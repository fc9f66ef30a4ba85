"""Iterations that are known: how the machine gets from one boundary of a loop to the next depends on its state there, and on the
number that the iteration reads.

A loop over experts does not repeat, since each expert has its own rows, but pairs of a state and a number recur from layer to
layer and from step to step. So each pair is run once, and its outcome kept: the state at the next boundary, relative to time,
and what was counted. States are compared word by word, so a run gives what running every iteration gives.

The words are those of the schema (`cycle.schema`), written down as they count: times relative to now, past ones as such,
addresses in HBM by their place in a burst, others less what the loop has moved them. A boundary at which anything from
outside of the loop is still queued or in flight is run.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from cycle.schema import ADDRESS, CLIPPED, IDLE, INSTRUCTION, STRICT, UNSEEN, Watch, watch_rings
from cycle.state import State
from npu.isa.control import address_of

BREAKS, COUNTS = range(2)
"""Streams of the trace."""
SLOTS = 1 << 16
RECORDS = 1 << 14
WORDS = 1 << 25
PAST = np.int64(-(1 << 62))
"""A time that nothing can notice."""
KEY, KEY_END, AFTER, COUNTED, COUNTED_END, CYCLES, FLOOR, RETIRED = range(8)
"""Columns of a record: where its key, its state afterwards and what it counted lie; its cycles and instructions, and the floor
behind now."""
VALID, LEVEL, INDEX, LENGTH, SLOT, BEGAN, BEFORE = range(7)
"""Of the iteration that is run to be known: whether there is one, of which level and index; the length of its key, and its slot;
when it began, and instructions before it."""

Transitions = namedtuple("Transitions", "slot record word filled pending key canonical counted")
"""`slot` [SLOTS]: records by hash, 1 + number; `record` [RECORDS, 8]; `word` [WORDS]; `filled` [2]: records and words in use;
`pending` [7], `key`, `counted`: the iteration that is run, its key and what was counted before; `canonical`: scratch."""


def new_transitions(state: State, watch: Watch) -> Transitions:
    """Nothing known."""
    size = watch.note.size + 8
    return Transitions(
        np.zeros(SLOTS, np.int64), np.zeros((RECORDS, 8), np.int64), np.zeros(WORDS, np.int64), np.zeros(2, np.int64),
        np.zeros(7, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(state.counted.size, np.int64),
    )  # fmt: skip


@njit(cache=True)
def take_known(code, facts, control, counts, state, statistics, watch, known, pc, floor, end):
    """At the boundary of the loop that `pc` closes: keep the iteration that was run, then go on by known ones.

    `end` is that of the notes, `floor` the time that nothing can look behind.
    """
    level, pending = code[pc].level, known.pending
    places = _places(code, facts, control, pc, level)
    while True:
        if end == 0 or not _of_loop(control, state, watch, pc, level, end):
            pending[VALID] = 0
            return
        _canonical(code, facts, control, state, watch, known.canonical, pc, floor, end)
        now = state.machine[0].now
        if pending[VALID] and pending[LEVEL] == level and pending[INDEX] + 1 == control.index[level]:
            _keep(known, state, statistics.retired.sum(), now, floor, end)
        pending[VALID] = 0
        if control.index[level] + 1 >= control.trips[level] or statistics.used[COUNTS] >= counts.size:
            return
        length = _key(facts, counts[statistics.used[COUNTS]], known, pc, places, now, floor, end)
        slot = _find(known, length)
        number = known.slot[slot] - 1
        if number < 0:
            pending[VALID], pending[LEVEL], pending[INDEX] = 1, level, control.index[level]
            pending[LENGTH], pending[SLOT] = length, slot
            pending[BEGAN], pending[BEFORE] = now, statistics.retired.sum()
            known.counted[:] = state.counted
            return
        floor = _apply(code, control, state, watch, known, number, level)
        end = watch_rings(state.words, code, watch)


@njit(cache=True)
def _of_loop(control, state, watch, pc, level, end):
    """Whether all that is queued or in flight is of the loop; results in flight are noted in the log."""
    first = control.start[level]
    for at in range(watch.plain, end):
        note = watch.note[at]
        if note.kind == INSTRUCTION and not first <= state.words[note.word] <= pc:
            return False
    return True


@njit(cache=True)
def _canonical(code, facts, control, state, watch, canonical, pc, floor, end):
    """Write the noted words down as they count; when a unit that the loop does not use became idle stays as it is."""
    now, level, entry, unit = state.machine[0].now, code[pc].level, np.int64(0), np.int64(0)
    for at in range(end):
        note = watch.note[at]
        value = state.words[note.word]
        if note.kind == INSTRUCTION:
            entry = value
        elif note.kind == ADDRESS:
            if code[entry].moves:
                value = value % facts.burst_bytes
            else:
                value -= control.index[level] * control.stride[note.register, level]
        elif note.kind == STRICT:
            value -= now
        elif note.kind == IDLE:  # one for each unit, in their order
            value = value - now if code[pc].known >> unit & 1 else PAST
            unit += 1
        elif note.kind == CLIPPED:
            value = PAST if value + note.lead <= floor else value - now
        canonical[at] = value


@njit(cache=True)
def _places(code, facts, control, pc, level):
    """A digest of where the addresses of a loop stand in its first iteration, as far as they matter for time."""
    index = control.index[level]
    control.index[level] = 0
    places = np.int64(0)
    for inside in range(control.start[level], pc):
        row = code[inside]
        for k in range(row.addresses):
            address = address_of(control, row.register[k])
            places = places * np.int64(1000003) + (address % facts.burst_bytes if row.moves else address)
    control.index[level] = index
    return places


@njit(cache=True)
def _key(facts, number, known, pc, places, now, floor, end):
    """The key of the iteration that begins: its loop, where its addresses stand, its number, time, and the state."""
    key = known.key
    key[0], key[1], key[2], key[3] = pc, places, number, floor - now
    key[4] = now % facts.refresh_every if facts.refresh_every else 0
    key[5 : 5 + end] = known.canonical[:end]
    return 5 + end


@njit(cache=True)
def _find(known, length):
    """The slot of the key: that of its record, or a free one."""
    hashed = np.int64(length)
    for at in range(length):
        hashed = (hashed ^ known.key[at]) * np.int64(6364136223846793005)
        hashed ^= (hashed >> 29) & np.int64(0x7FFFFFFFF)
    slot = hashed & np.int64(SLOTS - 1)
    while known.slot[slot]:
        record = known.record[known.slot[slot] - 1]
        if record[KEY_END] - record[KEY] == length:
            same = True
            for at in range(length):
                if known.word[record[KEY] + at] != known.key[at]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & np.int64(SLOTS - 1)
    return slot


@njit(cache=True)
def _keep(known, state, retired, now, floor, end):
    """Keep the iteration that was run, unless there is no room left."""
    pending, filled, length = known.pending, known.filled, known.pending[LENGTH]
    changed = np.int64(0)
    for at in range(state.counted.size):
        changed += state.counted[at] != known.counted[at]
    begin = filled[1]
    if filled[0] == RECORDS or begin + length + end + 2 * changed > WORDS:
        return
    record = known.record[filled[0]]
    record[KEY], record[KEY_END] = begin, begin + length
    known.word[begin : begin + length] = known.key[:length]
    begin += length
    record[AFTER], record[FLOOR] = begin, floor - now
    record[CYCLES], record[RETIRED] = now - pending[BEGAN], retired - pending[BEFORE]
    known.word[begin : begin + end] = known.canonical[:end]
    begin += end
    record[COUNTED], record[COUNTED_END] = begin, begin + 2 * changed
    for at in range(state.counted.size):
        if state.counted[at] != known.counted[at]:
            known.word[begin], known.word[begin + 1] = at, state.counted[at] - known.counted[at]
            begin += 2
    known.slot[pending[SLOT]] = filled[0] + 1
    filled[0], filled[1] = filled[0] + 1, begin


@njit(cache=True)
def _apply(code, control, state, watch, known, number, level):
    """Take a known iteration; returns the floor behind it."""
    record, words, machine = known.record[number], state.words, state.machine[0]
    now = machine.now + record[CYCLES]
    floor, retired = now + record[FLOOR], record[RETIRED]
    for at in range(record[COUNTED], record[COUNTED_END], 2):  # the index of the loop is among them
        state.counted[known.word[at]] += known.word[at + 1]
    for k in range(machine.log.count):  # what was in flight is noted anew
        result = state.log[0, (machine.log.first + k) % state.log.shape[1]]
        result.retire = min(result.retire, floor)
    machine.log.first = machine.logged % state.log.shape[1]
    at = record[AFTER]
    for plain in range(watch.plain):
        note = watch.note[plain]
        if note.kind != IDLE or known.word[at] != PAST:
            words[note.word] = _absolute(known.word[at], note.kind, note.lead, now, floor)
        at += 1
    for part in watch.ringed:
        for row in range(part.rows):
            ring = part.ring + row * part.pitch
            first, count, size = words[ring], known.word[at], words[ring + 2]
            words[ring + 1] = count
            at += 1
            for element in range(size if part.spares else count):
                place = first + element
                if place >= size:
                    place -= size
                word = part.base + (row * part.elements + place) * part.words
                entry = np.int64(0)
                for rule_number in range(part.first_rule, part.last_rule):
                    rule = watch.rule[rule_number]
                    kind, values = rule.kind if element < count else rule.spare, rule.values
                    if kind == UNSEEN:
                        continue
                    if kind == INSTRUCTION:
                        entry = known.word[at]
                    elif kind == ADDRESS:
                        values = code[entry].addresses
                    for value in range(values):
                        found = _absolute(known.word[at], kind, rule.lead, now, floor)
                        if kind == ADDRESS and not code[entry].moves:
                            found += control.index[level] * control.stride[code[entry].register[value], level]
                        words[word + rule.word + value] = found
                        at += 1
    machine.logged += machine.log.count
    machine.skipped += retired
    for q in range(state.unit.size):
        waiting = state.unit[q].waiting
        for k in range(waiting.count):
            place = state.queue[q, (waiting.first + k) % waiting.size]
            if code[place.entry].moves:
                place.row_stride = control.row_stride[code[place.entry].register[0]]
    note_results(code, state)
    return floor


@njit(cache=True)
def _absolute(value, kind, lead, now, floor):
    """A word as it counts, at a moment."""
    if kind == STRICT or kind == IDLE:
        return value + now
    if kind == CLIPPED:
        return floor - lead if value == PAST else value + now
    return value


@njit(cache=True)
def note_results(code, state):
    """Note in the scoreboard when the results in flight will be there."""
    machine = state.machine[0]
    for k in range(machine.log.count):
        result = state.log[0, (machine.log.first + k) % state.log.shape[1]]
        row = code[result.entry]
        for lock in range(row.locks):
            if row.lock[lock].write:
                first, last = cells_of(row.lock[lock], result.address[lock])
                for cell in range(first, last + 1):
                    state.ready[cell] = max(state.ready[cell], result.end)


@njit(cache=True)
def cells_of(lock, address):
    """First and last cell of the scoreboard that an interlocked access at an address touches."""
    return lock.cell + address // lock.width, lock.cell + (address + lock.size - 1) // lock.width
