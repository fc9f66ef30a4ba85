"""Exact loop fast-forward: when the machine's state at a loop boundary repeats, whole periods are added in closed form.

At the end of an iteration everything that can still influence time is compared with a snapshot of an earlier iteration, each
field as the schema says (`state.parts_of`): what waits in the queues, times relative to now (those that no later instruction
can notice count as equal), tokens, results in flight. Every further iteration then repeats what lies between the two, moved
in time, as long as

- addresses move so that they meet alike (`periods`: after `period` iterations every address of the body has moved by whole
  rows of Vector SRAM and whole periods of HBM);
- the exits that the trace holds repeat.

So every word of the state moves on as it moved between the two, and the result is the one that running every iteration gives;
where nothing repeats, every iteration is run.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from cycle.schema import ADDRESS, CLIPPED, EXACT, IDLE, INSTRUCTION, STRICT, Watch, record, watch_rings
from cycle.state import State
from cycle.transitions import BREAKS, COUNTS, new_transitions, note_results, take_known
from npu.isa.spec import LOOP_LEVELS

WORTH_CYCLES = 64
"""An iteration shorter than this is run: comparing would take as long."""

LEVEL = record("taken_at", "due", "began", "now", "floor", ("used", (2,)), "notes")
"""A loop level: the iteration its snapshot was taken in (-1: none), the one in which the next is due, when the loop began; and
of the snapshot the front end's time, the time that nothing later can look behind, entries used of each stream, words noted."""

Snapshots = namedtuple("Snapshots", "level word counted watch known")
"""By loop level: LEVEL, the words that `watch` found, and what was counted; and stretches that are known."""


def new_snapshots(state: State, watch: Watch, stops: tuple[np.ndarray, np.ndarray]) -> Snapshots:
    """No snapshot taken."""
    words, counted = (LOOP_LEVELS, watch.note.size), (LOOP_LEVELS, state.counted.size)
    known = new_transitions(state, watch, stops)
    return Snapshots(np.zeros(LOOP_LEVELS, LEVEL), np.zeros(words, np.int64), np.zeros(counted, np.int64), watch, known)


@njit(cache=True)
def enter_loop(level, now, levels):
    """A loop begins: forget what was seen of its level."""
    snapshot = levels[level]
    snapshot.taken_at, snapshot.due, snapshot.began = -1, 1, now


@njit(cache=True)
def is_due(level, iteration, levels):
    """True if there is a snapshot to compare with, or if one is due."""
    return levels[level].taken_at >= 0 or iteration >= levels[level].due


@njit(cache=True)
def at_stop(code, operands, facts, control, counts, state, statistics, snapshots):
    """At the stop of `control.pc`: go on to the first one from which it is not known how the machine goes on."""
    known, levels = snapshots.known, snapshots.level
    while True:
        floor, end = _floor(state), np.int64(0)
        if floor >= state.machine[0].window_to:
            end = _look(code, state, snapshots.watch, floor)
        if not take_known(
            code, operands, facts, control, counts, state, statistics, snapshots.watch, known, floor, end
        ):
            return
        for level in range(levels.size):
            if known.entered[level]:
                enter_loop(level, state.machine[0].now, levels)


@njit(cache=True)
def at_loop_end(code, facts, control, breaks, counts, state, statistics, pc, snapshots):
    """After the C_NEXT at `pc`, another iteration about to begin: skip what repeats, or take a snapshot."""
    period, level = code[pc].period, code[pc].level
    snapshot, iteration, watch = snapshots.level[level], control.index[level], snapshots.watch
    limit = control.trips[level] - 1
    now, end = state.machine[0].now, np.int64(0)
    floor = _floor(state)
    if snapshot.taken_at >= 0:
        steps = iteration - snapshot.taken_at
        if (
            steps % period == 0 and limit - iteration >= steps
            and (now - snapshot.now) % max(facts.refresh_every, 1) == 0
            and repeats(0, watch.plain, control, state, snapshots, level, floor)
        ):  # fmt: skip
            end = _look(code, state, watch, floor)
            if end == snapshot.notes and repeats(watch.plain, end, control, state, snapshots, level, floor):
                periods = (limit - iteration) // steps
                periods = _repeated(breaks, statistics.used[BREAKS], snapshot.used[BREAKS], periods)
                periods = _repeated(counts, statistics.used[COUNTS], snapshot.used[COUNTS], periods)
                periods = _outside_window(state, snapshot, floor, periods)
                if periods > 0:
                    _skip(code, state, statistics, snapshots, level, floor, periods)
                    snapshot.taken_at, snapshot.due = -1, control.trips[level]
                    return
    if iteration < snapshot.due:
        return
    if now - snapshot.began < WORTH_CYCLES * iteration or limit - iteration < 2 * period:
        snapshot.taken_at, snapshot.due = -1, 2 * iteration
        return
    if end == 0:
        end = _look(code, state, watch, floor)
    if end > 0:
        snapshot.taken_at, snapshot.now, snapshot.floor, snapshot.notes = iteration, now, floor, end
        snapshot.used[BREAKS], snapshot.used[COUNTS] = statistics.used[BREAKS], statistics.used[COUNTS]
        for at in range(end):
            snapshots.word[level, at] = state.words[watch.note[at].word]
        snapshots.counted[level] = state.counted
    snapshot.due = iteration + max(period, iteration)


@njit(cache=True)
def _floor(state):
    """The time that nothing later can look behind: now, or when the oldest that waits arrived."""
    floor = state.machine[0].now
    for q in range(state.unit.size):
        waiting = state.unit[q].waiting
        if waiting.count > 0:
            floor = min(floor, state.queue[q, waiting.first].arrival)
    return floor


@njit(cache=True)
def _look(code, state, watch, floor):
    """Note every word that must be compared; how many, or 0 if more results may be in flight than the log holds."""
    log, machine = state.log[0], state.machine[0]
    flying = np.int64(0)
    most = min(machine.logged, log.size - 1)
    while flying < most and log[(machine.logged - 1 - flying) % log.size].retire > floor:
        flying += 1
    if flying == log.size - 1:
        return np.int64(0)
    machine.log.first, machine.log.count = (machine.logged - flying) % log.size, flying
    return watch_rings(state.words, code, watch)


@njit(cache=True)
def repeats(first, end, control, state, snapshots, level, floor):
    """True if the noted words from `first` to `end` repeat those of a level's snapshot, moved in time and along the loop's
    addresses."""
    snapshot = snapshots.level[level]
    cycles, steps = state.machine[0].now - snapshot.now, control.index[level] - snapshot.taken_at
    if floor - snapshot.floor != cycles:
        return False
    for at in range(first, end):
        note = snapshots.watch.note[at]
        present, past = state.words[note.word], snapshots.word[level, at]
        moved = present - past
        if note.kind == EXACT or note.kind == INSTRUCTION:
            alike = moved == 0
        elif note.kind == ADDRESS:
            alike = moved == steps * control.stride[note.register, level]
        elif note.kind == STRICT:
            alike = moved == cycles
        elif note.kind == IDLE:
            alike = moved == cycles or (moved == 0 and past <= snapshot.floor)
        elif note.kind == CLIPPED:
            alike = moved == cycles or (present + note.lead <= floor and past + note.lead <= snapshot.floor)
        else:
            alike = False
        if not alike:
            return False
    return True


@njit(cache=True)
def _repeated(stream, now, before, periods):
    """For how many of so many periods a stream of the trace goes on like it did from entry `before` to `now`."""
    entries = now - before
    if entries == 0:
        return periods
    same = np.int64(0)
    while same < periods * entries and now + same < stream.size and stream[now + same] == stream[before + same]:
        same += 1
    return same // entries


@njit(cache=True)
def _outside_window(state, snapshot, floor, periods):
    """The number of periods, at most `periods`, that end before the recorded window; all of them if the window has passed."""
    machine = state.machine[0]
    if floor < machine.window_to:
        cycles = max(np.int64(1), machine.now - snapshot.now)
        periods = min(periods, (machine.window_from - 1 - machine.frontier) // cycles)
    return periods


@njit(cache=True)
def _skip(code, state, statistics, snapshots, level, floor, periods):
    """Move every word on as it moved since a level's snapshot, `periods` times; times that are past stay."""
    notes, words, machine = snapshots.watch.note, state.words, state.machine[0]
    entries = statistics.used[BREAKS] - snapshots.level[level].used[BREAKS]
    for entry in range(statistics.used[BREAKS], statistics.used[BREAKS] + periods * entries):
        statistics.left[entry] = statistics.left[entry - entries] + machine.now - snapshots.level[level].now
    for at in range(snapshots.level[level].notes):
        note = notes[at]
        present = words[note.word]
        if note.kind != CLIPPED or present + note.lead > floor:
            words[note.word] += periods * (present - snapshots.word[level, at])
    retired = statistics.retired.sum()
    for at in range(state.counted.size):
        state.counted[at] += periods * (state.counted[at] - snapshots.counted[level, at])
    machine.skipped += statistics.retired.sum() - retired
    note_results(code, state)
