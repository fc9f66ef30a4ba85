"""HBM burst by burst: what a sequence of bursts costs in memory cycles, with the controllers of docs/dram.md.

Time goes from one cycle in which some channel can do something to the next, so idle cycles cost nothing. All quantities are
integers; a cycle is one of the memory's clock.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from npu.hardware import ADDRESS_MAPPINGS, DRAM_TIMINGS, Hbm

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

READY_READ, READY_WRITE, READY_ACT, READY_PRE, READY_REFRESH = range(5)
"""Columns of `bank`, `group` and `half`: the earliest cycle of a command, as far as that level is concerned."""

OPEN_ROW, PROMOTED, BANK_CELLS = range(5, 8)
"""Further columns of `bank`: its open row, and how many of its bursts are in the active queue."""

LAST_ACTS, HALF_CELLS = 5, 9
"""Further columns of `half`: the cycles of the last four ACTs, oldest first."""

ROW_BUS, DRAINING, DUE, DUE_SINCE, REFRESH_END, REFRESHING, WAKE, LENGTH = range(8)
"""Columns of `channel`: when its row bus is free, whether it serves writes, which of its pseudo channels is to be refreshed
next (their number: none), since when, and the end of the last refresh; cycles in refresh; when to look at it again; and
from `LENGTH` on the length of each queue."""

NUMBER, KIND, CHANNEL_OF, BANK_OF, ROW_OF, ENTERED_AT, COUNTED, BURST_CELLS = range(8)
"""Columns of `burst`: where it is, when it entered its queue, and whether the row that it found has been counted."""

ENTERED, LEFT, LAST, HITS, MISSES, CONFLICTS, TALLY_CELLS = range(7)
"""Cells of `tally`: bursts that have entered, and that are not complete; the last completion so far; rows found."""

Rules = namedtuple(
    "Rules",
    "channels interleave burst_bytes pseudo_channels bank_groups banks read_entries write_entries "
    "drain_above drain_below act_cycles refresh_by_clock "
    "nBL nCL nRCDRD nRCDWR nRP nRAS nRC nWR nRTPL nCWL nCCDS nCCDL nWTRS nWTRL nRRDS nRRDL nFAW nRFC nREFI",
)
"""The integers of `Hbm` for compiled code. `interleave` counts bursts, `banks` those of a bank group.
`refresh_by_clock`: whether `stream` refreshes."""

Memory = namedtuple("Memory", "rules fields hashed")
"""`Hbm` as compiled code sees it.

`fields` has a row (field, bits, shift) for each field of an address, the least significant first: its next bits, -1 for all
that remain, become those of the field from `shift` up. `hashed` has a row (field, bits, shift) for each field that is XORed
with bits of the column from `shift` up.
"""

Streamed = namedtuple("Streamed", "cycles hits misses conflicts refresh_cycles")
"""The cost of a sequence of bursts.

`cycles`: from the first burst to the last completion (of a read: its data is returned; of a write: its column command has
issued). `hits`, `misses` (the bank was closed) and `conflicts` (another row was open) count every burst that needed the DRAM
once, by the state that its first command found. `refresh_cycles`: of the channel with the most of them; each refresh counts from
when it falls due to its end, as far as this lies before the last completion.
"""


def memory_of(hbm: Hbm) -> Memory:
    """The facts of `hbm` for compiled code."""
    mapping = ADDRESS_MAPPINGS[hbm.address_mapping]
    sizes = {
        "column": hbm.page_bytes // hbm.burst_bytes, "pseudo_channel": hbm.pseudo_channels,
        "bank_group": hbm.bank_groups, "bank": hbm.banks_per_group, "row": hbm.rows,
    }  # fmt: skip
    widths = {name: (size - 1).bit_length() for name, size in sizes.items()}
    placed = dict.fromkeys(widths, 0)
    fields, hashed, shift = [], [], 0
    for name, bits in mapping.fields:
        taken = bits or widths[name] - placed[name]
        fields.append((FIELDS[name], taken, placed[name]))
        placed[name] += taken
    for name in mapping.hashed:
        hashed.append((FIELDS[name], widths[name], shift))
        shift += widths[name]
    rules = Rules(
        channels=hbm.channels, interleave=hbm.interleave_bytes // hbm.burst_bytes, burst_bytes=hbm.burst_bytes,
        pseudo_channels=hbm.pseudo_channels, bank_groups=hbm.bank_groups, banks=hbm.banks_per_group,
        read_entries=hbm.read_queue_entries, write_entries=hbm.write_queue_entries,
        drain_above=hbm.write_queue_entries * DRAIN_ABOVE // 100,
        drain_below=-(-hbm.write_queue_entries * DRAIN_BELOW // 100), act_cycles=hbm.act_command_cycles,
        refresh_by_clock=int(hbm.refresh == "absolute"), **{name: hbm.timings[name] for name in DRAM_TIMINGS},
    )  # fmt: skip
    return Memory(rules=rules, fields=np.array(fields, np.int64), hashed=np.array(hashed, np.int64).reshape(-1, 3))


@njit(cache=True)
def place(number, memory, values):
    """(channel, bank, row) of burst `number` of the address space; `values`: scratch of 5 cells.

    Banks, bank groups and pseudo channels are numbered through all channels.
    """
    m = memory.rules
    granule = number // m.interleave
    channel = granule % m.channels
    rest = granule // m.channels * m.interleave + number % m.interleave
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
    half = channel * m.pseudo_channels + values[PSEUDO_CHANNEL]
    return channel, (half * m.bank_groups + values[BANK_GROUP]) * m.banks + values[BANK], values[ROW]


@njit(cache=True)
def all_banks(state, memory):
    """The state of every bank at the start of `stream`, the same for all."""
    m = memory.rules
    return np.full(m.channels * m.pseudo_channels * m.bank_groups * m.banks, state, np.int64)


@njit(cache=True)
def stream(numbers, kinds, memory, opened):
    """Serve bursts `numbers` (`kinds`: READ or WRITE each) as fast as the queues take them; `Streamed`.

    Nothing has happened for long before the first. `opened` has for each bank (numbered as by `place`) its open row, CLOSED
    or FOREIGN; `all_banks` makes one.
    """
    m = memory.rules
    halves = m.channels * m.pseudo_channels
    group = np.zeros((halves * m.bank_groups, 3), np.int64)
    half = np.zeros((halves, HALF_CELLS), np.int64)
    half[:, LAST_ACTS:] = -NEVER
    bank = np.zeros((len(group) * m.banks, BANK_CELLS), np.int64)
    bank[:, OPEN_ROW] = opened
    queue = np.zeros((m.channels, 3, max(m.read_entries, m.write_entries, len(bank) // m.channels)), np.int64)
    channel = np.zeros((m.channels, LENGTH + 3), np.int64)
    channel[:, DUE], channel[:, WAKE] = m.pseudo_channels, NEVER
    channel[:, DRAINING] = 1  # nothing to read, so writes would be served
    burst = np.zeros((len(numbers), BURST_CELLS), np.int64)
    burst[:, NUMBER], burst[:, KIND] = numbers, kinds
    values = np.empty(5, np.int64)
    for i in range(len(numbers)):
        burst[i, CHANNEL_OF], burst[i, BANK_OF], burst[i, ROW_OF] = place(numbers[i], memory, values)
    tally = np.zeros(TALLY_CELLS, np.int64)
    tally[LEFT] = len(numbers)
    next_refresh = m.nREFI if m.refresh_by_clock else NEVER
    clock = np.int64(0)
    while tally[LEFT]:
        # Bursts enter in one order: the first that finds its queue full holds up all. The very first enters alone: the
        # reference's clock starts with it.
        limit = ENTRIES_PER_CYCLE * m.channels if clock else 1
        entered = _enter(channel, queue, burst, tally, clock, limit, m)
        soonest = clock + 1
        if not entered:
            soonest = next_refresh
            for c in range(m.channels):
                soonest = min(soonest, channel[c, WAKE])
        clock = max(clock + 1, soonest)
        if clock == next_refresh:
            next_refresh += m.nREFI
            channel[:, DUE], channel[:, DUE_SINCE], channel[:, WAKE] = 0, clock, clock
        for c in range(m.channels):
            if channel[c, WAKE] <= clock:
                channel[c, WAKE] = _step(c, channel, bank, group, half, queue, burst, tally, clock, m)
    refreshing = 0
    for c in range(m.channels):
        if channel[c, DUE] < m.pseudo_channels:
            channel[c, REFRESHING] += max(0, tally[LAST] - channel[c, DUE_SINCE])
        else:
            beyond = channel[c, REFRESH_END] - max(tally[LAST], channel[c, DUE_SINCE])
            channel[c, REFRESHING] -= max(0, beyond)
        refreshing = max(refreshing, channel[c, REFRESHING])
    return Streamed(tally[LAST], tally[HITS], tally[MISSES], tally[CONFLICTS], refreshing)


@njit(cache=True)
def _enter(channel, queue, burst, tally, clock, limit, m):
    """Let up to `limit` bursts enter at the end of cycle `clock`; how many did."""
    count = 0
    while count < limit and tally[ENTERED] < len(burst):
        new = tally[ENTERED]
        c, kind = burst[new, CHANNEL_OF], burst[new, KIND]
        twin = False
        for i in range(channel[c, LENGTH + WRITE]):
            twin = twin or burst[queue[c, WRITE, i], NUMBER] == burst[new, NUMBER]
        if twin:  # a read is given the data of the waiting write, a write replaces it
            tally[LEFT] -= 1
            tally[LAST] = max(tally[LAST], clock + 1 if kind == READ else clock)
        else:
            length = channel[c, LENGTH + kind]
            if length == (m.write_entries if kind == WRITE else m.read_entries):
                break
            queue[c, kind, length] = new
            channel[c, LENGTH + kind] += 1
            burst[new, ENTERED_AT] = clock
            channel[c, WAKE] = min(channel[c, WAKE], clock + 1)
        tally[ENTERED] += 1
        count += 1
    return count


@njit(cache=True)
def _step(c, channel, bank, group, half, queue, burst, tally, clock, m):
    """One cycle of channel `c`: at most a command on each bus. Returns the cycle in which to look at it again."""
    # Column bus: bursts that a row was opened for come before those of the queue.
    source = ACTIVE
    at, soonest = _oldest_active(c, channel, bank, group, half, queue, burst, clock, m)
    if at < 0 and channel[c, DUE] == m.pseudo_channels:
        source = _choose_queue(c, channel, m)
        at, ready = _oldest_ready(c, source, False, channel, bank, group, half, queue, burst, clock, m)
        soonest = min(soonest, ready)
    issued = at >= 0
    if issued:
        _issue(c, source, at, channel, bank, group, half, queue, burst, tally, clock, m)
    # Row bus: a refresh that is due comes before everything and holds up the queues.
    if channel[c, DUE] < m.pseudo_channels:
        ready = _refresh(c, channel, bank, half, clock, m)
        issued = issued or ready <= clock
        soonest = min(soonest, ready)
    else:
        source = _choose_queue(c, channel, m)
        at, ready = _oldest_ready(c, source, True, channel, bank, group, half, queue, burst, clock, m)
        soonest = min(soonest, ready)
        if at >= 0:
            _issue(c, source, at, channel, bank, group, half, queue, burst, tally, clock, m)
            issued = True
    return clock + 1 if issued else soonest


@njit(cache=True)
def _choose_queue(c, channel, m):
    """Reads are served; writes where no read waits, and from when many writes wait until few do."""
    reads, writes = channel[c, LENGTH + READ], channel[c, LENGTH + WRITE]
    if channel[c, DRAINING]:
        channel[c, DRAINING] = not (writes < m.drain_below and reads > 0)
    else:
        channel[c, DRAINING] = writes > m.drain_above or reads == 0
    return WRITE if channel[c, DRAINING] else READ


@njit(cache=True)
def _oldest_active(c, channel, bank, group, half, queue, burst, clock, m):
    """Place in the active queue of the oldest burst whose column command may issue (or -1); when the next one may."""
    chosen, soonest = -1, NEVER
    for i in range(channel[c, LENGTH + ACTIVE]):
        b = queue[c, ACTIVE, i]
        ready = _column_ready(burst[b, BANK_OF], burst[b, KIND], bank, group, half, m)
        if ready > clock:
            soonest = min(soonest, ready)
        elif chosen < 0 or burst[b, ENTERED_AT] < burst[queue[c, ACTIVE, chosen], ENTERED_AT]:
            chosen = i
    return chosen, soonest


@njit(cache=True)
def _oldest_ready(c, source, on_row_bus, channel, bank, group, half, queue, burst, clock, m):
    """Place in a queue of the oldest burst whose next command is of this bus and may issue (or -1); when one may."""
    soonest = NEVER
    for i in range(channel[c, LENGTH + source]):
        b = queue[c, source, i]
        k = burst[b, BANK_OF]
        if (bank[k, OPEN_ROW] != burst[b, ROW_OF]) != on_row_bus:
            continue
        if not on_row_bus:
            ready = _column_ready(k, source, bank, group, half, m)
        elif bank[k, OPEN_ROW] == CLOSED:
            g = k // m.banks
            h = g // m.bank_groups
            ready = max(channel[c, ROW_BUS], bank[k, READY_ACT], group[g, READY_ACT])
            ready = max(ready, half[h, READY_ACT], half[h, LAST_ACTS] + m.nFAW)
        elif bank[k, PROMOTED]:  # a row is not closed before the burst that it was opened for has used it
            continue
        else:
            ready = max(channel[c, ROW_BUS], bank[k, READY_PRE])
        if ready <= clock:
            return i, ready
        soonest = min(soonest, ready)
    return -1, soonest


@njit(cache=True)
def _column_ready(k, kind, bank, group, half, m):
    """Earliest cycle of a RD or WR of bank `k`."""
    g = k // m.banks
    return max(bank[k, kind], group[g, kind], half[g // m.bank_groups, kind])


@njit(cache=True)
def _refresh(c, channel, bank, half, clock, m):
    """Issue the next command of a due refresh if it may issue; the cycle from which on it may."""
    h = c * m.pseudo_channels + channel[c, DUE]
    first, end = h * m.bank_groups * m.banks, (h + 1) * m.bank_groups * m.banks
    closed, awaited = True, False
    for k in range(first, end):
        closed = closed and bank[k, OPEN_ROW] == CLOSED
        awaited = awaited or bank[k, PROMOTED] > 0
    if closed:
        ready = max(channel[c, ROW_BUS], half[h, READY_REFRESH])
    elif awaited:
        ready = NEVER
    else:
        ready = max(channel[c, ROW_BUS], half[h, READY_PRE])
    if ready > clock:
        return ready
    # An ACT acts in the last of its command cycles: it may begin by so much earlier after a command of one cycle.
    late = m.act_cycles - 1
    if closed:
        half[h, READY_ACT] = max(half[h, READY_ACT], clock + m.nRFC - late)
        half[h, READY_PRE] = max(half[h, READY_PRE], clock + m.nRFC)
        channel[c, DUE] += 1
        if channel[c, DUE] == m.pseudo_channels:
            channel[c, REFRESH_END] = clock + m.nRFC
            channel[c, REFRESHING] += channel[c, REFRESH_END] - channel[c, DUE_SINCE]
    else:
        bank[first:end, OPEN_ROW] = CLOSED
        half[h, READY_ACT] = max(half[h, READY_ACT], clock + m.nRP - late)
        half[h, READY_REFRESH] = max(half[h, READY_REFRESH], clock + m.nRP)
    return ready


@njit(cache=True)
def _issue(c, source, at, channel, bank, group, half, queue, burst, tally, clock, m):
    """Issue the next command of the burst at place `at` of a queue."""
    b = queue[c, source, at]
    k, kind, row = burst[b, BANK_OF], burst[b, KIND], burst[b, ROW_OF]
    g = k // m.banks
    h = g // m.bank_groups
    found = HITS if bank[k, OPEN_ROW] == row else MISSES if bank[k, OPEN_ROW] == CLOSED else CONFLICTS
    if not burst[b, COUNTED]:
        burst[b, COUNTED] = 1
        tally[found] += 1
    late = m.act_cycles - 1  # after an ACT, timings count from the last of its command cycles
    if found == CONFLICTS:  # PRE
        bank[k, OPEN_ROW] = CLOSED
        bank[k, READY_ACT] = max(bank[k, READY_ACT], clock + m.nRP - late)
        half[h, READY_REFRESH] = max(half[h, READY_REFRESH], clock + m.nRP)
        return
    if found == MISSES:  # ACT; from now on the burst waits in the active queue
        bank[k, OPEN_ROW] = row
        bank[k, PROMOTED] += 1
        bank[k, READY_ACT] = clock + m.nRC
        bank[k, READY_READ] = clock + m.nRCDRD + late
        bank[k, READY_WRITE] = clock + m.nRCDWR + late
        bank[k, READY_PRE] = max(bank[k, READY_PRE], clock + m.nRAS + late)
        group[g, READY_ACT] = clock + m.nRRDL
        half[h, READY_ACT] = max(half[h, READY_ACT], clock + m.nRRDS)
        half[h, READY_PRE] = max(half[h, READY_PRE], clock + m.nRAS + late)
        half[h, READY_REFRESH] = max(half[h, READY_REFRESH], clock + m.nRC + late)
        for i in range(LAST_ACTS, HALF_CELLS - 1):
            half[h, i] = half[h, i + 1]
        half[h, HALF_CELLS - 1] = clock
        channel[c, ROW_BUS] = clock + m.act_cycles
        queue[c, ACTIVE, channel[c, LENGTH + ACTIVE]] = b
        channel[c, LENGTH + ACTIVE] += 1
    else:  # RD or WR
        half[h, kind] = clock + max(m.nBL, m.nCCDS)
        group[g, kind] = clock + m.nCCDL
        if kind == READ:
            turned = clock + m.nCL + m.nBL + 2 - m.nCWL
            half[h, READY_WRITE] = max(half[h, READY_WRITE], turned)
            reusable, complete = clock + m.nRTPL, clock + m.nCL + m.nBL
        else:
            written = clock + m.nCWL + m.nBL
            half[h, READY_READ] = max(half[h, READY_READ], written + m.nWTRS)
            group[g, READY_READ] = max(group[g, READY_READ], written + m.nWTRL)
            reusable, complete = written + m.nWR, clock
        bank[k, READY_PRE] = max(bank[k, READY_PRE], reusable)
        half[h, READY_PRE] = max(half[h, READY_PRE], reusable)
        tally[LAST] = max(tally[LAST], complete)
        tally[LEFT] -= 1
        if source == ACTIVE:
            bank[k, PROMOTED] -= 1
    channel[c, LENGTH + source] -= 1
    for i in range(at, channel[c, LENGTH + source]):
        queue[c, source, i] = queue[c, source, i + 1]
