// Issue of descriptors, and HBM as a resource: descriptors are served whole, one after the other, in the order of their
// issue (reads first in the same cycle). A walker spends a cycle on each beat of the one that is served; a descriptor is
// complete its latency after its last beat, and its tokens are given then. Queue 0 loads, queue 1 stores.
// Nothing of what HBM does comes back before a descriptor is complete, so all of it is BEHIND cycles behind the contract.
// After the issue:
//   1-3  what moves is worked out        4  the descriptor is accepted
//   5    a run leaves                    6-9  where it lies (gather: index, product, sum), its beats
//   10   its turn, at the earliest
module dma_control
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic [7:0] outstanding,
    input logic [1:0] valid,
    input entry_t [1:0] head,
    input logic [1:0] tokens,
    output logic [1:0] issue,
    output logic [1:0] busy,
    output logic [1:0] immediate,  // a sync that is issued now gives its tokens at once
    output tokens_t [1:0] given,
    output logic [1:0][1:0][5:0] given_late,  // and of these semaphores one each
    // a descriptor, ahead of its turn on HBM: what lies in SRAM, then that it will be served
    output logic [1:0] add,
    output descriptor_t [1:0] added,
    output logic [1:0] accept,
    output pc_t accepted_pc,
    // the walker: turns that begin, beats that a load or a store moves
    output logic [1:0] begins,
    output logic [1:0] beat,
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
  localparam int BITS = MOST_OUTSTANDING > 1 ? $clog2(MOST_OUTSTANDING) : 1;
  localparam int PLACES = 1 << BITS;
  logic [1:0] sync, moves;
  logic [1:0][BITS:0] in_flight;
  always_comb
    for (int q = 0; q < 2; q++) begin
      sync[q] = is_sync(head[q].word[7:0]);
      issue[q] = valid[q] && tokens[q] && (sync[q] || 8'(in_flight[q]) < outstanding);
      moves[q] = issue[q] && !sync[q];
    end

  // ---- what moves ----
  logic [1:0] moves1, moves2, moves3, contiguous3;
  entry_t [1:0] entry1;
  described_t [1:0] described2;
  descriptor_t [1:0] described3, described;
  logic [1:0][31:0] whole3, row_bytes3;
  logic [1:0][15:0] rows3;
  pc_t [1:0] pc2, pc3;
  always_ff @(posedge clock) begin
    moves1 <= reset ? '0 : moves;
    moves2 <= reset ? '0 : moves1;
    moves3 <= reset ? '0 : moves2;
    for (int q = 0; q < 2; q++) begin
      if (moves[q]) entry1[q] <= head[q];
      if (moves1[q]) begin
        described2[q] <= describe(entry1[q]);
        pc2[q] <= entry1[q].pc;
      end
      if (moves2[q]) begin
        described3[q] <= described2[q].d;
        pc3[q] <= pc2[q];
        rows3[q] <= described2[q].rows;
        row_bytes3[q] <= described2[q].row_bytes;
        whole3[q] <= {16'd0, described2[q].rows} * described2[q].row_bytes;
        contiguous3[q] <= described2[q].d.hbm_stride == described2[q].row_bytes && described2[q].d.opcode != OP_H_GATHER_V;
      end
    end
  end
  always_comb
    for (int q = 0; q < 2; q++) begin
      described[q] = described3[q];
      described[q].runs = contiguous3[q] ? 16'd1 : rows3[q];
      described[q].run_bytes = contiguous3[q] ? whole3[q] : row_bytes3[q];
    end

  // ---- the order in which HBM serves ----
  descriptor_t waiting[2][PLACES];
  pc_t waiting_pc[2][PLACES];
  logic [1:0][BITS-1:0] oldest, newest;
  logic [2*PLACES-1:0] order_;  // 1 for a store
  logic [BITS:0] order_first, order_last;
  logic [BITS+1:0] ordered;
  logic ready, chosen;
  descriptor_t accepted;
  assign add = moves2;
  assign added = {described2[1].d, described2[0].d};
  assign chosen = order_[order_first];
  assign accepted = waiting[chosen][oldest[chosen]];
  assign accepted_pc = waiting_pc[chosen][oldest[chosen]];
  always_comb begin
    accept = '0;
    accept[chosen] = ready && ordered != 0;
  end
  always_ff @(posedge clock)
    if (reset) begin
      oldest <= '0;
      newest <= '0;
      order_first <= '0;
      order_last <= '0;
      ordered <= '0;
    end else begin
      for (int q = 0; q < 2; q++) begin
        if (moves3[q]) begin
          waiting[q][newest[q]] <= described[q];
          waiting_pc[q][newest[q]] <= pc3[q];
          newest[q] <= newest[q] + 1'b1;
        end
        if (accept[q]) oldest[q] <= oldest[q] + 1'b1;
      end
      if (moves3[0]) order_[order_last] <= 1'b0;
      if (moves3[1]) order_[(BITS+1)'(order_last+{{BITS{1'b0}}, moves3[0]})] <= 1'b1;
      order_last <= order_last + {{BITS{1'b0}}, moves3[0]} + {{BITS{1'b0}}, moves3[1]};
      if (accept != 0) order_first <= order_first + 1'b1;
      ordered <= ordered + {{BITS + 1{1'b0}}, moves3[0]} + {{BITS + 1{1'b0}}, moves3[1]} - {{BITS + 1{1'b0}}, accept != 0};
    end

  // ---- runs: a cycle each, at most as many as the walker's queue holds ----
  typedef struct packed {
    logic store;
    logic first;  // of its descriptor
    logic last;
    logic gather;
    logic [31:0] place;
    logic [31:0] bytes;
    logic [31:0] stride;
    logic [31:0] index;
  } run_t;
  typedef struct packed {
    logic store;
    logic first;
    logic last;
    logic [27:0] place;
    logic [3:0] skip;  // bytes of its first beat
    logic [3:0] end_;  // bytes of its last beat, 0: all
    logic [27:0] more;  // beats behind the first
  } beats_t;
  localparam int RUNS = 8;
  run_t next, run1, run2, run3, run4;
  logic next_valid, emit, walk;
  logic [15:0] left;
  logic [4:1] run_valid;
  logic [31:0] index2, product3;
  logic [3:0] under_way;  // runs between here and the walker
  assign emit = next_valid && !under_way[3];
  assign ready = !next_valid || emit && next.last;
  assign index_address = run1.index;
  always_ff @(posedge clock) begin
    if (reset) begin
      next_valid <= 1'b0;
      run_valid <= '0;
      under_way <= '0;
    end else begin
      next_valid <= accept != 0 || next_valid && !ready;
      run_valid <= {run_valid[3:1], emit};
      under_way <= under_way + {3'd0, emit} - {3'd0, walk};
    end
    if (accept != 0) begin
      next <= '{
          store: chosen,
          first: 1'b1,
          last: accepted.runs == 1,
          gather: accepted.opcode == OP_H_GATHER_V,
          place: accepted.hbm,
          bytes: accepted.run_bytes,
          stride: accepted.hbm_stride,
          index: accepted.index
      };
      left <= accepted.runs;
    end else if (emit) begin
      next.first <= 1'b0;
      next.last <= left == 2;
      if (!next.gather) next.place <= next.place + next.stride;
      next.index <= next.index + 32'd1;
      left <= left - 16'd1;
    end
    if (emit) run1 <= next;
    run2 <= run1;
    index2 <= index_now;
    run3 <= run2;
    product3 <= index2 * run2.stride;
    run4 <= run3;
    if (run3.gather) run4.place <= run3.place + product3;
  end

  // ---- the walker ----
  beats_t queue_[RUNS];
  beats_t present, coming;
  logic [2:0] queue_first, queue_last;
  logic [3:0] queued;
  logic walking, last_beat;
  logic [31:0] beyond;
  assign beyond = run4.bytes + {28'd0, run4.place[3:0]};
  assign coming = queue_[queue_first];
  assign walk = queued != 0 && (!walking || last_beat);
  always_comb begin
    begins = '0;
    begins[coming.store] = walk && coming.first;
    beat = '0;
    beat[present.store] = walking;
    beat_address = {present.place, 4'd0};
    beat_skip = present.skip;
    beat_count = (last_beat && present.end_ != 0 ? {1'b0, present.end_} : 5'd16) - {1'b0, present.skip};
    ends = '0;
    ends[present.store] = walking && last_beat && present.last;
  end
  always_ff @(posedge clock) begin
    if (reset) begin
      queue_first <= '0;
      queue_last <= '0;
      queued <= '0;
      walking <= 1'b0;
    end else begin
      if (run_valid[4]) queue_last <= queue_last + 3'd1;
      if (walk) queue_first <= queue_first + 3'd1;
      queued <= queued + {3'd0, run_valid[4]} - {3'd0, walk};
      walking <= walk || walking && !last_beat;
    end
    if (run_valid[4])
      queue_[queue_last] <= '{
          store: run4.store,
          first: run4.first,
          last: run4.last,
          place: run4.place[31:4],
          skip: run4.place[3:0],
          end_: beyond[3:0],
          more: 28'((beyond - 32'd1) >> 4)
      };
    if (walk) begin
      present <= coming;
      last_beat <= coming.more == 0;
    end else if (walking) begin
      present.place <= present.place + 28'd1;
      present.skip <= '0;
      present.more <= present.more - 28'd1;
      last_beat <= present.more == 1;
    end
  end

  // ---- completion and tokens, in order ----
  logic [READ_LATENCY-BEHIND-1:1] due_in;  // complete in so many cycles less
  logic [WRITE_LATENCY-BEHIND-1:1] due_out;
  tokens_t owed[2][PLACES];  // of the descriptors in flight, the oldest first
  logic [7:0] credit[2];
  // The cycle after an issue: it owes its tokens; a sync adds its own to the newest descriptor, which may be complete just now.
  logic [1:0] owes, adds;
  logic [1:0][5:0] signal0, signal1;
  assign complete = {due_out[WRITE_LATENCY-BEHIND-1], due_in[READ_LATENCY-BEHIND-1]};
  always_comb
    for (int q = 0; q < 2; q++) begin
      busy[q] = in_flight[q] != 0;
      given[q] = complete[q] ? owed[q][0] : '0;
      immediate[q] = sync[q] && in_flight[q] == {{BITS{1'b0}}, complete[q]};
      given_late[q] = adds[q] && complete[q] && in_flight[q] == 1 ? {signal1[q], signal0[q]} : '0;
    end
  always_ff @(posedge clock)
    if (reset) begin
      fault <= 1'b0;
      due_in <= '0;
      due_out <= '0;
      in_flight <= '0;
      owes <= '0;
      adds <= '0;
      for (int q = 0; q < 2; q++) credit[q] <= '0;
    end else begin
      due_in <= {due_in[READ_LATENCY-BEHIND-2:1], ends[0]};
      due_out <= {due_out[WRITE_LATENCY-BEHIND-2:1], ends[1]};
      owes <= moves;
      adds <= issue & sync & ~immediate;
      for (int q = 0; q < 2; q++) begin
        logic [BITS-1:0] latest, place;
        latest = BITS'(in_flight[q] - 1'b1);
        place = complete[q] ? BITS'(latest - 1'b1) : latest;
        signal0[q] <= head[q].word[25:20];
        signal1[q] <= head[q].word[31:26];
        if (moves[q] && !is_known(q != 0, head[q].word[7:0])) fault <= 1'b1;
        if (complete[q]) begin
          for (int i = 0; i + 1 < PLACES; i++) owed[q][i] <= owed[q][i+1];
          if (credit[q] == 0 && !finished[q]) fault <= 1'b1;  // the data came later than the contract says
        end
        if (owes[q]) owed[q][place] <= with_signals('0, signal0[q], signal1[q]);
        if (adds[q] && !(complete[q] && in_flight[q] == 1)) begin
          owed[q][place] <= with_signals(owed[q][latest], signal0[q], signal1[q]);
          if (owed[q][latest][signal0[q]] >= 4'd14 || owed[q][latest][signal1[q]] >= 4'd14) fault <= 1'b1;
        end
        in_flight[q] <= in_flight[q] + {{BITS{1'b0}}, moves[q]} - {{BITS{1'b0}}, complete[q]};
        credit[q] <= credit[q] + {7'd0, finished[q]} - {7'd0, complete[q]};
      end
    end
endmodule
