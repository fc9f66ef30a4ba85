// What blocks add to accumulators: integer dot products times the scales, weights first. Three cycles.
module terms
  import float_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic [2:0] enable,  // stage i works
    input logic [COUNT-1:0][23:0] dot,
    input logic [4:0] fraction,  // fractional bits of the dot products
    input logic [COUNT-1:0][7:0] weight_scale,
    input logic [COUNT-1:0][7:0] act_scale,
    input logic [COUNT-1:0] absent,  // of the last stage: add -0, which changes nothing
    output logic [COUNT-1:0][31:0] value
);
  logic [COUNT-1:0][31:0] number, weighted;
  logic [COUNT-1:0][7:0] weight_scale1, act_scale1, act_scale2;
  always_ff @(posedge clock) begin
    if (enable[0]) begin
      for (int i = 0; i < COUNT; i++) number[i] <= from_integer($signed(dot[i]), fraction);
      weight_scale1 <= weight_scale;
      act_scale1 <= act_scale;
    end
    if (enable[1]) begin
      for (int i = 0; i < COUNT; i++) weighted[i] <= scaled(number[i], $signed({1'b0, weight_scale1[i]}) - 9'sd127);
      act_scale2 <= act_scale1;
    end
    if (enable[2])
      for (int i = 0; i < COUNT; i++)
        if (absent[i]) value[i] <= 32'h80000000;
        else value[i] <= scaled(weighted[i], $signed({1'b0, act_scale2[i]}) - 9'sd127);
  end
endmodule
