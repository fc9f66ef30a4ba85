// One lane of the vector unit, and the scalar unit: a result in FP32 five cycles after its operands, one every cycle.
// Sum, product, a sum of two products (RoPE), maximum, or a function of the tables.
module lane
  import float_pkg::*;
  import transcendental_pkg::*;
(
    input logic clock,
    input logic [4:0] enable,  // stage i works
    input lane_pkg::lane_op_t op,
    input logic [31:0] x,
    input logic [31:0] y,
    input logic [31:0] u,
    input logic [31:0] v,
    output logic [31:0] product,  // x y, after two cycles
    output logic [31:0] result
);
  import lane_pkg::*;
  lane_op_t op1, op2, op3, op4;
  logic [31:0] x1, y1, x2, y2, bypass3, bypass4;
  product_t first1, second1;
  logic [31:0] first2, second2;
  sum_t sum3;
  argument_t argument1;
  position_t position2;
  fixed_t fixed3;
  logic [31:0] sum4, table4;

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

  // Inputs are registers (of the SRAM); each stage ends in one.
  always_ff @(posedge clock) begin
    if (enable[0]) begin
      op1 <= op;
      x1 <= x;
      y1 <= op == LANE_MAX_ABS ? {1'b0, y[30:0]} : y;
      first1 <= product_multiply(x, y);
      if (op == LANE_ROPE_LOW || op == LANE_ROPE_HIGH) second1 <= product_multiply(u, v);
      if (op >= LANE_EXP) argument1 <= argument_of(function_of(op), x);
    end
    if (enable[1]) begin
      op2 <= op1;
      x2 <= op1 == LANE_MAX || op1 == LANE_MAX_ABS ? (greater(y1, x1) ? y1 : x1) : x1;
      y2 <= y1;
      first2 <= product_round(first1);
      if (op1 == LANE_ROPE_LOW || op1 == LANE_ROPE_HIGH) second2 <= product_round(second1);
      if (op1 >= LANE_EXP) position2 <= position_of(argument1);
    end
    if (enable[2]) begin
      op3 <= op2;
      bypass3 <= op2 == LANE_MULTIPLY ? first2 : x2;
      case (op2)
        LANE_ADD: sum3 <= sum_align(x2, y2);
        LANE_SUBTRACT: sum3 <= sum_align(x2, is_nan(y2) ? y2 : {!y2[31], y2[30:0]});
        LANE_ROPE_LOW: sum3 <= sum_align(first2, is_nan(second2) ? second2 : {!second2[31], second2[30:0]});
        LANE_ROPE_HIGH: sum3 <= sum_align(first2, second2);
        default: ;
      endcase
      if (op2 >= LANE_EXP) fixed3 <= interpolated(position2);
    end
    if (enable[3]) begin
      op4 <= op3;
      bypass4 <= bypass3;
      if (op3 <= LANE_ROPE_HIGH) sum4 <= sum_round(sum3);
      if (op3 >= LANE_EXP) table4 <= assembled(fixed3);
    end
    if (enable[4])
      if (op4 <= LANE_ROPE_HIGH) result <= sum4;
      else if (op4 >= LANE_EXP) result <= table4;
      else result <= bypass4;
  end
endmodule
