// Fetches, runs the control instructions, dispatches the others: one instruction a cycle. What is dispatched in cycle t:
//   t+1  the instruction before it is matched against the address registers
//   t+2  those have moved; the registers that it names are read
//   t+3  it enters its queue, where it may be the second in t+4 and the head in t+5
// A place that becomes free in its queue is known as many cycles later.
module front_end
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic run,
    input logic serial,
    input logic [3:0][7:0] depth,
    output logic [15:0] fetch_address,
    input logic [127:0] word,
    input logic [3:0] pop,  // an instruction leaves its queue
    input logic [3:0] idle,  // queue empty and all of the unit retired
    output logic [3:0] push,
    output entry_t entry,
    input logic token,  // the semaphore that a C_BREAK_IF waits for has a token
    output logic take,
    output logic [5:0] take_number,
    output logic [31:0] flag_address,
    input logic [31:0] flag,
    output logic control,  // a control instruction retires
    output pc_t pc,
    output logic done,
    output logic empty,  // nothing is on its way to a queue
    output logic fault  // a control instruction that is none
);
  typedef logic [31:0] count_t;
  c_loop_t loop_word;
  c_loop_r_t loop_r_word;
  c_next_t next_word;
  c_break_if_t break_word;
  c_affine_t affine_word;
  a_base_t base_word;
  a_step_t step_word;
  a_rows_t rows_word;
  a_ring_t ring_word;
  a_next_t advance_word;
  assign loop_word = word;
  assign loop_r_word = word;
  assign next_word = word;
  assign break_word = word;
  assign affine_word = word;
  assign base_word = word;
  assign step_word = word;
  assign rows_word = word;
  assign ring_word = word;
  assign advance_word = word;

  count_t index[LOOP_LEVELS];
  count_t remaining[LOOP_LEVELS];  // trips, this one included
  logic [LOOP_LEVELS-1:0] last_trip;
  pc_t start[LOOP_LEVELS];
  pc_t stop[LOOP_LEVELS];
  count_t register_[INTEGER_REGISTERS];
  logic [INTEGER_REGISTERS-1:0] positive, one;  // of registers
  logic running, held;
  logic [7:0] opcode;
  logic queued, affine, breaks, step, left, skipped;
  queue_t target;
  logic [3:0] level;
  logic [23:0] length;
  pc_t next_pc;

  assign opcode = word[7:0];
  assign queued = opcode >= 8'h10;
  assign affine = opcode == OP_C_AFFINE;
  assign breaks = opcode == OP_C_BREAK_IF;
  assign target = queue_of(opcode);
  assign level = next_word.level;  // the first operand of every loop instruction
  assign length = opcode == OP_C_LOOP ? loop_word.length : loop_r_word.length;

  // ---- instructions of several cycles: C_BREAK_IF from its token on, C_AFFINE ----
  logic [2:0] cycle;
  logic last_cycle, begun, flag_is_zero;
  count_t factor, product, value;
  assign begun = running && !held && (affine || breaks && (token || break_word.wait0 == 0));
  assign flag_address = entry.address[0];
  always_ff @(posedge clock)
    if (reset) begin
      cycle <= '0;
      last_cycle <= 1'b0;
      take <= 1'b0;
    end else begin
      if (last_cycle) cycle <= '0;
      else if (cycle != 0 || begun) cycle <= cycle + 3'd1;
      last_cycle <= !last_cycle && cycle == (affine ? 3'(AFFINE_CYCLES - 2) : 3'(BREAK_CYCLES - 2));
      take <= begun && breaks && cycle == 0 && break_word.wait0 != 0;
      take_number <= break_word.wait0;
      flag_is_zero <= flag == 0;
      factor <= index[affine_word.level];
      product <= affine_word.factor * $signed(factor);
      value <= affine_word.base + product;
    end

  // ---- places in the queues, and in serial execution the end of what was dispatched ----
  logic [3:0] room;
  logic [3:0][7:0] taken;
  logic [DISPATCH_CYCLES-1:1][3:0] freed, resting;
  queue_t pending;
  logic [3:0] guard_;  // until `resting` knows of what was dispatched
  always_ff @(posedge clock)
    if (reset) begin
      taken <= '0;
      freed <= '0;
      held <= 1'b0;
      guard_ <= '0;
      for (int q = 0; q < 4; q++) room[q] <= depth[q] != 0;
    end else begin
      freed <= {freed[DISPATCH_CYCLES-2:1], pop};
      resting <= {resting[DISPATCH_CYCLES-2:1], idle};
      for (int q = 0; q < 4; q++) begin
        logic [7:0] same, more;
        same = taken[q] - {7'd0, freed[DISPATCH_CYCLES-1][q]};
        more = taken[q] + {7'd0, !freed[DISPATCH_CYCLES-1][q]};
        taken[q] <= step && queued && target == queue_t'(q) ? more : same;
        room[q] <= step && queued && target == queue_t'(q) ? more < depth[q] : same < depth[q];
      end
      if (guard_ != 0) guard_ <= guard_ - 4'd1;
      else if (resting[DISPATCH_CYCLES-1][pending]) held <= 1'b0;
      if (step && queued && serial) begin
        held <= 1'b1;
        guard_ <= 4'(2 * DISPATCH_CYCLES - 1);
        pending <= target;
      end
    end

  // ---- loops ----
  logic entering;
  assign entering = opcode == OP_C_LOOP || opcode == OP_C_LOOP_R;
  assign skipped = opcode == OP_C_LOOP ? $signed(loop_word.trips) <= 0 : !positive[loop_r_word.register_];
  assign left = last_trip[level] || breaks && flag_is_zero;

  always_comb begin
    step = running && !held && (queued ? room[target] : !(affine || breaks) || last_cycle);
    control = step && !queued;
    next_pc = pc + 16'd1;
    case (opcode)
      OP_C_LOOP, OP_C_LOOP_R: if (skipped) next_pc = pc + 16'd1 + 16'(length);
      OP_C_NEXT: next_pc = left ? stop[level] : start[level];
      OP_C_BREAK_IF: if (left) next_pc = stop[level];
      default: ;
    endcase
    if (!step) next_pc = pc;
    fetch_address = reset ? 16'd0 : next_pc;
  end
  assign done = !running && !reset;
  always_ff @(posedge clock)
    case (opcode)
      OP_C_LOOP, OP_C_LOOP_R, OP_C_NEXT, OP_C_BREAK_IF, OP_C_AFFINE, OP_C_END, OP_A_BASE, OP_A_STEP, OP_A_ROWS, OP_A_RING,
      OP_A_NEXT:
      fault <= 1'b0;
      default: fault <= !reset && control;
    endcase

  always_ff @(posedge clock)
    if (reset) begin
      pc <= '0;
      running <= 1'b0;
      last_trip <= '0;
      positive <= '0;
      one <= '0;
      for (int i = 0; i < LOOP_LEVELS; i++) begin
        index[i] <= '0;
        remaining[i] <= '0;
        start[i] <= '0;
        stop[i] <= '0;
      end
      for (int i = 0; i < INTEGER_REGISTERS; i++) register_[i] <= '0;
    end else begin
      if (run) running <= 1'b1;
      else if (step && opcode == OP_C_END) running <= 1'b0;
      pc <= next_pc;
      for (int i = 0; i < LOOP_LEVELS; i++)
        if (step && level == 4'(i)) begin
          if (entering) begin
            index[i] <= '0;
            remaining[i] <= opcode == OP_C_LOOP ? loop_word.trips : register_[loop_r_word.register_];
            last_trip[i] <= opcode == OP_C_LOOP ? loop_word.trips == 1 : one[loop_r_word.register_];
            start[i] <= pc + 16'd1;
            stop[i] <= pc + 16'd1 + 16'(length);
          end
          if (opcode == OP_C_NEXT && !last_trip[i]) begin
            index[i] <= index[i] + 1;
            remaining[i] <= remaining[i] - 1;
            last_trip[i] <= remaining[i] == 2;
          end
          if ((opcode == OP_C_NEXT || breaks) && left) index[i] <= '0;
        end
      for (int i = 0; i < INTEGER_REGISTERS; i++)
        if (step && affine && affine_word.register_ == 4'(i)) begin
          register_[i] <= value;
          positive[i] <= $signed(value) > 0;
          one[i] <= value == 1;
        end
    end

  // ---- rings ----
  logic [7:0] ring_length[RINGS];
  logic [7:0] ring_position[RINGS];
  logic [RINGS-1:0] last_buffer;
  always_ff @(posedge clock)
    if (reset) begin
      last_buffer <= '1;
      for (int i = 0; i < RINGS; i++) begin
        ring_length[i] <= 8'd1;
        ring_position[i] <= '0;
      end
    end else
      for (int i = 0; i < RINGS; i++) begin
        if (step && opcode == OP_A_RING && ring_word.ring == 4'(i)) begin
          ring_length[i] <= ring_word.length;
          last_buffer[i] <= ring_position[i] + 8'd1 >= ring_word.length;
        end
        if (step && opcode == OP_A_NEXT && advance_word.ring == 4'(i)) begin
          ring_position[i] <= last_buffer[i] ? '0 : ring_position[i] + 8'd1;
          last_buffer[i] <= last_buffer[i] ? ring_length[i] <= 8'd1 : ring_position[i] + 8'd2 >= ring_length[i];
        end
      end

  // ---- address registers: what happens to them, and what is dispatched, a stage each ----
  change_t change;
  entry_t read;
  pc_t pc1, pc2;
  logic [127:0] word1, word2;
  logic [3:0] push1, push2;
  logic [PORTS-1:0][REGISTER_BITS-1:0] number;
  always_ff @(posedge clock) begin
    change.set_base <= step && opcode == OP_A_BASE && !reset;
    change.set_step <= step && opcode == OP_A_STEP && !reset;
    change.set_rows <= step && opcode == OP_A_ROWS && !reset;
    change.set_ring <= step && opcode == OP_A_RING && !reset;
    change.next <= step && (opcode == OP_C_NEXT || breaks && left) && !reset;
    change.advance <= step && opcode == OP_A_NEXT && !reset;
    change.number <= base_word.register_;  // the first operand of all that set
    change.level <= opcode == OP_A_STEP ? step_word.level : level;
    change.ring <= opcode == OP_A_RING ? ring_word.ring : advance_word.ring;
    change.ends <= opcode == OP_A_NEXT ? last_buffer[advance_word.ring] : left;
    case (opcode)
      OP_A_BASE: change.value <= base_word.base[31:0];
      OP_A_STEP: change.value <= step_word.stride[31:0];
      OP_A_ROWS: change.value <= rows_word.stride[31:0];
      default: change.value <= ring_word.stride[31:0];
    endcase
    number[0] <= word[address_place0(opcode)+:REGISTER_BITS];
    number[1] <= word[address_place1(opcode)+:REGISTER_BITS];
    number[2] <= word[address_place2(opcode)+:REGISTER_BITS];
    number[3] <= word[address_place3(opcode)+:REGISTER_BITS];
    for (int q = 0; q < 4; q++) push1[q] <= step && queued && target == queue_t'(q) && !reset;
    pc1 <= pc;
    word1 <= word;
    push2 <= reset ? '0 : push1;
    pc2 <= pc1;
    word2 <= word1;
    push <= reset ? '0 : push2;
    entry <= read;
  end
  address_registers registers (
      .clock, .reset, .change, .number, .address(read.address), .row_stride(read.stride)
  );
  assign empty = {push1, push2, push} == '0;
  assign read.pc = pc2;
  assign read.word = word2;
endmodule
