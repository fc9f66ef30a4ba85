"""Stretches that are known: how the machine gets from one stop of the program to the next (`cycle.stops`: where a number of the
trace is read, or a phase begins) depends on its state there, on the number, and on where the loops around it stand.

A loop over experts does not repeat, since each expert has its own rows, but pairs of a state and a number recur from expert to
expert, from layer to layer and from step to step. So each is run once, and its outcome kept: the state at the next stop,
relative to time, and what was counted. States are compared word by word, so a run gives what running everything gives.

The words are those of the schema (`cycle.schema`), written down as they count: times relative to now, past ones as such,
addresses in HBM by their place in a burst, others less what the innermost loop has moved them. The index of that loop counts
where its last iteration begins, or where anything from outside of it is still queued or in flight; that of another loop around
where its last iteration is under way. A unit that stands since before the floor may stand for any time: how long is made up for
where its first gap was counted.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from cycle.schema import ADDRESS, CLIPPED, IDLE, INSTRUCTION, STRICT, UNSEEN, Watch, record
from cycle.state import State
from npu.isa.spec import LOOP_LEVELS, ControlKind

BREAKS, COUNTS = range(2)
"""Streams of the trace."""
SLOTS = 1 << 16
RECORDS = 1 << 14
WORDS = 1 << 25
COUNT = int(ControlKind.COUNT)
PAST = np.int64(-(1 << 62))
"""A time that nothing can notice, or of a unit that did nothing."""

RECORD = record(
    "key", "key_end", "after", "gaps", "loops", "counted", "counted_end", "cycles", "floor", "retired", "pc"
)
"""Where its key, its state afterwards, gaps, loops begun and what it counted lie in `word`; its cycles and instructions, the
floor behind now, and where it ends."""
PENDING = record("valid", "stop", "length", "slot", "began", "retired", "breaks", "beyond")
"""The stretch that is run to be known, if any: where it began, the length of its key and its slot; when, after how many
instructions and breaks; how many loops around it were in their last iteration, from the inside."""
GAP, LOOP = 4, 4
"""Words of a record for each unit (since when it stood before now, and the phase, unit and cause for which that counts) and for
each loop begun (level, trips, start, stop)."""

Transitions = namedtuple(
    "Transitions", "stop place slot record word filled pending key canonical counted index free entered"
)
"""`stop`, `place`: see `cycle.stops`; `slot` [SLOTS]: records by hash, 1 + number; `record` [RECORDS]; `word` [WORDS];
`filled` [2]: records and words in use; of what is `pending` [1] the `key`, and as it began what was `counted`, the `index` of
each level, and when units were `free`; `canonical`: scratch; `entered` [levels]: loops that the last known stretch began."""


def new_transitions(state: State, watch: Watch, stops: tuple[np.ndarray, np.ndarray]) -> Transitions:
    """Nothing known."""
    size = watch.note.size + LOOP_LEVELS + stops[1].size + 8
    return Transitions(
        *stops, np.zeros(SLOTS, np.int64), np.zeros(RECORDS, RECORD), np.zeros(WORDS, np.int64), np.zeros(2, np.int64),
        np.zeros(1, PENDING), np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(state.counted.size, np.int64),
        np.zeros(LOOP_LEVELS, np.int64), np.zeros(state.unit.size, np.int64), np.zeros(LOOP_LEVELS, np.int64),
    )  # fmt: skip


@njit(cache=True)
def take_known(code, operands, facts, control, counts, state, statistics, watch, known, floor, end):
    """At the stop of `control.pc`: keep the stretch that was run up to it; take the one that follows, and return true, if it is
    known.

    `end` is that of the notes (0: not to be compared), `floor` the time that nothing can look behind.
    """
    pending, now, pc = known.pending[0], state.machine[0].now, control.pc[0]
    stop = known.stop[code[pc].stop - 1]
    reads = code[pc].control == COUNT
    valid, pending.valid = pending.valid, 0
    if reads:
        control.register[operands[pc, 0]] = 0  # which the number overwrites
    if end == 0:
        return False
    _canonical(code, facts, control, state, watch, known.canonical, stop, floor, end)
    if valid:
        _keep(code, known, control, state, statistics, watch, stop, now, floor, end)
    number = np.int64(-1)
    if reads:
        if statistics.used[COUNTS] >= counts.size:
            return False
        number = counts[statistics.used[COUNTS]]
    beyond = np.int64(0)  # how many loops around are in their last iteration, from the inside
    while beyond < stop.leaves:
        level = stop.around[beyond]
        left = control.trips[level] - control.index[level]
        if stop.early >> level & 1 and left <= 2:  # when it is left is a time of the trace's own
            return False
        if left > 1:
            break
        beyond += 1
    length = _key(control, facts, number, state, known, watch, stop, beyond, floor, end)
    slot = _find(known, length)
    if known.slot[slot]:
        _apply(code, control, state, statistics, watch, known, known.slot[slot] - 1)
        return True
    pending.valid, pending.stop, pending.length, pending.slot, pending.beyond = 1, pc, length, slot, beyond
    pending.began, pending.retired, pending.breaks = now, statistics.retired.sum(), statistics.used[BREAKS]
    known.counted[:] = state.counted
    known.index[:] = control.index
    for q in range(state.unit.size):
        known.free[q] = state.unit[q].free
        state.unit[q].gap[:] = -1
    return False


@njit(cache=True)
def note_gap(unit, phase, standing, cause):
    """Note for what a unit's first gap since `take_known` looked counts: this phase, unit and cause."""
    if unit.gap[0] < 0:
        unit.gap[0], unit.gap[1], unit.gap[2] = phase, standing, cause


@njit(cache=True)
def _of_loop(control, state, watch, stop, end):
    """True if every queued instruction, and every one whose result is in flight (noted from the log), is of the stop's loop."""
    first, end_of_loop = control.start[stop.level], control.stop[stop.level]
    for at in range(watch.plain, end):
        note = watch.note[at]
        if note.kind == INSTRUCTION and not first <= state.words[note.word] < end_of_loop:
            return False
    return True


@njit(cache=True)
def _canonical(code, facts, control, state, watch, canonical, stop, floor, end):
    """Write the noted words down as they count."""
    now, level, entry = state.machine[0].now, stop.level, np.int64(0)
    for at in range(end):
        note = watch.note[at]
        value = state.words[note.word]
        if note.kind == INSTRUCTION:
            entry = value
        elif note.kind == ADDRESS:
            if code[entry].moves:
                value = value % facts.burst_bytes
            elif level >= 0:
                value -= control.index[level] * control.stride[note.register, level]
        elif note.kind == STRICT:
            value -= now
        elif note.kind == IDLE:
            value = PAST if value < floor else value - now
        elif note.kind == CLIPPED:
            value = PAST if value + note.lead <= floor else value - now
        canonical[at] = value


@njit(cache=True)
def _key(control, facts, number, state, known, watch, stop, beyond, floor, end):
    """The key of the stretch that begins: where, with which number, how the loops around and their addresses stand, time, and the
    state. Its length. `beyond` loops come to their end in it, from the inside."""
    key, now = known.key, state.machine[0].now
    key[0], key[1], key[2], key[3] = control.pc[0], number, beyond, floor - now
    key[4] = now % facts.refresh_every if facts.refresh_every else 0
    at = 5
    alike = beyond == 0 and stop.level >= 0
    for loop in range(stop.depth):
        level = stop.around[loop]
        if not alike:
            counts = loop < beyond or stop.indexed >> level & 1
        else:
            counts = loop == 0 and not _of_loop(control, state, watch, stop, end)
        key[at] = control.index[level] if counts else -1
        at += 1
    for row in range(stop.first, stop.last):
        place = known.place[row]
        if place.beyond <= beyond and not (alike and place.level == stop.level):
            moved = control.index[place.level] * control.stride[place.register, place.level]
            key[at] = moved % facts.burst_bytes if place.hbm else moved
            at += 1
    key[at : at + end] = known.canonical[:end]
    return at + end


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
        if record.key_end - record.key == length:
            same = True
            for at in range(length):
                if known.word[record.key + at] != known.key[at]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & np.int64(SLOTS - 1)
    return slot


@njit(cache=True)
def _keep(code, known, control, state, statistics, watch, stop, now, floor, end):
    """Keep the stretch that was run, unless the trace decided more of it than its number, or there is no room left."""
    pending, filled, queues = known.pending[0], known.filled, state.unit.size
    length, entered = pending.length, statistics.entered
    before = known.counted[control.index.size : control.index.size + LOOP_LEVELS]
    if statistics.used[BREAKS] != pending.breaks:
        return
    began, loops = known.stop[code[pending.stop].stop - 1], np.int64(0)
    for loop in range(pending.beyond, began.depth):  # these go on, once at most
        level = began.around[loop]
        inside = False
        for other in range(stop.depth):
            inside = inside or stop.around[other] == level
        if not inside or entered[level] != before[level] or control.index[level] - known.index[level] > 1:
            return
    for level in range(LOOP_LEVELS):
        loops += entered[level] != before[level]
    changed = np.int64(0)
    for at in range(state.counted.size):
        changed += state.counted[at] != known.counted[at]
    begin = filled[1]
    if filled[0] == RECORDS or begin + length + end + GAP * queues + LOOP * loops + 2 * changed > WORDS:
        return
    record, word = known.record[filled[0]], known.word
    record.pc, record.cycles, record.floor = control.pc[0], now - pending.began, floor - now
    record.retired = statistics.retired.sum() - pending.retired
    record.key, record.key_end = begin, begin + length
    word[begin : begin + length] = known.key[:length]
    begin += length
    record.after = begin
    word[begin : begin + end] = known.canonical[:end]
    unit = 0
    for at in range(watch.plain):
        if watch.note[at].kind == IDLE:  # one for each unit, in their order
            free = state.words[watch.note[at].word]
            word[begin + at] = PAST if free == known.free[unit] else free - now
            unit += 1
    begin += end
    record.gaps = begin
    for q in range(queues):
        word[begin] = known.free[q] - pending.began
        word[begin + 1 : begin + GAP] = state.unit[q].gap
        begin += GAP
    record.loops = begin
    for level in range(LOOP_LEVELS):
        if entered[level] != before[level]:
            word[begin], word[begin + 1] = level, control.trips[level]
            word[begin + 2], word[begin + 3] = control.start[level], control.stop[level]
            begin += LOOP
    record.counted, record.counted_end = begin, begin + 2 * changed
    for at in range(state.counted.size):
        if state.counted[at] != known.counted[at]:
            word[begin], word[begin + 1] = at, state.counted[at] - known.counted[at]
            begin += 2
    known.slot[pending.slot] = filled[0] + 1
    filled[0], filled[1] = filled[0] + 1, begin


@njit(cache=True)
def _apply(code, control, state, statistics, watch, known, number):
    """Take a known stretch."""
    record, words, machine = known.record[number], state.words, state.machine[0]
    began = machine.now
    now, retired, log_size = began + record.cycles, record.retired, state.log.shape[1]
    floor = now + record.floor
    for at in range(record.counted, record.counted_end, 2):  # the indices of loops are among them
        state.counted[known.word[at]] += known.word[at + 1]
    at = record.gaps
    for q in range(state.unit.size):
        if known.word[at + 1] >= 0:
            phase, standing, cause = known.word[at + 1], known.word[at + 2], known.word[at + 3]
            statistics.phase[phase].stall[standing, cause] += began + known.word[at] - state.unit[q].free
        at += GAP
    known.entered[:] = 0
    for at in range(record.loops, record.counted, LOOP):
        level = known.word[at]
        known.entered[level] = 1
        control.trips[level] = known.word[at + 1]
        control.start[level], control.stop[level] = known.word[at + 2], known.word[at + 3]
    control.pc[0] = record.pc
    level = known.stop[code[record.pc].stop - 1].level
    for k in range(machine.log.count):  # what was in flight is noted anew
        result = state.log[0, (machine.log.first + k) % log_size]
        result.retire = min(result.retire, floor)
    machine.log.first = machine.logged % log_size
    at = record.after
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
                        if kind == ADDRESS and level >= 0 and not code[entry].moves:
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
