// Sums in FP32, each two cycles after its operands.
module adders
  import float_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic [COUNT-1:0][1:0] enable,  // stage i works
    input logic [COUNT-1:0][31:0] a,
    input logic [COUNT-1:0][31:0] b,
    output logic [COUNT-1:0][31:0] sum
);
  sum_t [COUNT-1:0] aligned;
  always_ff @(posedge clock)
    for (int i = 0; i < COUNT; i++) begin
      if (enable[i][0]) aligned[i] <= sum_align(a[i], b[i]);
      if (enable[i][1]) sum[i] <= sum_normalise(sum_add(aligned[i]));
    end
endmodule
