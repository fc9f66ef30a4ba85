// Lanes of the vector unit, or the scalar unit: results in FP32 five cycles after their operands, every cycle.
// Sum, product, a sum of two products (RoPE), maximum, or a function of the tables.
module lanes
  import float_pkg::*;
  import transcendental_pkg::*;
  import lane_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic [4:0] enable,  // stage i works
    input lane_op_t op,
    input logic [COUNT-1:0] high,  // RoPE: the sum, not the difference
    input logic [COUNT-1:0][31:0] x,
    input logic [COUNT-1:0][31:0] y,
    input logic [COUNT-1:0][31:0] u,
    input logic [COUNT-1:0][31:0] v,
    output logic [COUNT-1:0][31:0] product,  // x y, after two cycles
    output logic [COUNT-1:0][31:0] result
);
  lane_op_t op1, op2, op3, op4;
  logic [COUNT-1:0] high1, high2;
  logic [COUNT-1:0][31:0] x1, y1, x2, y2, bypass3, bypass4, first2, second2, sum4, table4;
  product_t [COUNT-1:0] first1, second1;
  sum_t [COUNT-1:0] sum3;
  argument_t [COUNT-1:0] argument1;
  position_t [COUNT-1:0] position2;
  fixed_t [COUNT-1:0] fixed3;

  assign product = first2;

  function automatic function_t function_of(input lane_op_t what);
    case (what)
      LANE_EXP: function_of = EXP;
      LANE_EXP2: function_of = EXP2;
      LANE_LOG2: function_of = LOG2;
      LANE_RECIPROCAL: function_of = RECIPROCAL;
      default: function_of = RSQRT;
    endcase
  endfunction
  function automatic logic [31:0] negated(input logic [31:0] number);
    negated = is_nan(number) ? number : {!number[31], number[30:0]};
  endfunction

  // Inputs are registers (of the SRAM); each stage ends in one.
  always_ff @(posedge clock) begin
    if (enable[0]) begin
      op1 <= op;
      high1 <= high;
      x1 <= x;
      y1 <= y;
      if (op == LANE_MULTIPLY || op == LANE_ROPE)
        for (int i = 0; i < COUNT; i++) first1[i] <= product_multiply(x[i], y[i]);
      if (op == LANE_ROPE) for (int i = 0; i < COUNT; i++) second1[i] <= product_multiply(u[i], v[i]);
      if (op >= LANE_EXP) for (int i = 0; i < COUNT; i++) argument1[i] <= argument_of(function_of(op), x[i]);
    end
    if (enable[1]) begin
      op2 <= op1;
      high2 <= high1;
      x2 <= x1;
      y2 <= y1;
      if (op1 == LANE_MAX) for (int i = 0; i < COUNT; i++) if (greater(y1[i], x1[i])) x2[i] <= y1[i];
      if (op1 == LANE_MAX_ABS)
        for (int i = 0; i < COUNT; i++)
          if (greater({1'b0, y1[i][30:0]}, x1[i])) x2[i] <= {1'b0, y1[i][30:0]};
      if (op1 == LANE_MULTIPLY || op1 == LANE_ROPE)
        for (int i = 0; i < COUNT; i++) first2[i] <= product_round(first1[i]);
      if (op1 == LANE_ROPE) for (int i = 0; i < COUNT; i++) second2[i] <= product_round(second1[i]);
      if (op1 >= LANE_EXP) for (int i = 0; i < COUNT; i++) position2[i] <= position_of(argument1[i]);
    end
    if (enable[2]) begin
      op3 <= op2;
      bypass3 <= op2 == LANE_MULTIPLY ? first2 : x2;
      if (op2 <= LANE_ROPE)
        for (int i = 0; i < COUNT; i++)
          sum3[i] <= sum_align(
              op2 == LANE_ROPE ? first2[i] : x2[i],
              op2 == LANE_ADD ? y2[i] : op2 == LANE_SUBTRACT ? negated(y2[i]) : high2[i] ? second2[i] :
              negated(second2[i]));
      if (op2 >= LANE_EXP) for (int i = 0; i < COUNT; i++) fixed3[i] <= interpolated(position2[i]);
    end
    if (enable[3]) begin
      op4 <= op3;
      bypass4 <= bypass3;
      if (op3 <= LANE_ROPE) for (int i = 0; i < COUNT; i++) sum4[i] <= sum_round(sum3[i]);
      if (op3 >= LANE_EXP) for (int i = 0; i < COUNT; i++) table4[i] <= assembled(fixed3[i]);
    end
    if (enable[4])
      if (op4 <= LANE_ROPE) result <= sum4;
      else if (op4 >= LANE_EXP) result <= table4;
      else result <= bypass4;
  end
endmodule
