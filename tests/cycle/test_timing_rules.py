"""One small program a rule of docs/timing.md; the expected cycles are worked out by hand from the document.

In all of them an instruction costs the front end a cycle unless the test says otherwise, and the simple memory moves 32 bytes a
cycle in bursts of 32; reads take 60 cycles more, writes 40. A sync does nothing but its semaphores, so it stands for any
instruction.
"""

import dataclasses

import pytest

import cycle
from npu.hardware import QUEUED_UNITS, FrontEnd
from npu.isa import assemble
from npu.program import Program, Tensor, words_of
from npu.program.trace import Trace
from tests.conftest import compose_experiment, with_timing

PLAIN = {"latency_per_blen": 0, "latency_per_tree_level": 0, "latency_per_vlen": 0, "latency_per_write_out": 0,
         "interval_per_blen": 0, "interval_per_vlen": 0, "interval_per_write_out": 0}  # fmt: skip
READ, WRITE = 60, 40


def machine(timings=(), hbm=(), **changes):
    """A machine whose every latency is stated here: {mnemonic: (latency, interval)}."""
    shipped = compose_experiment().hardware
    memory = {
        "model": "simple", "channels": 1, "bytes_per_cycle_per_channel": 32, "burst_bytes": 32,
        "read_latency_cycles": READ, "write_latency_cycles": WRITE, **dict(hbm),
    }  # fmt: skip
    depths = dict.fromkeys(shipped.queue_depth, 32)
    facts = {"hbm": dataclasses.replace(shipped.hbm, **memory), "queue_depth": depths, "frontend": FrontEnd()}
    facts |= {"dma_outstanding": 8, "execution": "decoupled", **changes}
    hardware = dataclasses.replace(shipped, **facts)
    for mnemonic, (latency, interval) in dict(timings).items():
        hardware = with_timing(hardware, mnemonic, latency=latency, interval=interval, **PLAIN)
    return hardware


def simulate(text, hardware, breaks=()):
    geometry = {"blen": hardware.blen, "mlen": hardware.mlen, "vlen": hardware.vlen}
    geometry |= {"matrix_bytes": 8192, "vector_bytes": 4096, "fp_bytes": 256, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(1 << 14,), format="bf16", block=32, writable=True)
    layout = {"batch": 1, "generation_length": 1}
    code = assemble(f"{text}\nC_END")
    program = Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout=layout, phases=())
    return cycle.simulate(program, hardware=hardware, trace=Trace(breaks=tuple(breaks)), race_check=False)


def spans(result, mnemonic):
    """(start, end) of each instruction of a name, in order."""
    return sorted((row[4], row[5]) for row in result.tables["timeline"].rows if row[0] == mnemonic)


def starts(result, mnemonic):
    return [start for start, _ in spans(result, mnemonic)]


def stalls(result, unit):
    name = f"stall_cycles.{unit}."
    return {key.removeprefix(name): value for key, value in result.metrics.items() if key.startswith(name)}


# ------------------------------------------------------------------------------------------------------ front end


@pytest.mark.parametrize("issue", [1, 3])
def test_dispatch_takes_issue_cycles_and_a_start_comes_issue_cycles_after_it(issue):
    """Dispatches begin in cycles 0, i, 2i; what is dispatched in cycle c may start in c + i: i, 2i, 3i."""
    frontend = FrontEnd(issue_cycles=issue)
    result = simulate("V_SYNC\nM_SYNC\nV_SYNC", machine({"V_SYNC": (1, 1), "M_SYNC": (1, 1)}, frontend=frontend))
    assert starts(result, "V_SYNC") == [issue, 3 * issue]
    assert starts(result, "M_SYNC") == [2 * issue]


def test_a_full_queue_holds_the_front_end_until_the_entry_depth_before_has_started():
    """Two places; an instruction occupies the unit for 10 cycles. 1: enters in 0, starts in 1. 2: enters in 1, starts in 11.
    3: its place is that of 1, free since 1, so it enters in 2; starts in 21. 4: the place of 2 is free in 11; it enters in
    11, starts in 31. The matrix instruction behind it enters in 12, starts in 13. The front end stood from 3 to 11."""
    result = simulate(
        "V_SYNC\nV_SYNC\nV_SYNC\nV_SYNC\nM_SYNC",
        machine({"V_SYNC": (12, 10)}, queue_depth={"matrix": 2, "vector": 2, "dma_in": 2, "dma_out": 2}),
    )
    assert starts(result, "V_SYNC") == [1, 11, 21, 31]
    assert starts(result, "M_SYNC") == [13]
    assert stalls(result, "frontend")["queue_full"] == 8


def test_registers_before_the_queues_delay_the_way_there_and_back():
    """One place, two cycles each way. 1: dispatched in 0, in its queue and started in 0 + 1 + 2 = 3; the front end learns of
    the place in 5. 2: dispatched in 5, started in 8. The matrix instruction: dispatched in 6, started in 9."""
    machine_ = machine(
        {"V_SYNC": (1, 1), "M_SYNC": (1, 1)},
        queue_depth=dict.fromkeys(QUEUED_UNITS, 1),
        frontend=FrontEnd(dispatch_cycles=2),
    )
    result = simulate("V_SYNC\nV_SYNC\nM_SYNC", machine_)
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([3, 8], [9])
    assert stalls(result, "frontend")["queue_full"] == 4


def test_registers_before_the_queues_count_twice_in_serial_execution():
    """The first starts in 1 + 2 = 3, is complete in 15, the front end learns of it in 17: the second starts in 20, the matrix
    instruction (complete in 32, dispatched in 34) in 37."""
    hardware = machine({"V_SYNC": (12, 4), "M_SYNC": (1, 1)}, execution="serial", frontend=FrontEnd(dispatch_cycles=2))
    result = simulate("V_SYNC\nV_SYNC\nM_SYNC", hardware)
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([3, 20], [37])


def test_a_unit_that_stands_does_not_hold_the_queues_of_others():
    """The vector unit waits 50 cycles for the matrix unit; the instruction for DMA behind it enters in 2, starts in 3."""
    result = simulate("M_SYNC signal=s1\nV_SYNC wait=s1\nH_LOAD_SYNC", machine({"M_SYNC": (50, 1)}))
    assert starts(result, "V_SYNC") == [51]
    assert starts(result, "H_LOAD_SYNC") == [3]


def test_a_loop_costs_loop_cycles_once_and_next_cycles_each_time_round():
    """C_LOOP takes cycles 0 to 4. Free C_NEXT: the three bodies are dispatched in 5, 6, 7, what follows in 8: starts are one
    later. With C_NEXT of 2 cycles: dispatched in 5, 8 and 11 (1 + 2 apart); leaving takes 4, so what follows is dispatched
    in 12 + 4 = 16."""
    text = "C_LOOP level=0 trips=3 length=2\nV_SYNC\nC_NEXT level=0\nM_SYNC"
    result = simulate(text, machine({"V_SYNC": (1, 1)}, frontend=FrontEnd(loop_cycles=5)))
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([6, 7, 8], [9])
    costly = FrontEnd(loop_cycles=5, next_cycles=2, exit_cycles=4)
    result = simulate(text, machine({"V_SYNC": (1, 1)}, frontend=costly))
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([6, 9, 12], [17])


def test_a_loop_of_no_trips_costs_loop_cycles_and_nothing_else():
    """C_LOOP in 0 to 4, and no C_NEXT is met: what follows is dispatched in 5."""
    text = "C_LOOP level=0 trips=0 length=2\nV_SYNC\nC_NEXT level=0\nM_SYNC"
    result = simulate(text, machine(frontend=FrontEnd(loop_cycles=5, next_cycles=2, exit_cycles=4)))
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([], [6])


def test_a_trip_count_in_a_register_costs_like_an_immediate_one():
    """C_AFFINE takes cycle 0, C_LOOP_R 1 to 5; two bodies are dispatched in 6 and 7, what follows in 8."""
    text = "C_AFFINE register=3 base=2 factor=0 level=1\nC_LOOP_R level=0 register=3 length=2\nV_SYNC\nC_NEXT level=0\nM_SYNC"
    result = simulate(text, machine({"V_SYNC": (1, 1)}, frontend=FrontEnd(loop_cycles=5)))
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([7, 8], [9])


def test_a_break_and_an_affine_trip_count_may_take_their_own_time():
    """C_AFFINE takes cycles 0 to 2, C_LOOP_R 3; V_SYNC is dispatched in 4, starts in 5, gives its token in 25. The break takes 25
    to 28, so M_SYNC behind the loop is dispatched in 29, starts in 30."""
    text = (
        "C_AFFINE register=3 base=2 factor=0 level=1\nC_LOOP_R level=0 register=3 length=3\nV_SYNC signal=s1\n"
        "C_BREAK_IF level=0 flag=a9 wait=s1\nC_NEXT level=0\nM_SYNC"
    )
    frontend = FrontEnd(break_cycles=4, affine_cycles=3)
    result = simulate(text, machine({"V_SYNC": (20, 1)}, frontend=frontend), breaks=[0])
    assert (starts(result, "V_SYNC"), starts(result, "M_SYNC")) == ([5], [30])


def test_a_break_waits_for_its_flag_and_nothing_is_dispatched_beyond_it():
    """C_LOOP takes cycle 0. V_SYNC is dispatched in 1, starts in 2, gives its token in 22. The break takes cycle 22; M_SYNC is
    dispatched in 23, starts in 24. C_NEXT is free: V_SYNC is dispatched in 24, starts in 25, token in 45. The break takes
    cycle 45 and leaves: the store's sync is dispatched in 46, starts in 47. The front end stood from 2 to 22 and from 25 to
    45."""
    text = (
        "C_LOOP level=0 trips=3 length=4\nV_SYNC signal=s1\nC_BREAK_IF level=0 flag=a9 wait=s1\nM_SYNC\nC_NEXT level=0\n"
        "H_STORE_SYNC"
    )
    result = simulate(text, machine({"V_SYNC": (20, 1)}), breaks=[1])
    assert spans(result, "V_SYNC") == [(2, 22), (25, 45)]
    assert starts(result, "M_SYNC") == [24]
    assert starts(result, "H_STORE_SYNC") == [47]
    assert stalls(result, "frontend")["semaphore_vector"] == 40


# ---------------------------------------------------------------------------------------------------------- units


def test_the_interval_separates_starts_and_the_latency_gives_results():
    """Starts in 1, then 4 apart although all were dispatched by 3; results 12 later; the last one in 21 is the makespan."""
    result = simulate("V_SYNC\nV_SYNC\nV_SYNC", machine({"V_SYNC": (12, 4)}))
    assert spans(result, "V_SYNC") == [(1, 13), (5, 17), (9, 21)]
    assert result.metrics["makespan_cycles"] == 21


REGISTERS = (
    "A_BASE register=0 base={}\nA_BASE register=1 base={}\nA_BASE register=2 base={}\nA_BASE register=3 base={}\n"
)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("V_EXP_V dst=a1 a=a0 n=64", "V_RECI_V dst=a2 a=a1 n=64", 26),
        ("V_EXP_V dst=a1 a=a0 n=64", "V_RECI_V dst=a1 a=a0 n=64", 26),
        ("V_EXP_V dst=a1 a=a0 n=64", "V_RECI_V dst=a0 a=a2 n=64", 6),
        ("V_EXP_V dst=a1 a=a0 n=64", "V_RECI_V dst=a2 a=a0 n=64", 6),
        ("V_EXP_V dst=a0 a=a1 n=32", "V_RECI_V dst=a2 a=a3 n=32", 26),
    ],
    ids=["read after write", "write after write", "write after read", "read after read", "other half of the same row"],
)
def test_operands_must_be_complete(first, second, expected):
    """Four registers take cycles 0 to 3. The first is dispatched in 4, starts in 5, is complete in 26. The second could start
    in 6: so it does unless a row that it reads or writes is completed later, in 26. Only completions count (a row
    that was only read delays nothing), and a row (64 elements) is the unit, whichever half is meant."""
    hardware = machine({"V_EXP_V": (21, 1), "V_RECI_V": (11, 1)})
    result = simulate(f"{REGISTERS.format(0, 64, 128, 32)}{first}\n{second}", hardware)
    assert spans(result, "V_EXP_V") == [(5, 26)]
    assert spans(result, "V_RECI_V") == [(expected, expected + 11)]
    assert stalls(result, "vector").get("operand", 0) == expected - 6


def test_scalar_entries_interlock_one_by_one_and_share_the_queue():
    """Four registers take 0 to 3, then: a sum into entry 0 starts in 5, complete in 45; a move of other entries starts in 6,
    since scalar instructions share the queue but not the entry; a move of entry 0 waits until 45."""
    text = "V_RED_SUM dst=a0 a=a2 n=64\nS_MOV_FP dst=a3 a=a1\nS_MOV_FP dst=a1 a=a0"
    hardware = machine({"V_RED_SUM": (40, 1), "S_MOV_FP": (1, 1)})
    result = simulate(REGISTERS.format(0, 1, 256, 2) + text, hardware)
    assert spans(result, "V_RED_SUM") == [(5, 45)]
    assert spans(result, "S_MOV_FP") == [(6, 7), (45, 46)]


def test_signals_are_given_in_order():
    """Two registers take 0 and 1. The exponential starts in 3, is complete in 24; the sync behind it starts in 4 and would be
    complete in 5, but retires behind the exponential: its token is there in 24."""
    text = "A_BASE register=0 base=0\nA_BASE register=1 base=64\nV_EXP_V dst=a1 a=a0 n=64\nV_SYNC signal=s1\nM_SYNC wait=s1"
    result = simulate(text, machine({"V_EXP_V": (21, 1), "V_SYNC": (1, 1)}))
    assert spans(result, "V_SYNC") == [(4, 5)]
    assert starts(result, "M_SYNC") == [24]


def test_a_waiting_instruction_starts_in_the_cycle_of_the_token():
    """The giver starts in 1, its token is there in 13. The taker, dispatched in 1, starts in 13, and one that takes the tokens
    of two givers starts at the later one. All of the 13 cycles before count as waiting for the vector unit."""
    hardware = machine({"V_SYNC": (12, 1), "M_SYNC": (1, 1)})
    result = simulate("V_SYNC signal=s1\nM_SYNC wait=s1", hardware)
    assert starts(result, "M_SYNC") == [13]
    assert stalls(result, "matrix") == {"semaphore_vector": 13}
    result = simulate("V_SYNC signal=s1\nV_SYNC\nV_SYNC signal=s2\nM_SYNC wait=s1,s2", hardware)
    assert starts(result, "M_SYNC") == [15]


def test_what_stands_at_the_head_holds_its_queue():
    """The taker starts in 13; the instruction behind it in the queue, ready since 3, follows an interval later, in 14."""
    result = simulate("V_SYNC signal=s1\nM_SYNC wait=s1\nM_SYNC", machine({"V_SYNC": (12, 1), "M_SYNC": (5, 1)}))
    assert starts(result, "M_SYNC") == [13, 14]


def test_tokens_are_counted():
    """Givers start in 1, 2 and 5 (dispatched in 0, 1 and 4). Latency 1: tokens in 2, 3 and 6; takers, dispatched in 2, 3 and
    5, start in 3, 4 and 6. Latency 12: tokens in 13, 14 and 17, one for each wait."""
    text = "V_SYNC signal=s1\nV_SYNC signal=s1\nM_SYNC wait=s1\nM_SYNC wait=s1\nV_SYNC signal=s1\nM_SYNC wait=s1"
    result = simulate(text, machine({"V_SYNC": (1, 1), "M_SYNC": (1, 1)}))
    assert starts(result, "V_SYNC") == [1, 2, 5]
    assert starts(result, "M_SYNC") == [3, 4, 6]
    slow = simulate(text, machine({"V_SYNC": (12, 1), "M_SYNC": (1, 1)}))
    assert starts(slow, "M_SYNC") == [13, 14, 17]


def test_an_output_follows_its_product_at_the_interval():
    """Two registers take 0 and 1. The product starts in 3; its interval is 8, so the output starts in 11, not at the product's
    result in 27."""
    text = (
        "A_BASE register=0 base=0\nA_BASE register=1 base=0\n"
        "M_MM weights=a0 acts=a1 rows=4 cols=4 k=32 block=5 weight_format=2 act_format=2 block_stride=33\n"
        "M_OUT dst=a1 rows=4 cols=4"
    )
    result = simulate(text, machine({"M_MM": (24, 8), "M_OUT": (34, 10)}))
    assert spans(result, "M_MM") == [(3, 27)]
    assert spans(result, "M_OUT") == [(11, 45)]


TILES = """A_BASE register=0 base=0
A_BASE register=1 base=0
C_LOOP level=0 trips=3 length=3
M_MM weights=a0 acts=a1 rows=4 cols=4 k=32 block=5 weight_format=2 act_format=2 block_stride=33
M_OUT dst=a1 rows=4 cols=4
C_NEXT level=0"""


def test_with_one_set_of_accumulators_the_next_tile_waits_for_the_output():
    """Control takes 0 to 2. The products follow the outputs at their interval of 10, the outputs the products at 8."""
    result = simulate(TILES, machine({"M_MM": (24, 8), "M_OUT": (34, 10)}))
    assert spans(result, "M_MM") == [(4, 28), (22, 46), (40, 64)]
    assert spans(result, "M_OUT") == [(12, 46), (30, 64), (48, 82)]
    assert stalls(result, "matrix") == {"frontend": 4, "drained": 24}


def test_with_two_sets_an_output_occupies_the_write_out_port_alone():
    """The second product starts in 12 with the first output, which holds the port until 22. The array would be free for the
    second output in 20: it waits 2 cycles for the port, and with it the third product, whose set the first output had. The third
    output finds the port taken until 32, the array free in 30. Matrix: 24 busy with products, drained from 32 to the end in 66."""
    result = simulate(TILES, machine({"M_MM": (24, 8), "M_OUT": (34, 10)}, accumulator_sets=2))
    assert spans(result, "M_MM") == [(4, 28), (12, 36), (22, 46)]
    assert spans(result, "M_OUT") == [(12, 46), (22, 56), (32, 66)]
    assert result.metrics["busy_cycles.matrix"] == 24
    assert stalls(result, "matrix") == {"frontend": 4, "write_out": 2 + 2, "drained": 34}


def test_a_sync_behind_an_output_signals_when_the_output_is_over():
    """A register takes 0. The output starts in 2, over in 36; the sync behind it, dispatched in 2, starts in 3 beside it, but
    retires behind it: its token is there in 36."""
    text = "A_BASE register=0 base=0\nM_OUT dst=a0 rows=4 cols=4\nM_SYNC signal=s1\nV_SYNC wait=s1"
    result = simulate(text, machine({"M_OUT": (34, 10), "M_SYNC": (1, 1)}, accumulator_sets=2))
    assert spans(result, "M_SYNC") == [(3, 4)]
    assert starts(result, "V_SYNC") == [36]


def test_serial_execution_waits_for_each_instruction():
    """The first is dispatched in 0, starts in 1, complete in 13; the second is dispatched in 13, starts in 14, complete in 26;
    the control instruction takes 26, so that the third is dispatched in 27, starts in 28. The interval does not matter. The
    front end stood from 1 to 13, from 14 to 26 and, before C_END, from 28 to 29."""
    hardware = machine({"V_SYNC": (12, 4), "M_SYNC": (1, 1)}, execution="serial")
    result = simulate("V_SYNC\nV_SYNC\nA_BASE register=0 base=0\nM_SYNC", hardware)
    assert spans(result, "V_SYNC") == [(1, 13), (14, 26)]
    assert starts(result, "M_SYNC") == [28]
    assert stalls(result, "frontend")["serial"] == 12 + 12 + 1


# --------------------------------------------------------------------------------------------------------- memory

LOAD = "H_LOAD_M dst=a0 src=a1 rows=1 row_bytes={}"
STORE = "H_STORE_V dst=a1 src=a0 rows=1 cols=160 format=1 block=5"
"""320 bytes (BF16): 10 cycles."""
PLACES = "A_BASE register=0 base=0\nA_BASE register=1 base={}\n"


def test_descriptors_issue_one_a_cycle():
    """All three may start as soon as the token is there, in 21: they issue in 21, 22, 23."""
    result = simulate("V_SYNC signal=s1\nH_LOAD_SYNC wait=s1\nH_LOAD_SYNC\nH_LOAD_SYNC", machine({"V_SYNC": (20, 1)}))
    assert starts(result, "H_LOAD_SYNC") == [21, 22, 23]


@pytest.mark.parametrize(("base", "rows", "size", "pitch", "cycles"), [
    (0, 1, 320, 0, 10), (0, 1, 321, 0, 11), (31, 1, 33, 0, 2), (30, 1, 33, 0, 2), (31, 1, 34, 0, 3), (0, 2, 16, 16, 1), (0, 2, 16, 64, 2),
])  # fmt: skip
def test_a_transfer_occupies_hbm_by_whole_aligned_bursts(base, rows, size, pitch, cycles):
    """Three control instructions take 0 to 2; the load issues in 4. Bytes 31 to 63 touch two bursts of 32, as do 30 to 62;
    31 to 64 touch three; two runs of 16 bytes that follow each other are one run of a burst, 64 bytes apart they are two. A
    burst is a cycle here; complete 60 later."""
    text = f"{PLACES.format(base)}A_ROWS register=1 stride={pitch}\nH_LOAD_M dst=a0 src=a1 rows={rows} row_bytes={size}"
    result = simulate(text, machine())
    assert spans(result, "H_LOAD_M") == [(4, 4 + cycles + READ)]


def test_cycles_of_a_transfer_are_rounded_up():
    """Three bursts of 32 bytes at 64 bytes a cycle are two cycles; a store takes its own latency."""
    hardware = machine(hbm={"bytes_per_cycle_per_channel": 64})
    result = simulate(PLACES.format(0) + LOAD.format(96), hardware)
    assert spans(result, "H_LOAD_M") == [(3, 3 + 2 + READ)]
    result = simulate(PLACES.format(0) + STORE, hardware)
    assert spans(result, "H_STORE_V") == [(3, 3 + 5 + WRITE)]


def test_a_window_of_outstanding_descriptors():
    """Two may be outstanding; each takes a cycle of HBM. They issue in 3 and 4, complete in 64 and 65. The third waits for the
    first, issues in 64, complete in 125; the fourth for the second, in 65, complete in 126."""
    result = simulate(PLACES.format(0) + "\n".join([LOAD.format(32)] * 4), machine(dma_outstanding=2))
    assert spans(result, "H_LOAD_M") == [(3, 64), (4, 65), (64, 125), (65, 126)]


def test_a_descriptor_that_waits_for_its_window_leaves_hbm_to_the_other_queue():
    """One may be outstanding. The load issues in 3, complete in 64. The second load is not issued before; so the store behind
    it, issued in 5, has HBM at once."""
    text = PLACES.format(0) + "\n".join([LOAD.format(32), LOAD.format(32), STORE])
    result = simulate(text, machine(dma_outstanding=1))
    assert starts(result, "H_LOAD_M") == [3, 64]
    assert spans(result, "H_STORE_V") == [(5, 5 + 10 + WRITE)]


def test_hbm_serves_whole_descriptors_in_the_order_of_their_issue():
    """A load of 10 cycles issues in 3, a store of 10 in 4, a load of 1 in 5: HBM is theirs from 3, 13 and 23. Of the 20 cycles
    between the loads, the second one could not issue before 5 but waited for HBM last: they are its bandwidth's, less the
    10 in which the first was moved."""
    text = PLACES.format(0) + "\n".join([LOAD.format(320), STORE, LOAD.format(32)])
    result = simulate(text, machine())
    assert spans(result, "H_LOAD_M") == [(3, 13 + READ), (23, 24 + READ)]
    assert spans(result, "H_STORE_V") == [(13, 23 + WRITE)]
    assert stalls(result, "dma_in")["dram_bandwidth"] == 10


def test_reads_go_first_where_two_issue_in_the_same_cycle():
    """Registers take 0 and 1; the giver is dispatched in 2, starts in 3, gives both tokens in 23. Store and load issue then,
    although the store stands first in the program: the load has HBM from 23 to 33, then the store."""
    text = PLACES.format(0) + "\n".join(["V_SYNC signal=s1,s2", f"{STORE} wait=s1", f"{LOAD.format(320)} wait=s2"])
    result = simulate(text, machine({"V_SYNC": (20, 1)}))
    assert spans(result, "H_LOAD_M") == [(23, 33 + READ)]
    assert spans(result, "H_STORE_V") == [(33, 43 + WRITE)]


def test_a_sync_passes_a_transfer_but_its_signal_waits_for_it():
    """The load issues in 3, occupies HBM until 13, complete in 73. The sync issues in 4. Its signal retires behind the load:
    the matrix unit starts in 73. A load behind the sync issues in 6 (registers 0, 1; load 2; sync 3; M_SYNC 4; load 5) and has
    HBM in 13."""
    text = PLACES.format(0) + "\n".join([LOAD.format(320), "H_LOAD_SYNC signal=s1", "M_SYNC wait=s1", LOAD.format(32)])
    result = simulate(text, machine())
    assert starts(result, "H_LOAD_SYNC") == [4]
    assert starts(result, "M_SYNC") == [73]
    assert spans(result, "H_LOAD_M") == [(3, 73), (13, 14 + READ)]


def test_a_sync_takes_no_place_in_the_window_of_outstanding_descriptors():
    """One may be outstanding. The load issues in 3, complete in 64. The sync behind it, which waits for nothing, issues in 4."""
    text = PLACES.format(0) + f"{LOAD.format(32)}\nH_LOAD_SYNC\n{LOAD.format(32)}"
    result = simulate(text, machine(dma_outstanding=1))
    assert starts(result, "H_LOAD_SYNC") == [4]
    assert starts(result, "H_LOAD_M") == [3, 64]


def test_serial_execution_waits_for_transfers_too():
    """Registers take 0 and 1; the load is dispatched in 2, starts in 3, complete in 3 + 1 + 60 = 64; the next is dispatched
    in 64, starts in 65."""
    text = PLACES.format(0) + "\n".join([LOAD.format(32)] * 2)
    result = simulate(text, machine(execution="serial"))
    assert spans(result, "H_LOAD_M") == [(3, 64), (65, 126)]


# ------------------------------------------------------------------------------------------- where a cycle goes


def test_each_unit_explains_the_whole_makespan():
    """V_SYNC: 1 to 13. M_SYNC waits for it: 13 to 14, which is the end. Vector: one cycle for the front end, busy for an
    interval of 4, and drained for the 9 after it. Matrix: 13 for the vector unit, 1 busy. Front end: 3 busy (two dispatches and
    C_END), 11 drained."""
    result = simulate("V_SYNC signal=s1\nM_SYNC wait=s1", machine({"V_SYNC": (12, 4), "M_SYNC": (1, 1)}))
    assert result.metrics["makespan_cycles"] == 14
    assert stalls(result, "vector") == {"frontend": 1, "drained": 9}
    assert result.metrics["busy_cycles.vector"] == 4
    assert stalls(result, "matrix") == {"semaphore_vector": 13}
    assert result.metrics["busy_cycles.matrix"] == 1
    assert stalls(result, "frontend") == {"drained": 11}
    assert result.metrics["busy_cycles.frontend"] == 3
