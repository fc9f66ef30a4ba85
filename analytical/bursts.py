"""Costs of descriptors, burst by burst, for memories whose queues are too short to keep all banks busy.

A recurrence: a burst enters behind those before it, once the queue of its channel has a place. It opens its row, and takes its
bank group, its data bus and the command bus of its channel for as long as the timings say. Bursts may overtake wherever the
controller could reorder them: a bus is busy with everything that has entered, in any order. docs/dram.md compares this with the
burst model.
"""

import math
from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from npu.hardware import ADDRESS_MAPPINGS, Hbm

MOST_BURSTS = 1 << 12
"""A stream of descriptors is followed for at most so many bursts, and goes on as in the second half of these."""

FIELDS: Sequence[str] = ("column", "pseudo_channel", "bank_group", "bank", "row")
CLOSED = -1
LONG_AGO = -1e9

Timings = namedtuple(
    "Timings", "entries groups banks bus group opens closes reopens act_bus acts_apart group_acts_apart four_acts done"
)
"""Memory cycles for one direction, and numbers: places of a channel's queue; bank groups of a pseudo channel, banks of a group;
from a column command to the next of the pseudo channel, of the bank group; from ACT to the column command; from PRE to ACT; from
ACT to PRE; an ACT on the row bus; from ACT to ACT in the pseudo channel, in the bank group, and to the fourth after it; from the
column command to the end of the transfer."""


class Channels(NamedTuple):
    """An `Hbm` for one direction, as a value that can be looked up: how its channels serve bursts, and where these lie."""

    timings: Timings
    channels: int
    interleave: int
    burst_bytes: int
    period_bytes: int
    mapping: str
    sizes: tuple[int, ...]
    """Of each of FIELDS."""


class Cost(NamedTuple):
    """Memory cycles of a descriptor, without refresh: what one more adds to a stream of like ones, and what one takes alone."""

    busy: float
    alone: float


def channels_of(hbm: Hbm, *, write: bool) -> Channels:
    """The facts of `hbm` for one direction."""
    t, late = hbm.timings, hbm.act_command_cycles - 1  # after an ACT, timings count from the last of its command cycles
    banks = hbm.pseudo_channels * hbm.bank_groups * hbm.banks_per_group
    return Channels(
        timings=Timings(
            entries=hbm.write_queue_entries if write else hbm.read_queue_entries, groups=hbm.bank_groups,
            banks=hbm.banks_per_group, bus=max(t["nBL"], t["nCCDS"]), group=t["nCCDL"],
            opens=t["nRCDWR" if write else "nRCDRD"] + late, closes=max(t["nRP"] - late, 0), reopens=t["nRAS"] + late,
            act_bus=hbm.act_command_cycles, acts_apart=t["nRRDS"], group_acts_apart=t["nRRDL"], four_acts=t["nFAW"],
            done=0 if write else t["nCL"] + t["nBL"],
        ),
        channels=hbm.channels, interleave=hbm.interleave_bytes // hbm.burst_bytes, burst_bytes=hbm.burst_bytes,
        period_bytes=hbm.channels * math.lcm(hbm.page_bytes * banks, hbm.interleave_bytes), mapping=hbm.address_mapping,
        sizes=(hbm.page_bytes // hbm.burst_bytes, hbm.pseudo_channels, hbm.bank_groups, hbm.banks_per_group, hbm.rows),
    )  # fmt: skip


@lru_cache(maxsize=1 << 12)
def cost_of(memory: Channels, rows: int, size: int, stride: int, offset: int) -> Cost:
    """Of a descriptor of `rows` runs of `size` bytes, `stride` apart, that begins at `offset` in a burst."""
    own, span = _bursts(memory, rows, size, stride, offset), rows * stride if rows > 1 and stride else size
    filled = 2 * memory.timings.entries * memory.channels // len(own)
    wanted = max(2, filled, -(-memory.period_bytes // span))
    followed = max(2, min(wanted, MOST_BURSTS // len(own)))
    half = followed // 2
    stream = np.concatenate([_bursts(memory, rows, size, stride, offset + span * i) for i in range(followed + 1)])
    marks = np.array([len(own), len(own) * (half + 1), len(stream)])
    first, middle, last = serve(*_places(memory, stream), marks, memory.timings)
    steady = (last - middle) / (followed - half)
    return Cost(min((last - first + (wanted - followed) * steady) / wanted, first), first)


def _bursts(memory: Channels, rows: int, size: int, stride: int, address: int) -> np.ndarray:
    """Numbers of the bursts that a descriptor touches, run by run."""
    starts = address + abs(stride) * np.arange(rows)
    first, last = starts // memory.burst_bytes, (starts + size - 1) // memory.burst_bytes
    count = last - first + 1
    begins = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - begins, count)


def _places(memory: Channels, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Channel, bank (numbered through all channels) and row of each burst."""
    granule, inside = np.divmod(numbers, memory.interleave)
    turn, channel = np.divmod(granule, memory.channels)
    rest, mapping = turn * memory.interleave + inside, ADDRESS_MAPPINGS[memory.mapping]
    widths = dict(zip(FIELDS, [(size - 1).bit_length() for size in memory.sizes], strict=True))
    values: dict[str, np.ndarray] = {name: np.zeros_like(rest) for name in FIELDS}
    placed: dict[str, int] = dict.fromkeys(FIELDS, 0)
    shift = 0
    for name, stated in mapping.fields:
        bits = stated or widths[name] - placed[name]
        values[name] |= (rest if bits < 0 else rest & ((1 << bits) - 1)) << placed[name]
        rest = rest if bits < 0 else rest >> bits
        placed[name] += bits
    for name in mapping.hashed:
        values[name] ^= (values["column"] >> shift) & ((1 << widths[name]) - 1)
        shift += widths[name]
    _, halves, groups, banks, _ = memory.sizes
    group = (channel * halves + values["pseudo_channel"]) * groups + values["bank_group"]
    return channel, group * banks + values["bank"], values["row"]


@njit(cache=True)
def serve(channel, bank, row, marks, timings):
    """When all bursts before each of the `marks` are over; nothing has happened for long before the first, all banks are open on
    other rows."""
    t = timings
    banks = bank.max() + 1
    groups = banks // t.banks + 1
    halves = groups // t.groups + 1
    places = np.zeros((channel.max() + 1, t.entries))
    commands, row_bus = np.zeros(len(places)), np.zeros(len(places))
    bus, group, group_act = np.zeros(halves), np.zeros(groups), np.full(groups, LONG_AGO)
    acts = np.full((halves, 4), LONG_AGO)
    opened, ready, closable = np.full(banks, CLOSED), np.zeros(banks), np.zeros(banks)
    over = np.zeros(len(marks))
    entered = last = 0.0
    mark = 0
    for i in range(len(bank)):
        c, b = channel[i], bank[i]
        g = b // t.banks
        h = g // t.groups
        place = places[c].argmin()
        entered = max(entered, places[c, place])
        soonest = entered + 1
        opening = opened[b] != row[i]
        if opening:
            act = max(soonest, closable[b]) + t.closes
            act = max(act, row_bus[c], group_act[g] + t.group_acts_apart)
            act = max(act, acts[h, 3] + t.acts_apart, acts[h, 0] + t.four_acts)
            for k in range(3):
                acts[h, k] = acts[h, k + 1]
            row_bus[c], group_act[g], acts[h, 3] = act + t.act_bus, act, act
            opened[b], ready[b], closable[b] = row[i], act + t.opens, act + t.reopens
            places[c, place] = act  # from here on it waits elsewhere
        column = max(ready[b], bus[h], group[g], commands[c], soonest)
        bus[h] = max(bus[h], soonest) + t.bus
        group[g] = max(group[g], soonest) + t.group
        commands[c] = max(commands[c], soonest) + 1
        ready[b] = column + t.group
        if not opening:
            places[c, place] = column
        last = max(last, column + t.done)
        while mark < len(marks) and i + 1 == marks[mark]:
            over[mark] = last
            mark += 1
    return over[0], over[1], over[2]
