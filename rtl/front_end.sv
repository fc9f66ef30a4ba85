// Fetches, runs the control instructions, dispatches the others: one instruction a cycle.
module front_end
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic run,
    input logic serial,
    output logic [15:0] fetch_address,
    input logic [127:0] word,
    input logic [3:0] room,
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
    output logic done
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
  count_t trips[LOOP_LEVELS];
  pc_t start[LOOP_LEVELS];
  pc_t stop[LOOP_LEVELS];
  count_t register_[INTEGER_REGISTERS];
  logic [7:0] ring_length[RINGS];
  logic [7:0] ring_position[RINGS];
  logic running, pending;
  queue_t pending_queue;

  logic [7:0] opcode;
  logic queued, held, step, last_trip, left, wrap;
  queue_t target;
  logic [3:0] level;
  count_t entered_trips;
  logic [23:0] length;
  pc_t next_pc;
  logic [PORTS-1:0][8:0] read_number;

  assign opcode = word[7:0];
  assign queued = opcode >= 8'h10;
  assign target = queue_of(opcode);
  assign held = pending && !idle[pending_queue];
  assign level = next_word.level;  // the first operand of every loop instruction
  assign last_trip = index[level] + 1 >= trips[level];
  assign left = opcode == OP_C_BREAK_IF ? flag == 0 || index[level] + 1 == trips[level] : last_trip;
  assign length = opcode == OP_C_LOOP ? loop_word.length : loop_r_word.length;
  assign entered_trips = opcode == OP_C_LOOP ? loop_word.trips : register_[loop_r_word.register_];
  assign wrap = ring_position[advance_word.ring] + 8'd1 >= ring_length[advance_word.ring];

  always_comb begin
    step = running && !held;
    if (queued) step = step && room[target];
    if (opcode == OP_C_BREAK_IF && break_word.wait0 != 0) step = step && token;
    push = '0;
    if (step && queued) push[target] = 1'b1;
    take = step && opcode == OP_C_BREAK_IF && break_word.wait0 != 0;
    take_number = break_word.wait0;
    control = step && !queued;

    next_pc = pc + 16'd1;
    case (opcode)
      OP_C_LOOP, OP_C_LOOP_R: if ($signed(entered_trips) <= 0) next_pc = pc + 16'd1 + 16'(length);
      OP_C_NEXT: next_pc = left ? stop[level] : start[level];
      OP_C_BREAK_IF: if (left) next_pc = stop[level];
      default: ;
    endcase
    if (!step) next_pc = pc;
    fetch_address = reset ? 16'd0 : next_pc;

    read_number = '0;
    read_number[0] = word[address_place0(opcode)+:9];
    read_number[1] = word[address_place1(opcode)+:9];
    read_number[2] = word[address_place2(opcode)+:9];
    read_number[3] = word[address_place3(opcode)+:9];
  end

  address_registers registers (
      .clock, .reset,
      .set_base(step && opcode == OP_A_BASE),
      .set_step(step && opcode == OP_A_STEP),
      .set_rows(step && opcode == OP_A_ROWS),
      .set_ring(step && opcode == OP_A_RING),
      .number(base_word.register_),  // the first operand of all four
      .level(step_word.level),
      .ring(ring_word.ring),
      .value(opcode == OP_A_BASE ? base_word.base[31:0] : opcode == OP_A_STEP ? step_word.stride[31:0] :
             opcode == OP_A_ROWS ? rows_word.stride[31:0] : ring_word.stride[31:0]),
      .next(step && (opcode == OP_C_NEXT || opcode == OP_C_BREAK_IF && left)),
      .leave(left),
      .next_level(level),
      .advance(step && opcode == OP_A_NEXT),
      .wrap,
      .advance_ring(advance_word.ring),
      .read_number,
      .address(entry.address),
      .row_stride(entry.stride)
  );
  assign entry.pc = pc;
  assign entry.word = word;
  assign flag_address = entry.address[0];
  assign done = !running && !reset;

  always_ff @(posedge clock)
    if (reset) begin
      pc <= '0;
      running <= 1'b0;
      pending <= 1'b0;
      pending_queue <= Q_MATRIX;
      for (int i = 0; i < LOOP_LEVELS; i++) begin
        index[i] <= '0;
        trips[i] <= '0;
        start[i] <= '0;
        stop[i] <= '0;
      end
      for (int i = 0; i < INTEGER_REGISTERS; i++) register_[i] <= '0;
      for (int i = 0; i < RINGS; i++) begin
        ring_length[i] <= 8'd1;
        ring_position[i] <= '0;
      end
    end else begin
      if (run) running <= 1'b1;
      pc <= next_pc;
      if (step) begin
        pending <= serial && queued;
        pending_queue <= target;
        case (opcode)
          OP_C_LOOP, OP_C_LOOP_R: begin
            index[level] <= '0;
            trips[level] <= entered_trips;
            start[level] <= pc + 16'd1;
            stop[level] <= pc + 16'd1 + 16'(length);
          end
          OP_C_NEXT: index[level] <= left ? '0 : index[level] + 1;
          OP_C_BREAK_IF: if (left) index[level] <= '0;
          OP_C_AFFINE:
          register_[affine_word.register_] <= affine_word.base + affine_word.factor * $signed(index[affine_word.level]);
          OP_C_END: running <= 1'b0;
          OP_A_RING: ring_length[ring_word.ring] <= ring_word.length;
          OP_A_NEXT: ring_position[advance_word.ring] <= wrap ? '0 : ring_position[advance_word.ring] + 8'd1;
          default: ;
        endcase
      end
    end
endmodule
