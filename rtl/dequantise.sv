// BF16 of MXINT8 or MXINT4 codes and their scale, a cycle later.
module dequantisers
  import float_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic enable,
    input logic narrow,  // MXINT4
    input logic [COUNT-1:0][7:0] code,
    input logic [7:0] scale,
    output logic [COUNT-1:0][15:0] value
);
  // A code has no more digits than BF16, and its last one is never below the last of a subnormal: nothing is rounded.
  function automatic logic [15:0] value_of(input logic signed [7:0] x, input logic signed [8:0] e);
    number_t number;
    logic [31:0] single;
    number.sign = x < 0;
    number.exponent = narrow ? 11'sd148 : 11'sd144;
    number.significand = {16'd0, x < 0 ? -x : x};
    single = to_fp32(scaled_up(number, e));
    value_of = single[31:16];
  endfunction
  always_ff @(posedge clock)
    if (enable) for (int i = 0; i < COUNT; i++) value[i] <= value_of($signed(code[i]), $signed({1'b0, scale}) - 9'sd127);
endmodule
