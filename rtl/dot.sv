// Integer dot products of a row of activations with columns of weights, block by block: group g of a column carries the sum
// of the block that begins there. Two cycles: products and sums of four, then sums of blocks.
module dots
  import tripath_pkg::*;
  import core_pkg::*;
#(
    parameter int COUNT = 1,
    parameter int BITS = 8  // of a code
) (
    input logic clock,
    input logic [1:0] enable,  // stage i works
    input logic [2:0] block,  // of the second stage
    input logic [MLEN-1:0][BITS-1:0] act,
    input logic [COUNT-1:0][MLEN-1:0][BITS-1:0] weight,
    output logic [COUNT-1:0][GROUPS-1:0][23:0] dot
);
  logic signed [17:0] four[COUNT][2*GROUPS];
  always_ff @(posedge clock) begin
    if (enable[0])
      for (int c = 0; c < COUNT; c++)
        for (int quarter = 0; quarter < 2 * GROUPS; quarter++) begin
          logic signed [17:0] part;
          part = '0;
          for (int i = 0; i < 4; i++)
            part = part + 18'($signed(act[4*quarter+i]) * $signed(weight[c][4*quarter+i]));
          four[c][quarter] <= part;
        end
    if (enable[1])
      for (int c = 0; c < COUNT; c++) begin
        logic signed [23:0] part[GROUPS];
        for (int group = 0; group < GROUPS; group++) part[group] = 24'(four[c][2*group]) + 24'(four[c][2*group+1]);
        dot[c][0] <= block == 3'd5 ? (part[0] + part[1]) + (part[2] + part[3]) : block == 3'd4 ? part[0] + part[1] : part[0];
        dot[c][1] <= part[1];
        dot[c][2] <= block == 3'd4 ? part[2] + part[3] : part[2];
        dot[c][3] <= part[3];
      end
  end
endmodule
