"""Better hardware is never slower, and how far the competition of two DMA queues for HBM breaks that.

Given the order in which HBM serves descriptors, every start is the latest of sums of latencies: less latency, fewer waits, a
larger window can only make starts earlier. Reads and writes are served in the order of their issue, however, and better hardware
may change that order: a store that is ready earlier may go before a load that everything waits for (Graham's scheduling
anomaly). While a descriptor waits for the other queue HBM is busy, so the bound is the time for which HBM is busy.
"""

import dataclasses

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

import cycle
from cycle.transfers import dma_memory_of, transfer
from npu.isa import Instruction
from npu.program import Program, Tensor, words_of
from npu.program.trace import Trace
from tests.conftest import with_timing
from tests.cycle.test_cycle import SMALL, SYNC
from tests.cycle.test_fastforward import loop, nests
from tests.cycle.test_timing_rules import LOAD, PLACES, STORE, machine, simulate, starts

LOADS, STORES = {"H_LOAD_M", "H_LOAD_V"}, {"H_STORE_V"}
SIMPLE = dataclasses.replace(SMALL, hbm=dataclasses.replace(SMALL.hbm, model="simple"))
EXPLORE = settings(max_examples=120, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
UNIT_INSTRUCTIONS = ("M_MM", "M_OUT", "M_SYNC", "V_ADD_VV", "V_EXP_V", "V_RED_SUM", "S_MUL_FP", "V_SYNC")


def faster_memory(hardware, **changes):
    return dataclasses.replace(hardware, hbm=dataclasses.replace(hardware.hbm, **changes))


def unit_changes(mnemonic):
    """Changes that make one instruction of a unit faster."""

    def sooner(hardware):
        latency = max(1, hardware.timing[mnemonic].latency // 2)
        nothing_more = {"latency_per_blen": 0, "latency_per_tree_level": 0, "latency_per_write_out": 0}
        return with_timing(hardware, mnemonic, latency=latency, **nothing_more)

    def oftener(hardware):
        return with_timing(hardware, mnemonic, interval=1, interval_per_blen=0, interval_per_write_out=0)

    return sooner, oftener


def queue_changes(queue):
    """Changes that make one queue deeper."""

    def deeper(change):
        return lambda hardware: dataclasses.replace(
            hardware, queue_depth={**hardware.queue_depth, queue: change(hardware.queue_depth[queue])}
        )

    return deeper(lambda depth: depth + 1), deeper(lambda depth: 4 * depth)


BETTER_CORES = [
    *[change for mnemonic in UNIT_INSTRUCTIONS for change in unit_changes(mnemonic)],
    *[change for queue in SMALL.queue_depth for change in queue_changes(queue)],
    lambda hardware: dataclasses.replace(hardware, dma_outstanding=hardware.dma_outstanding + 1),
    lambda hardware: dataclasses.replace(hardware, dma_outstanding=8 * hardware.dma_outstanding),
    lambda hardware: dataclasses.replace(hardware, accumulator_sets=2),
    lambda hardware: dataclasses.replace(hardware, write_out_columns=2),
]
"""Each makes the core better in one respect."""
IMPROVEMENTS = [
    *BETTER_CORES,
    lambda hardware: faster_memory(hardware, channels=2 * hardware.hbm.channels),
    lambda hardware: faster_memory(hardware, read_latency_cycles=hardware.hbm.read_latency_cycles // 2),
    lambda hardware: faster_memory(hardware, write_latency_cycles=hardware.hbm.write_latency_cycles // 2),
]
"""Each makes the core or its memory better in one respect."""


def machines(hardware):
    return st.builds(
        lambda depth, outstanding, execution: dataclasses.replace(
            hardware, queue_depth=dict.fromkeys(hardware.queue_depth, depth), dma_outstanding=outstanding, execution=execution
        ),
        st.sampled_from([1, 2, 8]), st.sampled_from([1, 2, 8]), st.sampled_from(["decoupled", "decoupled", "serial"]),
    )  # fmt: skip


MACHINES, DRAM_MACHINES = machines(SIMPLE), machines(SMALL)
IMPROVEMENT, BETTER_CORE = st.sampled_from(IMPROVEMENTS), st.sampled_from(BETTER_CORES)


@st.composite
def transfers(draw, kinds=("load", "store", "vector", "matrix")):
    """A loop of transfers and work with handshakes between them, more of memory than `nests` have."""
    code = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=8)):
        if kind == "load":
            operands = {"dst": 2, "src": 0, "rows": 1, "row_bytes": 64 * draw(st.integers(1, 40))}
            code.append(Instruction(mnemonic="H_LOAD_M", operands=operands))
        elif kind == "store":
            operands = {"dst": 1, "src": 4, "rows": 1, "cols": 32 * draw(st.integers(1, 40)), "format": 1, "block": 5}
            code.append(Instruction(mnemonic="H_STORE_V", operands=operands))
        elif kind == "vector":
            code.append(Instruction(mnemonic="V_EXP_V", operands={"dst": 4, "a": 4, "n": 64}))
        else:
            code.append(Instruction(mnemonic="M_OUT", operands={"dst": 4, "rows": 4, "cols": 4}))
    for semaphore in range(1, 1 + draw(st.integers(0, 5))):
        giver, taker = draw(st.permutations(SYNC))[:2]
        place = draw(st.integers(0, len(code)))
        code.insert(place, Instruction(mnemonic=giver, signals=(semaphore,)))
        code.insert(draw(st.integers(place + 1, len(code))), Instruction(mnemonic=taker, waits=(semaphore,)))
    places = {0: 0, 1: 8192, 2: 0, 4: 0}
    setup = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in places.items()]
    code = [*setup, *loop(0, draw(st.integers(1, 12)), code), Instruction(mnemonic="C_END")]
    geometry = {"blen": SMALL.blen, "mlen": SMALL.mlen, "vlen": SMALL.vlen}
    geometry |= {"matrix_bytes": 8192, "vector_bytes": 4096, "fp_bytes": 256, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(1 << 14,), format="bf16", block=32, writable=True)
    layout = {"batch": 1, "generation_length": 1}
    return Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout=layout, phases=()), Trace(breaks=())


def run(nest, hardware):
    program, trace = nest
    return cycle.simulate(program, hardware=hardware, trace=trace, race_check=False).metrics


def hbm_busy_cycles(metrics):
    parts = ("busy_cycles.{}", "stall_cycles.{}.dram_row", "stall_cycles.{}.dram_refresh")
    return sum(metrics.get(part.format(unit), 0) for part in parts for unit in ("dma_in", "dma_out"))


def check_law(nest, hardware, better):
    names = {instruction.mnemonic for instruction in nest[0].instructions}
    compete = names & LOADS and names & STORES and hardware.execution == "decoupled"
    before, after = run(nest, hardware), run(nest, better)
    allowed = hbm_busy_cycles(after) if compete else 0
    if after["makespan_cycles"] > before["makespan_cycles"]:
        event("an anomaly")
    assert after["makespan_cycles"] <= before["makespan_cycles"] + allowed


@EXPLORE
@given(nest=nests(), hardware=MACHINES, improve=IMPROVEMENT)
def test_better_hardware_never_costs_cycles(nest, hardware, improve):
    check_law(nest, hardware, improve(hardware))


@EXPLORE
@given(nest=nests(), hardware=MACHINES)
def test_a_second_set_of_accumulators_never_costs_cycles(nest, hardware):
    second = dataclasses.replace(hardware, accumulator_sets=2)
    check_law(nest, hardware, second)
    if hardware.execution == "serial":
        assert run(nest, hardware) == run(nest, second), "nothing runs beside an output"


@EXPLORE
@given(nest=transfers(kinds=("load", "vector", "matrix")), hardware=MACHINES, improve=IMPROVEMENT)
def test_nor_where_memory_is_only_read(nest, hardware, improve):
    check_law(nest, hardware, improve(hardware))


@settings(EXPLORE, max_examples=250)
@given(nest=transfers(), hardware=MACHINES, improve=IMPROVEMENT)
def test_where_reads_and_writes_compete_it_costs_no_more_than_hbm_is_busy(nest, hardware, improve):
    check_law(nest, hardware, improve(hardware))


@EXPLORE
@given(nest=transfers(kinds=("load", "vector", "matrix")), hardware=DRAM_MACHINES, improve=BETTER_CORE)
def test_with_dram_a_better_core_never_costs_cycles_where_memory_is_only_read(nest, hardware, improve):
    """What a descriptor costs is a function of its shape, so all is as with the simple memory."""
    check_law(nest, hardware, improve(hardware))


@settings(EXPLORE, max_examples=250)
@given(nest=transfers(), hardware=DRAM_MACHINES, improve=BETTER_CORE)
def test_with_dram_a_better_core_costs_no_more_than_hbm_is_busy(nest, hardware, improve):
    """Another order of reads and writes also turns the bus more often: cycles for which HBM counts as busy."""
    check_law(nest, hardware, improve(hardware))


def costs_more(nest, hardware, better):
    """Sum over the loads of a loop of the core cycles by which each takes HBM longer, or ends later after that."""
    program, _ = nest
    trips = next(i.operands["trips"] for i in program.instructions if i.mnemonic == "C_LOOP")
    more = 0
    for instruction in program.instructions:
        if instruction.mnemonic == "H_LOAD_M":
            before, after = (
                transfer(1, instruction.operands["row_bytes"], 0, 0, 0, dma_memory_of(h.hbm))
                for h in (hardware, better)
            )
            more += max(0, after.occupied - before.occupied) + max(0, after.latency - before.latency) + 2
    return trips * more


@EXPLORE
@given(nest=transfers(kinds=("load", "vector", "matrix")), hardware=DRAM_MACHINES, factor=st.sampled_from([2, 4]))
def test_more_channels_cost_no_more_than_the_transfers_that_they_slow_down(nest, hardware, factor):
    """A descriptor may cost more on more channels: its cycles are whole ones, and the latency of one that reaches more banks
    is theirs. Every other wait is a maximum of sums of such costs. Rounding to core cycles adds one to each part."""
    better = faster_memory(hardware, channels=factor * hardware.hbm.channels)
    before, after = run(nest, hardware), run(nest, better)
    if after["makespan_cycles"] > before["makespan_cycles"]:
        event("slower")
    assert after["makespan_cycles"] <= before["makespan_cycles"] + costs_more(nest, hardware, better)


def test_an_anomaly_by_hand():
    """Registers take 0 and 1, the giver starts in 3. A latency of 20: the load behind it, dispatched in 4, issues in 5, is
    complete in 5 + 1 + 60 = 66, and the matrix unit starts then. A latency of 1: the store gets its token in 4 and issues
    then, a cycle before the load, which waits for the 10 cycles of the store: HBM in 14, complete in 75. What the faster unit
    costs is one transfer of the other queue, less the cycle by which it came first."""
    text = PLACES.format(0) + "\n".join(
        ["V_SYNC signal=s1", f"{STORE} wait=s1", f"{LOAD.format(32)} signal=s2", "M_SYNC wait=s2"]
    )
    slow, fast = (simulate(text, machine({"V_SYNC": (latency, 1), "M_SYNC": (90, 1)})) for latency in (20, 1))
    assert (starts(slow, "M_SYNC"), starts(fast, "M_SYNC")) == ([66], [75])
    assert fast.metrics["makespan_cycles"] == slow.metrics["makespan_cycles"] + 9
