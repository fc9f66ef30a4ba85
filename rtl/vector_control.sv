// When the head of the vector queue may start: tokens are there, the unit is free, its operands are complete.
module vector_control
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic valid,
    input entry_t head,
    input logic tokens,
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

  // What is written by the instruction that started that many cycles ago, until it is complete.
  range_t [LONGEST:1][WRITES-1:0] written;
  logic [LONGEST:1][15:0] latency;
  logic [15:0] wait_cycles;
  logic [7:0] opcode;
  logic ready;
  lock_t [LOCKS-1:0] locks;
  range_t [LOCKS-1:0] range;
  range_t [WRITES-1:0] writes;
  v_rope_v_t rope;

  assign opcode = head.word[7:0];
  assign rope = head.word;
  assign locks = {lock4(opcode), lock3(opcode), lock2(opcode), lock1(opcode), lock0(opcode)};
  always_comb begin
    logic found;
    for (int i = 0; i < LOCKS; i++) begin
      logic [15:0] size;
      logic [31:0] first;
      first = head.address[locks[i].port];
      case (locks[i].size)
        SIZE_N: size = head.word[lanes_place(opcode)+:16];
        SIZE_HEAD: size = {7'd0, rope.head_dim};
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

  always_comb begin
    ready = 1'b1;
    for (int age = 1; age < LONGEST; age++)
      for (int w = 0; w < WRITES; w++)
        for (int i = 0; i < LOCKS; i++) if (overlap(range[i], written[age][w])) ready = 1'b0;
    start = valid && wait_cycles == 0 && tokens && ready;
  end

  always_ff @(posedge clock) begin
    if (reset) wait_cycles <= '0;
    else if (start) wait_cycles <= interval_of(opcode) - 16'd1;
    else if (wait_cycles != 0) wait_cycles <= wait_cycles - 16'd1;
    latency <= {latency[LONGEST-1:1], latency_of(opcode)};
    for (int age = 1; age <= LONGEST; age++)
      for (int w = 0; w < WRITES; w++) begin
        range_t earlier;
        logic [15:0] takes;
        earlier = age == 1 ? writes[w] : written[age-(age!=1)][w];
        takes = age == 1 ? latency_of(opcode) : latency[age-(age!=1)];
        earlier.used = earlier.used && (age != 1 || start) && takes > 16'(age) && !reset;
        written[age][w] <= earlier;
      end
  end
endmodule
