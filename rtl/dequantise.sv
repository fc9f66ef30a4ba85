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
  always_ff @(posedge clock)
    if (enable)
      for (int i = 0; i < COUNT; i++)
        value[i] <= to_bf16(scaled(from_integer(24'($signed(code[i])), narrow ? 5'd2 : 5'd6),
                                   $signed({1'b0, scale}) - 9'sd127));
endmodule
