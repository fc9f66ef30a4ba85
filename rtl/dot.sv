// Integer dot products of a row of activations with columns of weights, block by block: group g of a column carries the sum
// of the block that begins there. A cycle later.
module dots
  import tripath_pkg::*;
  import core_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic enable,
    input logic [2:0] block,
    input logic [MLEN-1:0][7:0] act,
    input logic [COUNT-1:0][MLEN-1:0][7:0] weight,
    output logic [COUNT-1:0][GROUPS-1:0][23:0] dot
);
  always_ff @(posedge clock)
    if (enable)
      for (int c = 0; c < COUNT; c++) begin
        logic signed [23:0] part[GROUPS];
        for (int group = 0; group < GROUPS; group++) begin
          part[group] = '0;
          for (int i = 0; i < 8; i++)
            part[group] = part[group] + 24'($signed(act[8*group+i]) * $signed(weight[c][8*group+i]));
        end
        dot[c][0] <= block == 3'd5 ? part[0] + part[1] + part[2] + part[3] : block == 3'd4 ? part[0] + part[1] : part[0];
        dot[c][1] <= part[1];
        dot[c][2] <= block == 3'd4 ? part[2] + part[3] : part[2];
        dot[c][3] <= part[3];
      end
endmodule
