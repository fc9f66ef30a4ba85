// Address registers that step by themselves: each keeps its address, and how far each of its loops and its ring took it.
// Which of them a change meets is found in one cycle, they move in the next.
module address_steps
  import tripath_pkg::*;
  import core_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic reset,
    input logic [COUNT-1:0] mine,  // what is set is set here
    input logic set_base,
    input logic set_step,
    input logic set_rows,
    input logic set_ring,
    input logic next,  // loop `level` goes round, or leaves
    input logic advance,  // ring `ring` moves on, or starts again
    input logic [3:0] level,
    input logic [3:0] ring,
    // a cycle later
    input logic changed,  // any of the above
    input logic ends,  // the loop leaves, the ring starts again
    input logic [31:0] value,
    output logic [COUNT-1:0][31:0] address,
    output logic [COUNT-1:0][31:0] row_stride
);
  logic [COUNT-1:0] ringed, based, spaced, placed, turns;
  logic [COUNT-1:0][3:0] rings;
  logic [COUNT-1:0][SLOTS-1:0] used, stepped, moves;  // of `moves` and `turns` one at most
  logic [COUNT-1:0][SLOTS-1:0][3:0] levels;
  logic [COUNT-1:0][SLOTS-1:0][31:0] strides, moved;
  logic [COUNT-1:0][31:0] ring_stride, ring_moved;

  always_ff @(posedge clock) begin
    if (set_base || set_step || set_rows || set_ring || next || advance)
      for (int i = 0; i < COUNT; i++) begin
        logic found;
        found = 1'b0;
        based[i] <= set_base && mine[i];
        spaced[i] <= set_rows && mine[i];
        placed[i] <= set_ring && mine[i];
        turns[i] <= advance && ringed[i] && rings[i] == ring;
        for (int slot = 0; slot < SLOTS; slot++) begin
          moves[i][slot] <= next && used[i][slot] && levels[i][slot] == level;
          stepped[i][slot] <= 1'b0;
          if (set_step && mine[i] && !found && (!used[i][slot] || levels[i][slot] == level)) begin
            stepped[i][slot] <= 1'b1;
            used[i][slot] <= 1'b1;
            levels[i][slot] <= level;
            found = 1'b1;
          end
        end
        if (set_base && mine[i]) begin
          used[i] <= '0;
          ringed[i] <= 1'b0;
        end
        if (set_ring && mine[i]) begin
          ringed[i] <= 1'b1;
          rings[i] <= ring;
        end
      end
    if (reset) ringed <= '0;
  end

  always_ff @(posedge clock)
    if (changed)
      for (int i = 0; i < COUNT; i++) begin
        logic [31:0] stride, way, after;
        stride = {32{turns[i]}} & ring_stride[i];
        way = {32{turns[i]}} & ring_moved[i];
        for (int slot = 0; slot < SLOTS; slot++) begin
          stride |= {32{moves[i][slot]}} & strides[i][slot];
          way |= {32{moves[i][slot]}} & moved[i][slot];
        end
        after = ends ? 32'd0 : way + stride;
        if (based[i]) address[i] <= value;
        else if (turns[i] || moves[i] != 0) address[i] <= address[i] + (ends ? -way : stride);
        if (based[i]) row_stride[i] <= 32'd0;
        else if (spaced[i]) row_stride[i] <= value;
        if (placed[i]) ring_stride[i] <= value;
        if (placed[i]) ring_moved[i] <= 32'd0;
        else if (turns[i]) ring_moved[i] <= after;
        for (int slot = 0; slot < SLOTS; slot++) begin
          if (stepped[i][slot]) strides[i][slot] <= value;
          if (stepped[i][slot]) moved[i][slot] <= 32'd0;
          else if (moves[i][slot]) moved[i][slot] <= after;
        end
      end
endmodule

module address_registers
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input change_t change,
    input logic [PORTS-1:0][REGISTER_BITS-1:0] number,  // which are read, in the next cycle
    output logic [PORTS-1:0][31:0] address,
    output logic [1:0][31:0] row_stride
);
  localparam int BITS = $clog2(REGISTERS);
  logic [REGISTERS-1:0][31:0] addresses, rows;
  logic [REGISTERS-1:0] mine;
  logic [PORTS-1:0][BITS-1:0] chosen;
  logic changed, ends;
  logic [31:0] value;
  assign mine = REGISTERS'(1) << BITS'(change.number);
  always_ff @(posedge clock) begin
    changed <= !reset && (change.set_base || change.set_step || change.set_rows || change.set_ring || change.next || change.advance);
    ends <= change.ends;
    value <= change.value;
    for (int port = 0; port < PORTS; port++) chosen[port] <= BITS'(number[port]);
  end
  always_comb begin
    for (int port = 0; port < PORTS; port++) address[port] = addresses[chosen[port]];
    for (int port = 0; port < 2; port++) row_stride[port] = rows[chosen[port]];
  end
  address_steps #(
      .COUNT(REGISTERS)
  ) registers (
      .clock, .reset, .mine, .set_base(change.set_base), .set_step(change.set_step), .set_rows(change.set_rows),
      .set_ring(change.set_ring), .next(change.next), .advance(change.advance), .level(change.level),
      .ring(change.ring), .changed, .ends, .value, .address(addresses), .row_stride(rows)
  );
endmodule
