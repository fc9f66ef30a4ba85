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
    input logic [31:0] now,
    output logic start
);
  localparam int ROWS = VECTOR_ELEMENTS / VLEN;
  localparam int ROW_BITS = $clog2(ROWS), FP_BITS = $clog2(FP_ENTRIES), INT_BITS = $clog2(INT_ENTRIES);
  logic [ROWS-1:0] row_known;  // something was written, so its time counts
  logic [FP_ENTRIES-1:0] fp_known;
  logic [INT_ENTRIES-1:0] int_known;
  logic [31:0] row_ready[ROWS];
  logic [31:0] fp_ready[FP_ENTRIES];
  logic [INT_ENTRIES-1:0][31:0] int_ready;
  logic [15:0] wait_cycles;
  logic [7:0] opcode;
  logic ready;
  logic [31:0] complete;
  lock_t [LOCKS-1:0] locks;
  logic [LOCKS-1:0][31:0] first;
  logic [LOCKS-1:0][15:0] size;
  v_rope_v_t rope;

  assign opcode = head.word[7:0];
  assign rope = head.word;
  assign complete = now + 32'(latency_of(opcode));
  assign locks = {lock4(opcode), lock3(opcode), lock2(opcode), lock1(opcode), lock0(opcode)};
  always_comb
    for (int i = 0; i < LOCKS; i++) begin
      first[i] = head.address[locks[i].port];
      case (locks[i].size)
        SIZE_N: size[i] = head.word[lanes_place(opcode)+:16];
        SIZE_HEAD: size[i] = {7'd0, rope.head_dim};
        default: size[i] = 16'd1;
      endcase
    end

  always_comb begin
    ready = 1'b1;
    if (valid && wait_cycles == 0 && tokens)
      for (int i = 0; i < LOCKS; i++)
        if (locks[i].used)
          case (locks[i].memory)
            MEMORY_VECTOR: begin
              if (row_known[ROW_BITS'(first[i]/VLEN)] && row_ready[ROW_BITS'(first[i]/VLEN)] > now) ready = 1'b0;
              if (row_known[ROW_BITS'((first[i]+32'(size[i])-1)/VLEN)] &&
                  row_ready[ROW_BITS'((first[i]+32'(size[i])-1)/VLEN)] > now) ready = 1'b0;
            end
            MEMORY_FP:
            for (int j = 0; j < VLEN; j++)
              if (j < size[i] && fp_known[FP_BITS'(first[i]+j)] && fp_ready[FP_BITS'(first[i]+j)] > now) ready = 1'b0;
            default:
            for (int j = 0; j < VLEN; j++)
              if (j < size[i] && int_known[INT_BITS'(first[i]+j)] && int_ready[INT_BITS'(first[i]+j)] > now) ready = 1'b0;
          endcase
    start = valid && wait_cycles == 0 && tokens && ready;
  end

  always_ff @(posedge clock)
    if (reset) begin
      wait_cycles <= '0;
      row_known <= '0;
      fp_known <= '0;
      int_known <= '0;
    end else begin
      if (start) wait_cycles <= interval_of(opcode) - 16'd1;
      else if (wait_cycles != 0) wait_cycles <= wait_cycles - 16'd1;
      // What is written is complete now, so the new time is the later one.
      if (start)
        for (int i = 0; i < LOCKS; i++)
          if (locks[i].used && locks[i].write)
            case (locks[i].memory)
              MEMORY_VECTOR: begin
                row_known[ROW_BITS'(first[i]/VLEN)] <= 1'b1;
                row_known[ROW_BITS'((first[i]+32'(size[i])-1)/VLEN)] <= 1'b1;
                row_ready[ROW_BITS'(first[i]/VLEN)] <= complete;
                row_ready[ROW_BITS'((first[i]+32'(size[i])-1)/VLEN)] <= complete;
              end
              MEMORY_FP: begin  // one entry at most
                fp_known[FP_BITS'(first[i])] <= 1'b1;
                fp_ready[FP_BITS'(first[i])] <= complete;
              end
              default:
              for (int j = 0; j < VLEN; j++)
                if (j < size[i]) begin
                  int_known[INT_BITS'(first[i]+j)] <= 1'b1;
                  int_ready[INT_BITS'(first[i]+j)] <= complete;
                end
            endcase
    end
endmodule
