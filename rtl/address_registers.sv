// Address registers that step by themselves: each keeps its address, and how far each of its loops and its ring took it.
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
  logic [REGISTERS-1:0][31:0] addresses, rows, ring_strides, ring_moved;
  logic [REGISTERS-1:0] ringed;
  logic [REGISTERS-1:0][3:0] rings;
  logic [REGISTERS-1:0][SLOTS-1:0] used;
  logic [REGISTERS-1:0][SLOTS-1:0][3:0] levels;
  logic [REGISTERS-1:0][SLOTS-1:0][31:0] strides, moved;

  always_comb begin
    for (int port = 0; port < PORTS; port++) address[port] = addresses[BITS'(read_number[port])];
    for (int port = 0; port < 2; port++) row_stride[port] = rows[BITS'(read_number[port])];
  end

  always_ff @(posedge clock) begin
    if (reset) ringed <= '0;
    if (set_base) begin
      addresses[BITS'(number)] <= value;
      rows[BITS'(number)] <= 32'd0;
      used[BITS'(number)] <= '0;
      ringed[BITS'(number)] <= 1'b0;
    end
    if (set_step) begin
      logic placed;
      placed = 1'b0;
      for (int slot = 0; slot < SLOTS; slot++)
        if (!placed && (!used[BITS'(number)][slot] || levels[BITS'(number)][slot] == level)) begin
          used[BITS'(number)][slot] <= 1'b1;
          levels[BITS'(number)][slot] <= level;
          strides[BITS'(number)][slot] <= value;
          moved[BITS'(number)][slot] <= 32'd0;
          placed = 1'b1;
        end
    end
    if (set_rows) rows[BITS'(number)] <= value;
    if (set_ring) begin
      ringed[BITS'(number)] <= 1'b1;
      rings[BITS'(number)] <= ring;
      ring_strides[BITS'(number)] <= value;
      ring_moved[BITS'(number)] <= 32'd0;
    end
    if (next)
      for (int i = 0; i < REGISTERS; i++)
        for (int slot = 0; slot < SLOTS; slot++)
          if (used[i][slot] && levels[i][slot] == next_level) begin
            addresses[i] <= leave ? addresses[i] - moved[i][slot] : addresses[i] + strides[i][slot];
            moved[i][slot] <= leave ? 32'd0 : moved[i][slot] + strides[i][slot];
          end
    if (advance)
      for (int i = 0; i < REGISTERS; i++)
        if (ringed[i] && rings[i] == advance_ring) begin
          addresses[i] <= wrap ? addresses[i] - ring_moved[i] : addresses[i] + ring_strides[i];
          ring_moved[i] <= wrap ? 32'd0 : ring_moved[i] + ring_strides[i];
        end
  end
endmodule
