// When the head of the vector queue may start: tokens are there, the unit is free, its operands are complete. Whether they
// will be is worked out while an instruction is the second, against what each one in flight writes.
module vector_control
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic valid,
    input logic [15:0] latency,  // of the head
    input logic free,
    input logic tokens,
    input logic refill,
    input entry_t coming,  // becomes the second
    input logic move,  // the second becomes the head
    output logic start
);
  localparam int ROW_BITS = $clog2(VECTOR_ELEMENTS / VLEN), FP_BITS = $clog2(FP_ENTRIES), INT_BITS = $clog2(INT_ENTRIES);
  localparam int BITS = ROW_BITS > FP_BITS && ROW_BITS > INT_BITS ? ROW_BITS : FP_BITS > INT_BITS ? FP_BITS : INT_BITS;
  localparam int COUNT_BITS = $clog2(VLEN + 1);
  // A range of rows of Vector SRAM, or of entries; the last one is followed by the first.
  typedef struct packed {
    logic used;
    memory_t memory;
    logic [BITS-1:0] first;
    logic [COUNT_BITS-1:0] more;  // behind the first
  } range_t;
  localparam int WRITES = 2;  // of an instruction at most

  // What is written by the instruction that started that many cycles ago, until it is complete; whether it concerns the head.
  range_t [LONGEST:1][WRITES-1:0] written;
  logic [LONGEST:1][15:0] takes;
  logic [LONGEST:1] concerns;
  logic [7:0] opcode;
  logic ready;
  lock_t [LOCKS-1:0] locks;
  range_t [LOCKS-1:0] range, range2;
  range_t [WRITES-1:0] writes, writes2, writes_head;
  v_rope_v_t rope;

  assign opcode = coming.word[7:0];
  assign rope = coming.word;
  assign locks = {lock4(opcode), lock3(opcode), lock2(opcode), lock1(opcode), lock0(opcode)};
  always_comb begin
    logic found;
    for (int i = 0; i < LOCKS; i++) begin
      logic [15:0] size;
      logic [31:0] first;
      first = coming.address[locks[i].port];
      case (locks[i].size)
        SIZE_N: size = coming.word[lanes_place(opcode)+:16];
        SIZE_HEAD: size = {4'd0, rope.head_dim};
        default: size = 16'd1;
      endcase
      range[i].used = locks[i].used;
      range[i].memory = locks[i].memory;
      case (locks[i].memory)
        MEMORY_VECTOR: begin
          logic [15:0] last;  // from the first element of its first row
          last = 16'(first[$clog2(VLEN)-1:0]) + size - 16'd1;
          range[i].first = BITS'(ROW_BITS'(first / VLEN));
          range[i].more = COUNT_BITS'(last / VLEN);
        end
        MEMORY_FP: begin
          range[i].first = BITS'(FP_BITS'(first));
          range[i].more = COUNT_BITS'(size - 16'd1);
        end
        default: begin
          range[i].first = BITS'(INT_BITS'(first));
          range[i].more = COUNT_BITS'(size - 16'd1);
        end
      endcase
    end
    writes = '0;
    found = 1'b0;
    for (int i = 0; i < LOCKS; i++)
      if (locks[i].used && locks[i].write) begin
        writes[found] = range[i];
        found = 1'b1;
      end
  end

  function automatic logic overlap(input range_t a, input range_t b);
    logic [BITS-1:0] places, forth, back;
    case (a.memory)
      MEMORY_VECTOR: places = BITS'((1 << ROW_BITS) - 1);
      MEMORY_FP: places = BITS'((1 << FP_BITS) - 1);
      default: places = BITS'((1 << INT_BITS) - 1);
    endcase
    forth = (b.first - a.first) & places;
    back = (a.first - b.first) & places;
    overlap = a.used && b.used && a.memory == b.memory && (forth <= BITS'(a.more) || back <= BITS'(b.more));
  endfunction

  // In the next cycle: what is still incomplete, and what of it concerns the present head, and the second.
  logic [LONGEST:1] open, held, held2;
  range_t [LONGEST:1][WRITES-1:0] shifted;
  logic after_head;
  always_comb begin
    for (int age = 1; age <= LONGEST; age++) begin
      open[age] = age == 1 ? latency > 16'd1 : takes[age-(age!=1)] > 16'(age);
      shifted[age] = age == 1 ? writes_head : written[age-(age!=1)];
      held[age] = age != 1 && concerns[age-(age!=1)] && open[age];
      held2[age] = 1'b0;
      for (int w = 0; w < WRITES; w++)
        for (int i = 0; i < LOCKS; i++) if (open[age] && overlap(range2[i], shifted[age][w])) held2[age] = 1'b1;
    end
    after_head = held2[1];
    held2[1] = 1'b0;
    start = valid && free && tokens && ready;
  end

  always_ff @(posedge clock) begin
    if (refill) begin
      range2 <= range;
      writes2 <= writes;
    end
    if (move) writes_head <= writes2;
    concerns <= move ? held2 : held;
    if (move && start) concerns[1] <= after_head;
    ready <= move ? held2 == 0 && !(start && after_head) : held == 0;
    takes <= {takes[LONGEST-1:1], latency};
    for (int age = 1; age <= LONGEST; age++) begin
      written[age] <= shifted[age];
      for (int w = 0; w < WRITES; w++) written[age][w].used <= shifted[age][w].used && open[age] && (age != 1 || start) && !reset;
    end
  end
endmodule
