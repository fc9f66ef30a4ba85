// Instructions of one unit, in order; the front end knows when there is room. The head and the one behind it stand in
// registers, so that what a start needs of an instruction is worked out while it is the second.
module queue
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic push,
    input entry_t in,
    input logic pop,
    output logic valid,
    output entry_t head,
    output logic [15:0] latency,  // of the head
    output logic free,  // the interval of the instruction before is over
    output logic empty,
    // what becomes the second, and when; when the second becomes the head
    output logic refill,
    output entry_t coming,
    output logic move
);
  localparam int BITS = $clog2(MOST_QUEUED);
  entry_t entries[MOST_QUEUED];
  entry_t second;
  logic [BITS-1:0] first, last;
  logic [7:0] count;
  logic [15:0] interval, wait_cycles;
  logic follows;

  assign empty = !valid && !follows;
  assign move = follows && (!valid || pop);
  assign refill = !follows || move;
  assign coming = count != 0 ? entries[first] : in;

  always_ff @(posedge clock) begin
    if (push) entries[last] <= in;
    if (refill) second <= coming;
    if (move) begin
      head <= second;
      latency <= latency_of(second.word[7:0]);
      interval <= interval_of(second.word[7:0]);
    end
    if (reset) begin
      first <= '0;
      last <= '0;
      count <= '0;
      follows <= 1'b0;
      valid <= 1'b0;
      free <= 1'b1;
      wait_cycles <= '0;
    end else begin
      logic stays, leaves;
      stays = push && !(refill && count == 0);
      leaves = refill && count != 0;
      if (stays) last <= last == BITS'(MOST_QUEUED - 1) ? '0 : last + 1'b1;
      if (leaves) first <= first == BITS'(MOST_QUEUED - 1) ? '0 : first + 1'b1;
      count <= count + {7'd0, stays} - {7'd0, leaves};
      follows <= refill ? count != 0 || push : 1'b1;
      valid <= move || valid && !pop;
      free <= pop ? interval == 16'd1 : wait_cycles <= 16'd1;
      if (pop) wait_cycles <= interval - 16'd1;
      else if (wait_cycles != 0) wait_cycles <= wait_cycles - 16'd1;
    end
  end
endmodule

// Results of one unit, retired in order: an instruction's tokens are given when it and all before it are complete.
// What retires in the same cycle shares a place. What retires in three cycles or less passes by.
module retirement
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic start,
    input logic [15:0] latency,
    input logic [5:0] signal0,
    input logic [5:0] signal1,
    output logic busy,
    output logic immediate,  // what starts now retires in the next cycle: whoever keeps the tokens adds its signals
    output tokens_t given,
    output logic [1:0][5:0] given_late,  // and of these semaphores one each
    output logic fault
);
  localparam int PLACES = 32;
  typedef struct packed {
    logic [15:0] time_;
    tokens_t tokens;
  } place_t;

  // ---- the cycle of the start: when it retires ----
  logic [15:0] tick;
  logic [15:0] lead;  // cycles until all that started is complete
  logic longer;
  assign busy = lead != 0;
  assign longer = latency > lead;
  assign immediate = latency == 1 && lead <= 1;

  // ---- the next: where its tokens go ----
  logic prolongs, in_three, later;
  logic [15:0] alone;  // when it is complete
  logic [5:0] number0, number1;
  always_ff @(posedge clock) begin
    prolongs <= start && longer && !reset;
    given_late <= start && latency <= 2 && lead <= 2 && !immediate && !reset ? {signal1, signal0} : '0;
    in_three <= start && latency <= 3 && lead <= 3 && (latency == 3 || lead == 3) && !reset;
    later <= start && (latency > 3 || lead > 3) && (signal0 != 0 || signal1 != 0) && !reset;
    alone <= tick + latency;
    number0 <= signal0;
    number1 <= signal1;
    tick <= reset ? '0 : tick + 16'd1;
    lead <= reset ? '0 : start && longer ? latency - 16'd1 : busy ? lead - 16'd1 : '0;
  end

  place_t places[PLACES];
  place_t newest, oldest;
  logic [4:0] first, last;
  logic [5:0] count;
  logic kept;  // there is a newest
  logic last_of_all;  // which retires when all that started is complete
  logic [15:0] complete_at;  // when that is
  logic [15:0] due_time;
  logic due, newest_due, same, shift;
  assign oldest = count != 0 ? places[first] : newest;
  assign due = (count != 0 || kept) && oldest.time_ == due_time;
  assign newest_due = count == 0 && newest.time_ == due_time;
  assign same = kept && last_of_all && !prolongs;
  assign shift = later && kept && !same && !newest_due;

  always_ff @(posedge clock) begin
    given <= with_signals(due ? oldest.tokens : '0, in_three ? number0 : 6'd0, in_three ? number1 : 6'd0);
    if (shift) places[last] <= newest;
    if (later)
      newest <= '{time_: prolongs ? alone : complete_at, tokens: with_signals(same ? newest.tokens : '0, number0, number1)};
    if (later) last_of_all <= 1'b1;
    else if (prolongs) last_of_all <= 1'b0;
    if (prolongs) complete_at <= alone;
    if (reset) begin
      due_time <= 16'd2;
      first <= '0;
      last <= '0;
      count <= '0;
      kept <= 1'b0;
      given <= '0;
      fault <= 1'b0;
    end else begin
      due_time <= due_time + 16'd1;
      if (due && count != 0) first <= first + 1'b1;
      if (shift) last <= last + 1'b1;
      count <= count + {5'd0, shift} - {5'd0, due && count != 0};
      kept <= later || kept && !newest_due;
      if (shift && count == 6'(PLACES)) fault <= 1'b1;
      if (later && same && (newest.tokens[number0] >= 4'd14 || newest.tokens[number1] >= 4'd14)) fault <= 1'b1;
    end
  end
endmodule
