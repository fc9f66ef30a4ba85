// Issue of descriptors, and HBM as a resource: descriptors are served whole, one after the other, in the order of their
// issue (reads first in the same cycle). A walker spends a cycle on each beat of the one that is served; a descriptor is
// complete its latency after its last beat, and its tokens are given then. Queue 0 loads, queue 1 stores.
module dma_control
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic [31:0] now,
    input logic [7:0] outstanding,
    input logic [1:0] valid,
    input entry_t [1:0] head,
    input logic [1:0] tokens,
    output logic [1:0] issue,
    output logic [1:0] busy,
    output logic [1:0] give,
    output tokens_t [1:0] given,
    // the descriptor whose turn on HBM begins
    output logic [1:0] begins,
    output descriptor_t begun,
    output pc_t begun_pc,
    // the walker: a beat that a load asks for
    output logic beat,
    output logic [31:0] beat_address,
    output logic [3:0] beat_skip,
    output logic [4:0] beat_count,
    output logic [31:0] index_address,
    input logic [31:0] index_now,
    // the last beat of a descriptor passes, so its end is known
    output logic [1:0] ends,
    output logic [1:0] complete,  // in the next cycle
    input logic [1:0] finished,  // its data has been written
    output logic fault
);
  localparam int PLACES = MOST_OUTSTANDING;
  localparam int BITS = $clog2(PLACES + 1);
  logic [1:0] sync, moves;
  logic [7:0] in_flight[2];
  descriptor_t [1:0] described;
  always_comb
    for (int q = 0; q < 2; q++) begin
      sync[q] = is_sync(head[q].word[7:0]);
      issue[q] = valid[q] && tokens[q] && (sync[q] || in_flight[q] < outstanding);
      moves[q] = issue[q] && !sync[q];
      described[q] = describe(head[q]);
    end

  // ---- the order in which HBM serves ----
  descriptor_t waiting[2][PLACES];
  pc_t waiting_pc[2][PLACES];
  logic [BITS-1:0] count[2];
  logic [2*PLACES-1:0] order_;  // bit 0 is served next: 1 for a store
  logic [7:0] ordered;
  logic from_queue, chosen, free, walking, storing;
  logic [1:0] pushed;
  logic last_beat, last_run;

  assign free = !walking || last_beat && last_run;
  always_comb begin
    from_queue = ordered != 0;
    chosen = from_queue ? order_[0] : !moves[0];
    begins = '0;
    if (free && (from_queue || moves != 0)) begins[chosen] = 1'b1;
    begun = from_queue ? waiting[chosen][0] : described[chosen];
    begun_pc = from_queue ? waiting_pc[chosen][0] : head[chosen].pc;
    for (int q = 0; q < 2; q++) pushed[q] = moves[q] && !(begins[q] && !from_queue);
  end

  always_ff @(posedge clock)
    if (reset) begin
      count[0] <= '0;
      count[1] <= '0;
      order_ <= '0;
      ordered <= '0;
    end else begin
      logic [2*PLACES-1:0] line;
      logic [7:0] length;
      line = order_;
      length = ordered;
      if (begins != 0 && from_queue) begin
        line = line >> 1;
        length = length - 8'd1;
      end
      for (int q = 0; q < 2; q++) begin
        logic [BITS-1:0] left;
        left = count[q];
        if (begins[q] && from_queue) begin
          left = left - 1'b1;
          for (int i = 0; i + 1 < PLACES; i++) begin
            waiting[q][i] <= waiting[q][i+1];
            waiting_pc[q][i] <= waiting_pc[q][i+1];
          end
        end
        if (pushed[q]) begin
          waiting[q][$clog2(PLACES)'(left)] <= described[q];
          waiting_pc[q][$clog2(PLACES)'(left)] <= head[q].pc;
          left = left + 1'b1;
          line[$clog2(2*PLACES)'(length)] = q == 1;
          length = length + 8'd1;
        end
        count[q] <= left;
      end
      order_ <= line;
      ordered <= length;
    end

  // ---- the walker ----
  descriptor_t walk;
  logic [31:0] run_start, run_end, place, base;  // base: where the first byte of the row lies
  logic first_beat;
  logic [15:0] run;
  assign index_address = walk.index + 32'(run);
  always_comb begin
    run_start = base;
    if (walk.opcode == OP_H_GATHER_V) run_start = walk.hbm + index_now * walk.hbm_stride;
    run_end = run_start + walk.run_bytes;
    beat_address = first_beat ? {run_start[31:4], 4'd0} : place;
    beat_skip = first_beat ? run_start[3:0] : 4'd0;
    last_beat = walking && beat_address + 32'd16 >= run_end;
    last_run = run == walk.runs - 16'd1;
    beat_count = (last_beat && run_end[3:0] != 0 ? {1'b0, run_end[3:0]} : 5'd16) - {1'b0, beat_skip};
    beat = walking && !storing;
    ends = '0;
    if (last_beat && last_run) ends[storing] = 1'b1;
  end
  always_ff @(posedge clock)
    if (reset) walking <= 1'b0;
    else begin
      if (walking) begin
        place <= beat_address + 32'd16;
        first_beat <= last_beat;
        if (last_beat) begin
          run <= run + 16'd1;
          base <= base + walk.hbm_stride;
          if (last_run) walking <= 1'b0;
        end
      end
      if (begins != 0) begin
        walk <= begun;
        walking <= 1'b1;
        storing <= begins[1];
        base <= begun.hbm;
        run <= '0;
        first_beat <= 1'b1;
      end
    end

  // ---- completion and tokens, in order ----
  logic [31:0] due[2][PLACES];
  logic [BITS-1:0] due_count[2];
  tokens_t owed[2][PLACES];  // of the descriptors in flight, the oldest first
  logic [7:0] credit[2];
  logic [1:0][5:0] signal0, signal1;
  always_comb
    for (int q = 0; q < 2; q++) begin
      complete[q] = due_count[q] != 0 && due[q][0] == now + 1;
      busy[q] = in_flight[q] != 0;
      signal0[q] = issue[q] ? head[q].word[25:20] : 6'd0;
      signal1[q] = issue[q] ? head[q].word[31:26] : 6'd0;
      given[q] = complete[q] ? owed[q][0] : '0;
      if (issue[q] && sync[q] && in_flight[q] == {7'd0, complete[q]})
        given[q] = with_signals(given[q], signal0[q], signal1[q]);
      give[q] = complete[q] || issue[q] && sync[q];
    end
  always_ff @(posedge clock)
    if (reset) begin
      fault <= 1'b0;
      for (int q = 0; q < 2; q++) begin
        in_flight[q] <= '0;
        due_count[q] <= '0;
        credit[q] <= '0;
      end
    end else
      for (int q = 0; q < 2; q++) begin
        logic [7:0] flying;
        logic [BITS-1:0] known;
        flying = in_flight[q];
        known = due_count[q];
        if (complete[q]) begin
          for (int i = 0; i + 1 < PLACES; i++) begin
            owed[q][i] <= owed[q][i+1];
            due[q][i] <= due[q][i+1];
          end
          flying = flying - 8'd1;
          known = known - 1'b1;
          if (credit[q] == 0 && !finished[q]) fault <= 1'b1;  // the data came later than the contract says
        end
        if (ends[q]) begin
          due[q][$clog2(PLACES)'(known)] <= now + (q == 1 ? WRITE_LATENCY : READ_LATENCY);
          known = known + 1'b1;
        end
        if (moves[q]) begin
          owed[q][$clog2(PLACES)'(flying)] <= with_signals('0, signal0[q], signal1[q]);
          flying = flying + 8'd1;
        end else if (issue[q] && flying != 0) begin
          logic [$clog2(PLACES)-1:0] newest;
          tokens_t earlier;
          newest = $clog2(PLACES)'(flying - 8'd1);
          earlier = complete[q] ? owed[q][$clog2(PLACES)'(newest+1)] : owed[q][newest];
          owed[q][newest] <= with_signals(earlier, signal0[q], signal1[q]);
          if (earlier[signal0[q]] >= 4'd14 || earlier[signal1[q]] >= 4'd14) fault <= 1'b1;
        end
        in_flight[q] <= flying;
        due_count[q] <= known;
        credit[q] <= credit[q] + {7'd0, finished[q]} - {7'd0, complete[q]};
      end
endmodule
