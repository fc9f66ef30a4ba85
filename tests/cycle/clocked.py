"""A clock-driven model of the machine in plain Python: one loop iteration per cycle, no event times. The oracle of the
event-driven `cycle.machine` on small programs; it shares with it only the program, the facts of the hardware, and what one
DMA descriptor costs by the burst model, which has an oracle of its own."""

import math
from collections import deque

from cycle.transfers import dma_memory_of, transfer
from npu.hardware import QUEUED_UNITS
from npu.isa import Memory, Unit

QUEUE = {
    Unit.MATRIX: "matrix",
    Unit.VECTOR: "vector",
    Unit.SCALAR: "vector",
    Unit.DMA_IN: "dma_in",
    Unit.DMA_OUT: "dma_out",
}


class FrontEnd:
    """Yields (instruction number, resolved addresses) of queued instructions, and the cycles that control costs."""

    def __init__(self, program, hardware):
        self.code, self.facts, self.hardware = program.instructions, hardware.frontend, hardware
        self.pc, self.index, self.trips, self.start = 0, {}, {}, {}
        self.base, self.steps, self.pitch = {}, {}, {}

    def address(self, register):
        strides = self.steps.get(register, {})
        return self.base[register] + sum(self.index.get(level, 0) * stride for level, stride in strides.items())

    def host_cycles(self, sent, taken):
        """A round trip, both ways over the link, and what the host reads: in picoseconds, which no rate of the tests divides."""
        host = self.hardware.host
        picoseconds = round(host.link_latency_s * 1e12)
        for moved, rate in ((sent + taken, host.link_bytes_per_s), (sent, host.sampling_bytes_per_s)):
            picoseconds += moved * 1e12 / rate
        return math.ceil(picoseconds * self.hardware.clock_hz / 1e12)

    def control(self, instruction):
        """Run one control instruction; returns its cost."""
        o, cost = instruction.operands, self.facts.control_cycles
        self.pc += 1
        match instruction.mnemonic:
            case "A_BASE":
                self.base[o["register"]] = o["base"]
            case "A_STEP":
                self.steps.setdefault(o["register"], {})[o["level"]] = o["stride"]
            case "A_ROWS":
                self.pitch[o["register"]] = o["stride"]
            case "C_LOOP":
                cost = self.facts.loop_cycles
                self.index[o["level"]], self.trips[o["level"]], self.start[o["level"]] = 0, o["trips"], self.pc
                if o["trips"] == 0:
                    self.pc += o["length"]
            case "C_NEXT":
                cost = self.facts.next_cycles
                if self.index[o["level"]] + 1 < self.trips[o["level"]]:
                    self.index[o["level"]] += 1
                    self.pc = self.start[o["level"]]
                else:
                    self.index[o["level"]] = 0
            case "C_HOST":
                cost += self.host_cycles(o["rows"] * o["sent"], o["rows"] * o["taken"] + 4)
            case "C_END":
                self.pc = -1
            case _:
                raise AssertionError(instruction.mnemonic)
        return cost


def run_clocked(program, hardware, limit=100_000):
    """Start and end cycle of every queued instruction, in order of dispatch: [(number, start, end)]."""
    front = FrontEnd(program, hardware)
    queues = {name: deque() for name in QUEUED_UNITS}
    returning = {name: [] for name in QUEUED_UNITS}  # cycles in which the front end learns of places that became free
    unit_free = dict.fromkeys(QUEUED_UNITS, 0)
    results = []
    flying = {name: [] for name in QUEUED_UNITS}  # [end, signals] in order of start, not yet retired
    tokens, ready = {}, {}
    front_free, bus_free, bus_last, dispatched, port_free = 0, 0, None, 0, 0
    in_flight = {"dma_in": [], "dma_out": []}
    for now in range(limit):
        for name in QUEUED_UNITS:  # retire in order: a result counts when all earlier ones of the unit are there
            while flying[name] and flying[name][0][0] <= now:
                for semaphore in flying[name].pop(0)[1]:
                    tokens[semaphore] = tokens.get(semaphore, 0) + 1
        started = True
        while started:  # a zero-cycle C_NEXT or a freed slot may let more happen in the same cycle
            started = False
            for name in QUEUED_UNITS:
                if not queues[name]:
                    continue
                number, arrival, touched, order = queues[name][0]
                instruction = program.instructions[number]
                need = {s: instruction.waits.count(s) for s in instruction.waits}
                if now < arrival or now < unit_free[name] or any(tokens.get(s, 0) < n for s, n in need.items()):
                    continue
                mnemonic = instruction.mnemonic
                if name.startswith("dma"):
                    window = hardware.dma_outstanding  # the descriptor that many before this one must be complete
                    if touched and len(in_flight[name]) >= window and in_flight[name][-window] > now:
                        continue
                    burst = hardware.hbm.burst_bytes
                    bursts = sum(
                        (a + r * p + size - 1) // burst - (a + r * p) // burst + 1
                        for memory, _, a, p, rows, size in touched if memory == Memory.HBM
                        for r, p, size in (((0, 0, rows * size),) if p == size else ((r, p, size) for r in range(rows)))
                    )  # fmt: skip
                    turn = turnaround(hardware, name) if bursts and bus_last not in (None, name) else 0
                    begin = max(now, bus_free + turn) if bursts else now
                    occupied, wait = cost(hardware, name, touched, bursts) if bursts else (0, 1)
                    end = begin + occupied + wait if bursts else now + 1
                    bus_free, bus_last = (begin + occupied, name) if bursts else (bus_free, bus_last)
                    in_flight[name] += [end] if touched else []
                    unit_free[name] = now + 1
                    start = begin
                else:
                    rows = [key for m, w, a, p, r, s in touched for key in places(m, a, s, hardware.vlen)]
                    if name == "vector" and any(ready.get(key, 0) > now for key in rows):
                        continue
                    held = hardware.interval_cycles(mnemonic)
                    if (
                        hardware.accumulator_sets == 2 and mnemonic == "M_OUT"
                    ):  # a set at the port, the other at the array
                        if now < port_free:
                            continue
                        port_free, held = now + held, 0
                    start, end = now, now + hardware.latency_cycles(mnemonic)
                    unit_free[name] = now + held
                    if name == "vector":
                        for m, w, a, _, _, s in touched:
                            for key in places(m, a, s, hardware.vlen) if w else ():
                                ready[key] = max(ready.get(key, 0), end)
                for semaphore in instruction.waits:
                    tokens[semaphore] -= 1
                retire = max([end, *(f[0] for f in flying[name])])
                flying[name].append([retire, instruction.signals])
                results.append((order, number, start, end))
                queues[name].popleft()
                returning[name].append(now + hardware.frontend.dispatch_cycles)
                started = True
            while front.pc >= 0 and now >= front_free:
                instruction = program.instructions[front.pc]
                if instruction.spec.unit is Unit.FRONTEND:
                    need = {s: instruction.waits.count(s) for s in instruction.waits}
                    if any(tokens.get(s, 0) < n for s, n in need.items()):
                        break
                    for semaphore in instruction.waits:
                        tokens[semaphore] -= 1
                    front_free = now + front.control(instruction)
                    started = True
                    continue
                name = QUEUE[instruction.spec.unit]
                if len(queues[name]) + sum(free > now for free in returning[name]) >= hardware.queue_depth[name]:
                    break
                o, spec = instruction.operands, instruction.spec
                touched = [
                    (spec.operands[f.operand].memory, write, front.address(o[f.operand]), front.pitch.get(o[f.operand], 0), f.rows(o), f.size(o))
                    for group, write in ((spec.reads, False), (spec.writes, True)) for f in group
                ]  # fmt: skip
                front_free = now + hardware.frontend.issue_cycles
                queues[name].append((front.pc, front_free + hardware.frontend.dispatch_cycles, touched, dispatched))
                dispatched += 1
                front.pc += 1
                started = True
        if front.pc < 0 and not any(queues.values()):
            return [row[1:] for row in sorted(results)]
    raise AssertionError("the clocked model does not end")


def turnaround(hardware, name):
    """Core cycles between a transfer and one of the other direction behind it (hbm_streams.json)."""
    if hardware.hbm.model == "simple":
        return 0
    t = hardware.hbm.timings
    memory_cycles = t["nCL"] + t["nBL"] + 2 - t["nCWL"] if name == "dma_out" else t["nCWL"] + t["nBL"] + t["nWTRL"]
    return math.ceil(memory_cycles * hardware.hbm.tck_ps * hardware.clock_hz / 1e12)


def cost(hardware, name, touched, bursts):
    """Core cycles that a descriptor takes the bus, and from there to its result."""
    hbm = hardware.hbm
    if hbm.model == "simple":
        latency = hbm.read_latency_cycles if name == "dma_in" else hbm.write_latency_cycles
        return -(-bursts * hbm.burst_bytes // hbm.bytes_per_cycle), latency
    ((_, _, address, pitch, rows, size),) = [place for place in touched if place[0] == Memory.HBM]
    whole = transfer(rows, size, pitch, address, int(name == "dma_out"), dma_memory_of(hbm))
    scale = hbm.tck_ps * hardware.clock_hz / 1e12
    occupied = math.ceil(whole.occupied * scale)
    return occupied, math.ceil((whole.occupied + whole.latency) * scale) - occupied


def places(memory, address, size, vlen):
    """Interlocked places that a run of addresses touches."""
    if memory == Memory.VECTOR:
        return [(memory, row) for row in range(address // vlen, (address + size - 1) // vlen + 1)]
    if memory in (Memory.FP, Memory.INT):
        return [(memory, number) for number in range(address, address + size)]
    return []
