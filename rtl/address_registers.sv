// Address registers that step by themselves: each keeps its address, and how far each of its loops and its ring took it.
module address_steps
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
    input logic [3:0] level,
    input logic [3:0] ring,
    input logic [31:0] value,
    input logic next,  // loop `next_level` goes round, or leaves
    input logic leave,
    input logic [3:0] next_level,
    input logic advance,  // ring `advance_ring` moves on, or starts again
    input logic wrap,
    input logic [3:0] advance_ring,
    output logic [COUNT-1:0][31:0] address,
    output logic [COUNT-1:0][31:0] row_stride
);
  logic [COUNT-1:0] ringed;
  logic [COUNT-1:0][3:0] rings;
  logic [COUNT-1:0][SLOTS-1:0] used;
  logic [COUNT-1:0][SLOTS-1:0][3:0] levels;
  logic [COUNT-1:0][SLOTS-1:0][31:0] strides, moved;
  logic [COUNT-1:0][31:0] ring_stride, ring_moved;

  always_ff @(posedge clock) begin
    if (reset) ringed <= '0;
    if (set_base || set_step || set_rows || set_ring)
      for (int i = 0; i < COUNT; i++)
        if (mine[i]) begin
          logic placed;
          placed = 1'b0;
          if (set_base) begin
            address[i] <= value;
            row_stride[i] <= 32'd0;
            used[i] <= '0;
            ringed[i] <= 1'b0;
          end
          if (set_rows) row_stride[i] <= value;
          if (set_ring) begin
            ringed[i] <= 1'b1;
            rings[i] <= ring;
            ring_stride[i] <= value;
            ring_moved[i] <= 32'd0;
          end
          if (set_step)
            for (int slot = 0; slot < SLOTS; slot++)
              if (!placed && (!used[i][slot] || levels[i][slot] == level)) begin
                used[i][slot] <= 1'b1;
                levels[i][slot] <= level;
                strides[i][slot] <= value;
                moved[i][slot] <= 32'd0;
                placed = 1'b1;
              end
        end
    if (next || advance)
      for (int i = 0; i < COUNT; i++) begin
        logic [SLOTS-1:0] moves;  // one at most
        logic [31:0] stride, way;
        stride = ring_stride[i];
        way = ring_moved[i];
        for (int slot = 0; slot < SLOTS; slot++) begin
          moves[slot] = next && used[i][slot] && levels[i][slot] == next_level;
          if (moves[slot]) begin
            stride = strides[i][slot];
            way = moved[i][slot];
          end
        end
        if (moves != 0 || advance && ringed[i] && rings[i] == advance_ring) begin
          address[i] <= address[i] + ((next ? leave : wrap) ? -way : stride);
          way = (next ? leave : wrap) ? 32'd0 : way + stride;
          for (int slot = 0; slot < SLOTS; slot++) if (moves[slot]) moved[i][slot] <= way;
          if (advance) ring_moved[i] <= way;
        end
      end
  end
endmodule

module address_registers
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic set_base,
    input logic set_step,
    input logic set_rows,
    input logic set_ring,
    input logic [8:0] number,
    input logic [3:0] level,
    input logic [3:0] ring,
    input logic [31:0] value,
    input logic next,  // loop `next_level` goes round, or leaves
    input logic leave,
    input logic [3:0] next_level,
    input logic advance,  // ring `advance_ring` moves on, or starts again
    input logic wrap,
    input logic [3:0] advance_ring,
    input logic [PORTS-1:0][8:0] read_number,
    output logic [PORTS-1:0][31:0] address,
    output logic [1:0][31:0] row_stride
);
  localparam int BITS = $clog2(REGISTERS);
  logic [REGISTERS-1:0][31:0] addresses, rows;
  always_comb begin
    for (int port = 0; port < PORTS; port++) address[port] = addresses[BITS'(read_number[port])];
    for (int port = 0; port < 2; port++) row_stride[port] = rows[BITS'(read_number[port])];
  end
  logic [REGISTERS-1:0] mine;
  assign mine = REGISTERS'(1) << BITS'(number);
  address_steps #(
      .COUNT(REGISTERS)
  ) registers (
      .clock, .reset, .mine, .set_base, .set_step, .set_rows, .set_ring, .level, .ring, .value, .next, .leave,
      .next_level, .advance, .wrap, .advance_ring, .address(addresses), .row_stride(rows)
  );
endmodule
