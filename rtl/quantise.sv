// MXINT8 or MXINT4 codes of BF16 and the scales of their blocks, a cycle later.
module quantisers #(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic enable,
    input logic narrow,  // MXINT4
    input logic [COUNT-1:0][15:0] x,
    input logic [COUNT-1:0][7:0] scale,
    output logic [COUNT-1:0][7:0] code
);
  always_ff @(posedge clock)
    if (enable) for (int i = 0; i < COUNT; i++) code[i] <= quantise_pkg::code_of(x[i], scale[i], narrow);
endmodule
