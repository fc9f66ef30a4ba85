// What blocks add to accumulators: integer dot products times the scales, weights first. Five cycles: to a number, and two
// for each scale.
module terms
  import float_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic [4:0] enable,  // stage i works
    input logic [COUNT-1:0][23:0] dot,
    input logic [4:0] fraction,  // fractional bits of the dot products
    input logic [COUNT-1:0][7:0] weight_scale,
    input logic [COUNT-1:0][7:0] act_scale,
    input logic [COUNT-1:0] absent,  // of the last stage: add -0, which changes nothing
    output logic [COUNT-1:0][31:0] value
);
  number_t [COUNT-1:0] number1, number2, number3, number4;
  logic [COUNT-1:0][7:0] weight_scale1, weight_scale2, act_scale1, act_scale2, act_scale3, act_scale4;
  function automatic logic signed [8:0] exponent_of(input logic [7:0] scale);
    exponent_of = $signed({1'b0, scale}) - 9'sd127;
  endfunction
  always_ff @(posedge clock) begin
    if (enable[0]) begin
      for (int i = 0; i < COUNT; i++) number1[i] <= from_integer($signed(dot[i]), fraction);
      weight_scale1 <= weight_scale;
      act_scale1 <= act_scale;
    end
    if (enable[1]) begin
      for (int i = 0; i < COUNT; i++) number2[i] <= scale_first(number1[i], exponent_of(weight_scale1[i]));
      weight_scale2 <= weight_scale1;
      act_scale2 <= act_scale1;
    end
    if (enable[2]) begin
      for (int i = 0; i < COUNT; i++) number3[i] <= scale_second(number2[i], exponent_of(weight_scale2[i]));
      act_scale3 <= act_scale2;
    end
    if (enable[3]) begin
      for (int i = 0; i < COUNT; i++) number4[i] <= scale_first(number3[i], exponent_of(act_scale3[i]));
      act_scale4 <= act_scale3;
    end
    if (enable[4])
      for (int i = 0; i < COUNT; i++)
        value[i] <= absent[i] ? 32'h80000000 : to_fp32(scale_second(number4[i], exponent_of(act_scale4[i])));
  end
endmodule
