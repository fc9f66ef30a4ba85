// Instructions of one unit, in order. The front end knows when there is room.
module queue
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic push,
    input entry_t in,
    output logic valid,
    output entry_t head,
    input logic pop
);
  localparam int BITS = $clog2(MOST_QUEUED);
  entry_t entries[MOST_QUEUED];
  logic [BITS-1:0] first, last;
  logic [7:0] count;

  assign valid = count != 0;
  assign head = entries[first];

  always_ff @(posedge clock)
    if (reset) begin
      first <= '0;
      last <= '0;
      count <= '0;
    end else begin
      if (push) begin
        entries[last] <= in;
        last <= last == BITS'(MOST_QUEUED - 1) ? '0 : last + 1'b1;
      end
      if (pop) first <= first == BITS'(MOST_QUEUED - 1) ? '0 : first + 1'b1;
      count <= count + {7'd0, push} - {7'd0, pop};
    end
endmodule

// Results of one unit, retired in order: an instruction's tokens are given when it and all before it are complete.
// Those that retire in the same cycle share a place, so one place is served a cycle.
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
    input logic [31:0] now,
    output logic busy,
    output logic give,
    output tokens_t given,
    output logic fault
);
  localparam int PLACES = 32;
  typedef struct packed {
    logic [31:0] time_;
    tokens_t tokens;
  } place_t;
  place_t places[PLACES];
  logic [4:0] first, last;  // last: the newest
  logic [5:0] count;
  logic [31:0] latest, retire;
  logic served, immediate;

  assign busy = latest > now;
  assign retire = latest > now + 32'(latency) ? latest : now + 32'(latency);
  assign served = count != 0 && places[first].time_ == now + 1;
  assign immediate = start && retire == now + 1;
  assign give = served || immediate;

  always_comb begin
    given = served ? places[first].tokens : '0;
    if (immediate) given = with_signals(given, signal0, signal1);
  end

  always_ff @(posedge clock)
    if (reset) begin
      first <= '0;
      last <= '1;
      count <= '0;
      latest <= '0;
      fault <= 1'b0;
    end else begin
      if (start) latest <= retire;
      if (served) first <= first + 1'b1;
      if (start && !immediate && (signal0 != 0 || signal1 != 0)) begin
        if (count != 0 && places[last].time_ == retire) begin
          places[last].tokens <= with_signals(places[last].tokens, signal0, signal1);
          if (places[last].tokens[signal0] >= 4'd14 || places[last].tokens[signal1] >= 4'd14) fault <= 1'b1;
          count <= count - {5'd0, served};
        end else begin
          places[last+5'd1] <= '{time_: retire, tokens: with_signals('0, signal0, signal1)};
          last <= last + 1'b1;
          count <= count + 6'd1 - {5'd0, served};
          if (count == 6'(PLACES) && !served) fault <= 1'b1;
        end
      end else count <= count - {5'd0, served};
    end
endmodule
