"""A DRAM controller in plain Python that looks at every cycle and keeps the history of commands: the oracle of
`cycle.dram` on small streams. Timings are a table of what must lie between two commands."""

from collections import defaultdict, deque

from cycle.dram import place


def constraints(t, act_cycles):
    """(level, command before, command, cycles between, how many such commands back)."""
    late = act_cycles - 1
    gaps = {("RD", "RD"): t.nBL, ("WR", "WR"): t.nBL}
    rows = [("half", a, b, gap, 1) for (a, b), gap in gaps.items()]
    rows += [("half", a, a, t.nCCDS, 1) for a in ("RD", "WR")] + [("group", a, a, t.nCCDL, 1) for a in ("RD", "WR")]
    rows += [
        ("half", "RD", "WR", t.nCL + t.nBL + 2 - t.nCWL, 1), ("half", "WR", "RD", t.nCWL + t.nBL + t.nWTRS, 1),
        ("group", "WR", "RD", t.nCWL + t.nBL + t.nWTRL, 1), ("bank", "ACT", "RD", t.nRCDRD + late, 1),
        ("bank", "ACT", "WR", t.nRCDWR + late, 1), ("bank", "ACT", "ACT", t.nRC, 1), ("group", "ACT", "ACT", t.nRRDL, 1),
        ("half", "ACT", "ACT", t.nRRDS, 1), ("half", "ACT", "ACT", t.nFAW, 4), ("bank", "PRE", "ACT", t.nRP - late, 1),
        ("half", "PREA", "ACT", t.nRP - late, 1), ("half", "REF", "ACT", t.nRFC - late, 1),
        ("half", "REF", "PREA", t.nRFC, 1), ("half", "ACT", "REF", t.nRC + late, 1), ("half", "PRE", "REF", t.nRP, 1),
        ("half", "PREA", "REF", t.nRP, 1),
    ]  # fmt: skip
    rows += [(level, "ACT", close, t.nRAS + late, 1) for level, close in (("bank", "PRE"), ("half", "PREA"))]
    rows += [(level, "RD", close, t.nRTPL, 1) for level, close in (("bank", "PRE"), ("half", "PREA"))]
    rows += [(level, "WR", close, t.nCWL + t.nBL + t.nWR, 1) for level, close in (("bank", "PRE"), ("half", "PREA"))]
    rows += [("channel", "ACT", row_command, act_cycles, 1) for row_command in ("ACT", "PRE", "PREA", "REF")]
    return rows


class Burst:
    def __init__(self, number, kind, where, row, m):
        self.number, self.final, self.row, self.entered, self.found = number, "WR" if kind else "RD", row, None, None
        self.where = {"bank": where, "group": where // m.banks, "half": where // m.banks // m.bank_groups}


class Channel:
    def __init__(self, index, m, opened):
        self.index, self.m, self.table = index, m, constraints(m, m.act_cycles)
        self.history = defaultdict(lambda: deque(maxlen=4))
        self.opened = opened  # bank: row, where one is open
        self.reads, self.writes, self.active, self.refresh = [], [], [], []
        self.draining = False

    def ready(self, command, where, clock):
        where = {**where, "channel": self.index}
        for level, before, after, cycles, back in self.table:
            past = self.history[level, before, where.get(level)]
            if after == command and len(past) >= back and clock < past[-back] + cycles:
                return False
        return True

    def note(self, command, where, clock):
        for level, index in {**where, "channel": self.index}.items():
            self.history[level, command, index].append(clock)

    def command(self, burst):
        row = self.opened.get(burst.where["bank"])
        return "ACT" if row is None else burst.final if row == burst.row else "PRE"

    def waiting(self):
        """The queue that is served now."""
        low, high = self.m.write_entries * 0.2, self.m.write_entries * 0.8
        if self.draining:
            self.draining = not (len(self.writes) < low and self.reads)
        else:
            self.draining = len(self.writes) > high or not self.reads
        return self.writes if self.draining else self.reads

    def used(self, bank):
        return any(burst.where["bank"] == bank for burst in self.active)

    def pick(self, queue, commands, clock):
        best = None
        for burst in queue:
            command = self.command(burst)
            closes_used = command == "PRE" and self.used(burst.where["bank"])
            if command in commands and not closes_used and self.ready(command, burst.where, clock):
                best = burst if best is None or burst.entered < best.entered else best
        return best

    def issue(self, queue, burst, clock):
        """Returns when the burst is complete, None if it is not."""
        command = self.command(burst)
        burst.found = burst.found or {"ACT": "misses", "PRE": "conflicts"}.get(command, "hits")
        self.note(command, burst.where, clock)
        if command == "PRE":
            del self.opened[burst.where["bank"]]
            return None
        queue.remove(burst)
        if command == "ACT":
            self.opened[burst.where["bank"]] = burst.row
            self.active.append(burst)
            return None
        return clock + self.m.nCL + self.m.nBL if command == "RD" else clock

    def step(self, clock):
        """One cycle; yields completions."""
        burst, queue = self.pick(self.active, ("RD", "WR"), clock), self.active
        if burst is None and not self.refresh:
            queue = self.waiting()
            burst = self.pick(queue, ("RD", "WR"), clock)
        if burst is not None:
            yield self.issue(queue, burst, clock)
        if self.refresh:
            half = self.refresh[0]
            banks = [bank for bank in self.opened if bank // self.m.banks // self.m.bank_groups == half]
            command, where = "PREA" if banks else "REF", {"half": half}
            if self.ready(command, where, clock) and not (banks and any(b.where["half"] == half for b in self.active)):
                self.note(command, where, clock)
                for bank in banks:
                    del self.opened[bank]
                if command == "REF":
                    self.refresh.pop(0)
        else:
            queue = self.waiting()
            burst = self.pick(queue, ("ACT", "PRE"), clock)
            if burst is not None:
                yield self.issue(queue, burst, clock)


def run_clocked(numbers, kinds, memory, values):
    """(cycles, hits, misses, conflicts) of a stream, all banks closed before."""
    m, bursts = memory.rules, []
    channels = [Channel(i, m, {}) for i in range(m.channels)]
    for number, kind in zip(numbers, kinds, strict=True):
        channel, bank, row = place(number, memory, values)
        bursts.append((channels[channel], Burst(number, kind, bank, row, m)))
    waiting, clock, last, left = deque(bursts), 0, 0, len(bursts)
    while left:
        for _ in range(4 * m.channels if clock else 1):
            if not waiting:
                break
            channel, burst = waiting[0]
            queue, places = (
                (channel.writes, m.write_entries) if burst.final == "WR" else (channel.reads, m.read_entries)
            )
            if any(other.number == burst.number for other in channel.writes):
                last, left = max(last, clock + (burst.final == "RD")), left - 1
            elif len(queue) == places:
                break
            else:
                burst.entered = clock
                queue.append(burst)
            waiting.popleft()
        if not left:
            break
        clock += 1
        for channel in channels:
            if m.refresh_by_clock and clock % m.nREFI == 0:
                channel.refresh = [channel.index * m.pseudo_channels + half for half in range(m.pseudo_channels)]
            for complete in channel.step(clock):
                if complete is not None:
                    last, left = max(last, complete), left - 1
    found = [burst.found for _, burst in bursts]
    return last, *(found.count(kind) for kind in ("hits", "misses", "conflicts"))
