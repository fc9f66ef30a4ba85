"""HBM burst by burst: what a sequence of bursts costs in memory cycles, with the controllers of docs/dram.md.

Time goes from one cycle in which some channel can do something to the next, so idle cycles cost nothing. All quantities are
integers; a cycle is one of the memory's clock.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from tripath.hardware import ADDRESS_MAPPINGS, DRAM_TIMINGS, Hbm

COLUMN, PSEUDO_CHANNEL, BANK_GROUP, BANK, ROW = range(5)
FIELDS = {"column": COLUMN, "pseudo_channel": PSEUDO_CHANNEL, "bank_group": BANK_GROUP, "bank": BANK, "row": ROW}

CLOSED, FOREIGN = -1, -2
"""States of a bank beside the number of its open row: no row, or one that no burst asks for."""

READ, WRITE, ACTIVE = range(3)
"""The queues of a channel: reads, writes, and bursts that a row was opened for. The first two are kinds of bursts too."""

ENTRIES_PER_CYCLE = 4
"""Bursts for each channel that may enter the queues in a cycle; they enter in one order over all channels."""

DRAIN_ABOVE, DRAIN_BELOW = 80, 20
"""Percent of the write queue: above the first writes are served, below the second reads are again."""

NEVER = 1 << 60

ENTERED, LEFT, LAST, HITS, MISSES, CONFLICTS = range(6)
"""Cells of `State.tally`: bursts that have entered, that are not complete, the last completion so far, and rows found."""

Memory = namedtuple(
    "Memory",
    "channels interleave burst_bytes fields hashed pseudo_channels bank_groups banks read_entries write_entries "
    "drain_above drain_below act_cycles refresh_by_clock "
    "nBL nCL nRCDRD nRCDWR nRP nRAS nRC nWR nRTPL nCWL nCCDS nCCDL nWTRS nWTRL nRRDS nRRDL nFAW nRFC nREFI",
)
"""`Hbm` as compiled code sees it.

`interleave` counts bursts. `fields` has a row (field, bits, shift) for each field of an address, the least significant
first: its next bits, -1 for all that remain, become those of the field from `shift` up. `hashed` has a row (field, bits,
shift) for each field that is XORed with bits of the column from `shift` up. `banks` are those of a bank group.
`refresh_by_clock`: whether `stream` refreshes.
"""

State = namedtuple(
    "State",
    "opened promoted bank_column bank_act bank_pre group_column group_act half_column half_act half_pre half_refresh acts "
    "row_bus queue length draining due due_since refreshing wake bursts kinds channels banks rows entered_at counted tally",
)
"""The memory while it runs. Banks, bank groups and pseudo channels (`half`) are numbered through all channels.

`<level>_<command>` is the earliest cycle of a command as far as that level is concerned; `*_column` has a row for reads and
one for writes. `promoted` counts the bursts of a bank in the active queue, `acts` holds the last four of a pseudo channel,
`due` is the pseudo channel of a channel that is to be refreshed next, `wake` the cycle in which a channel has to be looked at.
"""

Streamed = namedtuple("Streamed", "cycles hits misses conflicts refresh_cycles")
"""What a sequence of bursts took.

`cycles`: from the first burst to the last completion (of a read: its data is returned; of a write: its column command has
issued). `hits`, `misses` (the bank was closed) and `conflicts` (another row was open) count every burst that needed the
DRAM once, by what the first command for it found. `refresh_cycles`: of the channel with the most of them, from a refresh
falling due to its end, as far as it lies before the last completion.
"""


def memory_of(hbm: Hbm) -> Memory:
    """The facts of `hbm` for compiled code."""
    mapping = ADDRESS_MAPPINGS[hbm.address_mapping]
    sizes = {
        "column": hbm.page_bytes // hbm.burst_bytes, "pseudo_channel": hbm.pseudo_channels,
        "bank_group": hbm.bank_groups, "bank": hbm.banks_per_group, "row": hbm.rows,
    }  # fmt: skip
    widths = {name: size.bit_length() - 1 for name, size in sizes.items()}
    placed = dict.fromkeys(widths, 0)
    fields, hashed, shift = [], [], 0
    for name, bits in mapping.fields:
        taken = bits or widths[name] - placed[name]
        fields.append((FIELDS[name], taken, placed[name]))
        placed[name] += taken
    for name in mapping.hashed:
        hashed.append((FIELDS[name], widths[name], shift))
        shift += widths[name]
    return Memory(
        channels=hbm.channels, interleave=hbm.interleave_bytes // hbm.burst_bytes, burst_bytes=hbm.burst_bytes,
        fields=np.array(fields, np.int64), hashed=np.array(hashed, np.int64).reshape(-1, 3),
        pseudo_channels=hbm.pseudo_channels, bank_groups=hbm.bank_groups, banks=hbm.banks_per_group,
        read_entries=hbm.read_queue_entries, write_entries=hbm.write_queue_entries,
        drain_above=hbm.write_queue_entries * DRAIN_ABOVE // 100,
        drain_below=-(-hbm.write_queue_entries * DRAIN_BELOW // 100), act_cycles=hbm.act_command_cycles,
        refresh_by_clock=int(hbm.refresh == "absolute"), **{name: hbm.timings[name] for name in DRAM_TIMINGS},
    )  # fmt: skip


@njit(cache=True)
def place(burst, memory, values):
    """(channel, bank of all channels, row) of burst number `burst` of the address space; `values`: scratch of 5 cells."""
    granule = burst // memory.interleave
    channel = granule % memory.channels
    rest = granule // memory.channels * memory.interleave + burst % memory.interleave
    values[:] = 0
    for i in range(memory.fields.shape[0]):
        field, bits, shift = memory.fields[i]
        if bits < 0:
            values[field] |= rest << shift
        else:
            values[field] |= (rest & ((1 << bits) - 1)) << shift
            rest >>= bits
    for i in range(memory.hashed.shape[0]):
        field, bits, shift = memory.hashed[i]
        values[field] ^= (values[COLUMN] >> shift) & ((1 << bits) - 1)
    half = channel * memory.pseudo_channels + values[PSEUDO_CHANNEL]
    return channel, (half * memory.bank_groups + values[BANK_GROUP]) * memory.banks + values[BANK], values[ROW]


@njit(cache=True)
def stream(bursts, kinds, memory, open_row):
    """Serve burst numbers `bursts` (`kinds`: READ or WRITE each) as fast as the queues take them; `Streamed`.

    Before the first, nothing has happened for long, and every bank is in state `open_row`: CLOSED, or FOREIGN.
    """
    state = _start(bursts, kinds, memory, open_row)
    next_refresh = memory.nREFI if memory.refresh_by_clock else NEVER
    clock = 0
    while state.tally[LEFT]:
        # Bursts enter in one order: the first that finds its queue full holds up all. The very first enters alone: the
        # reference's clock starts with it.
        entered = _enter(state, clock, ENTRIES_PER_CYCLE * memory.channels if clock else 1, memory)
        clock = clock + 1 if entered else max(clock + 1, min(state.wake.min(), next_refresh))
        if clock == next_refresh:
            next_refresh += memory.nREFI
            state.due[:] = 0
            state.due_since[:] = clock
            state.wake[:] = clock
        for channel in range(memory.channels):
            if state.wake[channel] <= clock:
                state.wake[channel] = _step(state, channel, clock, memory)
    last = state.tally[LAST]
    for channel in range(memory.channels):
        if state.due[channel] < memory.pseudo_channels:
            state.refreshing[channel] += max(0, last - state.due_since[channel])
    return Streamed(last, state.tally[HITS], state.tally[MISSES], state.tally[CONFLICTS], state.refreshing.max())


@njit(cache=True)
def _start(bursts, kinds, m, open_row):
    count = len(bursts)
    channels, banks, rows = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    values = np.empty(5, np.int64)
    for i in range(count):
        channels[i], banks[i], rows[i] = place(bursts[i], m, values)
    halves = m.channels * m.pseudo_channels
    groups = halves * m.bank_groups
    all_banks = groups * m.banks
    longest = max(m.read_entries, m.write_entries, all_banks // m.channels)
    tally = np.zeros(6, np.int64)
    tally[LEFT] = count
    return State(
        np.full(all_banks, open_row, np.int64), np.zeros(all_banks, np.int64), np.zeros((2, all_banks), np.int64),
        np.zeros(all_banks, np.int64), np.zeros(all_banks, np.int64), np.zeros((2, groups), np.int64),
        np.zeros(groups, np.int64), np.zeros((2, halves), np.int64), np.zeros(halves, np.int64),
        np.zeros(halves, np.int64), np.zeros(halves, np.int64), np.full((halves, 4), -NEVER, np.int64),
        np.zeros(m.channels, np.int64), np.empty((m.channels, 3, longest), np.int64),
        np.zeros((m.channels, 3), np.int64), np.zeros(m.channels, np.int64),
        np.full(m.channels, m.pseudo_channels, np.int64), np.zeros(m.channels, np.int64),
        np.zeros(m.channels, np.int64), np.full(m.channels, NEVER, np.int64), bursts, kinds, channels, banks, rows,
        np.zeros(count, np.int64), np.zeros(count, np.int64), tally,
    )  # fmt: skip


@njit(cache=True)
def _enter(s, clock, limit, m):
    """Let up to `limit` bursts enter at the end of cycle `clock`; how many did."""
    count = 0
    while count < limit and s.tally[ENTERED] < len(s.bursts):
        burst = s.tally[ENTERED]
        channel, kind = s.channels[burst], s.kinds[burst]
        twin = False
        for i in range(s.length[channel, WRITE]):
            twin = twin or s.bursts[s.queue[channel, WRITE, i]] == s.bursts[burst]
        if twin:  # a read is given the data of the waiting write, a write replaces it
            s.tally[LEFT] -= 1
            s.tally[LAST] = max(s.tally[LAST], clock + 1 if kind == READ else clock)
        else:
            length = s.length[channel, kind]
            if length == (m.write_entries if kind == WRITE else m.read_entries):
                break
            s.queue[channel, kind, length] = burst
            s.length[channel, kind] += 1
            s.entered_at[burst] = clock
            s.wake[channel] = min(s.wake[channel], clock + 1)
        s.tally[ENTERED] += 1
        count += 1
    return count


@njit(cache=True)
def _step(s, channel, clock, m):
    """One cycle of a channel: at most a command on each bus. Returns the cycle in which it has to be looked at again."""
    # Column bus: bursts that a row was opened for come before those of the queue.
    at, soonest = _oldest_active(s, channel, clock, m)
    queue = ACTIVE
    if at < 0 and s.due[channel] == m.pseudo_channels:
        queue = _choose_queue(s, channel, m)
        at, ready = _oldest_ready(s, channel, queue, False, clock, m)
        soonest = min(soonest, ready)
    issued = at >= 0
    if issued:
        _issue(s, channel, queue, at, clock, m)
    # Row bus: a refresh that is due comes before everything and holds up the queues.
    if s.due[channel] < m.pseudo_channels:
        ready = _refresh(s, channel, clock, m)
        issued = issued or ready <= clock
        soonest = min(soonest, ready)
    else:
        queue = _choose_queue(s, channel, m)
        at, ready = _oldest_ready(s, channel, queue, True, clock, m)
        soonest = min(soonest, ready)
        if at >= 0:
            _issue(s, channel, queue, at, clock, m)
            issued = True
    return clock + 1 if issued else soonest


@njit(cache=True)
def _choose_queue(s, channel, m):
    """Reads are served, and writes where none waits, or from when many writes wait until few do."""
    reads, writes = s.length[channel, READ], s.length[channel, WRITE]
    if s.draining[channel]:
        s.draining[channel] = not (writes < m.drain_below and reads > 0)
    else:
        s.draining[channel] = writes > m.drain_above or reads == 0
    return WRITE if s.draining[channel] else READ


@njit(cache=True)
def _oldest_active(s, channel, clock, m):
    """Place in the active queue of the oldest burst whose column command may issue (or -1); when the next one may."""
    chosen, soonest = -1, NEVER
    for i in range(s.length[channel, ACTIVE]):
        burst = s.queue[channel, ACTIVE, i]
        ready = _column_ready(s, s.banks[burst], s.kinds[burst], m)
        if ready > clock:
            soonest = min(soonest, ready)
        elif chosen < 0 or s.entered_at[burst] < s.entered_at[s.queue[channel, ACTIVE, chosen]]:
            chosen = i
    return chosen, soonest


@njit(cache=True)
def _oldest_ready(s, channel, queue, on_row_bus, clock, m):
    """Place in a queue of the oldest burst whose next command is of this bus and may issue (or -1); when one may."""
    soonest = NEVER
    for i in range(s.length[channel, queue]):
        burst = s.queue[channel, queue, i]
        bank = s.banks[burst]
        if (s.opened[bank] != s.rows[burst]) != on_row_bus:
            continue
        if not on_row_bus:
            ready = _column_ready(s, bank, queue, m)
        elif s.opened[bank] == CLOSED:
            group, half = bank // m.banks, bank // m.banks // m.bank_groups
            ready = max(s.row_bus[channel], s.bank_act[bank], s.group_act[group])
            ready = max(ready, s.half_act[half], s.acts[half, 0] + m.nFAW)
        elif s.promoted[bank]:  # a row is not closed before the burst it was opened for has used it
            continue
        else:
            ready = max(s.row_bus[channel], s.bank_pre[bank])
        if ready <= clock:
            return i, ready
        soonest = min(soonest, ready)
    return -1, soonest


@njit(cache=True)
def _column_ready(s, bank, kind, m):
    group = bank // m.banks
    half = group // m.bank_groups
    return max(s.bank_column[kind, bank], s.group_column[kind, group], s.half_column[kind, half])


@njit(cache=True)
def _refresh(s, channel, clock, m):
    """Issue the next command of a due refresh if it may issue; the cycle from which on it may."""
    half = channel * m.pseudo_channels + s.due[channel]
    first, end = half * m.bank_groups * m.banks, (half + 1) * m.bank_groups * m.banks
    closed, awaited = True, False
    for bank in range(first, end):
        closed = closed and s.opened[bank] == CLOSED
        awaited = awaited or s.promoted[bank] > 0
    if closed:
        ready = max(s.row_bus[channel], s.half_refresh[half])
    elif awaited:
        ready = NEVER
    else:
        ready = max(s.row_bus[channel], s.half_pre[half])
    if ready > clock:
        return ready
    # An ACT acts in the last of its command cycles: from a command of one cycle to it, that much less is needed.
    if closed:
        s.half_act[half] = max(s.half_act[half], clock + m.nRFC - (m.act_cycles - 1))
        s.half_pre[half] = max(s.half_pre[half], clock + m.nRFC)
        s.due[channel] += 1
        if s.due[channel] == m.pseudo_channels:
            s.refreshing[channel] += clock + m.nRFC - s.due_since[channel]
    else:
        s.opened[first:end] = CLOSED
        s.half_act[half] = max(s.half_act[half], clock + m.nRP - (m.act_cycles - 1))
        s.half_refresh[half] = max(s.half_refresh[half], clock + m.nRP)
    return ready


@njit(cache=True)
def _issue(s, channel, queue, at, clock, m):
    """Issue the next command of the burst at place `at` of a queue."""
    burst = s.queue[channel, queue, at]
    bank, kind, row = s.banks[burst], s.kinds[burst], s.rows[burst]
    group = bank // m.banks
    half = group // m.bank_groups
    found = HITS if s.opened[bank] == row else MISSES if s.opened[bank] == CLOSED else CONFLICTS
    if not s.counted[burst]:
        s.counted[burst] = 1
        s.tally[found] += 1
    late = m.act_cycles - 1  # of an ACT, timings count from its last command cycle
    if found == CONFLICTS:  # PRE
        s.opened[bank] = CLOSED
        s.bank_act[bank] = max(s.bank_act[bank], clock + m.nRP - late)
        s.half_refresh[half] = max(s.half_refresh[half], clock + m.nRP)
        return
    if found == MISSES:  # ACT; from now on the burst waits in the active queue
        s.opened[bank] = row
        s.row_bus[channel] = clock + m.act_cycles
        s.bank_act[bank] = clock + m.nRC
        s.group_act[group] = clock + m.nRRDL
        s.half_act[half] = max(s.half_act[half], clock + m.nRRDS)
        s.acts[half, :3] = s.acts[half, 1:]
        s.acts[half, 3] = clock
        s.bank_column[READ, bank] = clock + m.nRCDRD + late
        s.bank_column[WRITE, bank] = clock + m.nRCDWR + late
        s.bank_pre[bank] = max(s.bank_pre[bank], clock + m.nRAS + late)
        s.half_pre[half] = max(s.half_pre[half], clock + m.nRAS + late)
        s.half_refresh[half] = max(s.half_refresh[half], clock + m.nRC + late)
        s.promoted[bank] += 1
        s.queue[channel, ACTIVE, s.length[channel, ACTIVE]] = burst
        s.length[channel, ACTIVE] += 1
    else:  # RD or WR
        s.half_column[kind, half] = clock + max(m.nBL, m.nCCDS)
        s.group_column[kind, group] = clock + m.nCCDL
        if kind == READ:
            turned = clock + m.nCL + m.nBL + 2 - m.nCWL
            s.half_column[WRITE, half] = max(s.half_column[WRITE, half], turned)
            reusable, complete = clock + m.nRTPL, clock + m.nCL + m.nBL
        else:
            written = clock + m.nCWL + m.nBL
            s.half_column[READ, half] = max(s.half_column[READ, half], written + m.nWTRS)
            s.group_column[READ, group] = max(s.group_column[READ, group], written + m.nWTRL)
            reusable, complete = written + m.nWR, clock
        s.bank_pre[bank] = max(s.bank_pre[bank], reusable)
        s.half_pre[half] = max(s.half_pre[half], reusable)
        s.tally[LAST] = max(s.tally[LAST], complete)
        s.tally[LEFT] -= 1
        if queue == ACTIVE:
            s.promoted[bank] -= 1
    s.length[channel, queue] -= 1
    for i in range(at, s.length[channel, queue]):
        s.queue[channel, queue, i] = s.queue[channel, queue, i + 1]
