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
    output logic [15:0] interval,
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
    end else begin
      logic stays, leaves;
      stays = push && !(refill && count == 0);
      leaves = refill && count != 0;
      if (stays) last <= last == BITS'(MOST_QUEUED - 1) ? '0 : last + 1'b1;
      if (leaves) first <= first == BITS'(MOST_QUEUED - 1) ? '0 : first + 1'b1;
      count <= count + {7'd0, stays} - {7'd0, leaves};
      follows <= refill ? count != 0 || push : 1'b1;
      valid <= move || valid && !pop;
    end
  end
endmodule

// Results of one unit, retired in order: an instruction's tokens are given when it and all before it are complete.
// What retires in the same cycle shares a place. What retires in two cycles or less passes by.
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
    output logic fault
);
  localparam int PLACES = 32;
  typedef struct packed {
    logic [15:0] time_;
    tokens_t tokens;
  } place_t;
  place_t places[PLACES];
  place_t newest, oldest;
  logic [4:0] first, last;
  logic [5:0] count;
  logic kept;  // there is a newest
  logic last_of_all;  // which retires when all that started is complete
  logic [15:0] tick, soon_tick;  // the present cycle, and two cycles later
  logic [15:0] complete_at, lead;  // when all that started is complete, and in how many cycles
  logic [15:0] alone;  // when this one is
  logic longer, signals, keep, soon, due, same, shift;

  assign busy = lead != 0;
  assign longer = latency > lead;
  assign alone = tick + latency;
  assign immediate = latency == 1 && lead <= 1;
  assign signals = signal0 != 0 || signal1 != 0;
  assign keep = start && signals && (latency > 2 || lead > 2);
  assign soon = start && latency <= 2 && lead <= 2 && !immediate;
  assign oldest = count != 0 ? places[first] : newest;
  assign due = (count != 0 || kept) && oldest.time_ == soon_tick;
  assign same = kept && last_of_all && !longer;
  assign shift = keep && kept && !same && !(count == 0 && newest.time_ == soon_tick);

  always_ff @(posedge clock) begin
    given <= with_signals(due ? oldest.tokens : '0, soon ? signal0 : 6'd0, soon ? signal1 : 6'd0);
    if (shift) places[last] <= newest;
    if (keep) newest <= '{time_: longer ? alone : complete_at, tokens: with_signals(same ? newest.tokens : '0, signal0, signal1)};
    if (keep) last_of_all <= 1'b1;
    else if (start && longer) last_of_all <= 1'b0;
    if (start && longer) complete_at <= alone;
    if (reset) begin
      tick <= '0;
      soon_tick <= 16'd2;
      lead <= '0;
      first <= '0;
      last <= '0;
      count <= '0;
      kept <= 1'b0;
      given <= '0;
      fault <= 1'b0;
    end else begin
      tick <= tick + 16'd1;
      soon_tick <= soon_tick + 16'd1;
      lead <= start && longer ? latency - 16'd1 : busy ? lead - 16'd1 : '0;
      if (due && count != 0) first <= first + 1'b1;
      if (shift) last <= last + 1'b1;
      count <= count + {5'd0, shift} - {5'd0, due && count != 0};
      kept <= keep || kept && !(count == 0 && newest.time_ == soon_tick);
      if (shift && count == 6'(PLACES)) fault <= 1'b1;
      if (keep && same && (newest.tokens[signal0] >= 4'd14 || newest.tokens[signal1] >= 4'd14)) fault <= 1'b1;
    end
  end
endmodule
