// Lanes of the vector unit, or the scalar unit: results in FP32 eight cycles after their operands, every cycle.
// Sum, product, a sum of two products (RoPE), maximum, or a function of the tables. Products take the stages 1 to 4, sums 5
// to 7; what needs neither passes through them. The tables take all eight.
module lanes
  import float_pkg::*;
  import transcendental_pkg::*;
  import lane_pkg::*;
#(
    parameter int COUNT = 1
) (
    input logic clock,
    input logic [7:0] enable,  // stage i works
    input lane_op_t op,
    input logic [COUNT-1:0] high,  // RoPE: the sum, not the difference
    input logic [COUNT-1:0][31:0] x,
    input logic [COUNT-1:0][31:0] y,
    input logic [COUNT-1:0][31:0] u,
    input logic [COUNT-1:0][31:0] v,
    output logic [COUNT-1:0][31:0] product,  // x y, after four cycles
    output logic [COUNT-1:0][31:0] result
);
  lane_op_t ops[1:7];
  halves_t [COUNT-1:0] first1, second1;
  product_t [COUNT-1:0] first2, second2, first3, second3;
  logic [COUNT-1:0][31:0] first4, second4, single7;
  sum_t [COUNT-1:0] sum5;
  added_t [COUNT-1:0] sum6;
  argument_t [COUNT-1:0] argument1;
  fixed_t [COUNT-1:0] fixed2;
  position_t [COUNT-1:0] position3;
  line_t [COUNT-1:0] line4;
  parts_t [COUNT-1:0] parts5;
  total_t [COUNT-1:0] total6;
  magnitude_t [COUNT-1:0] magnitude7;

  assign product = first4;

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
  function automatic logic [31:0] absolute(input logic [31:0] number);
    absolute = {1'b0, number[30:0]};
  endfunction
  // What takes the place of the first product, and of the second.
  function automatic halves_t first_of(input lane_op_t what, input logic [31:0] a, input logic [31:0] b);
    case (what)
      LANE_MULTIPLY, LANE_ROPE: first_of = product_halves(a, b);
      LANE_MAX: first_of = product_pass(greater(b, a) ? b : a);
      LANE_MAX_ABS: first_of = product_pass(greater(absolute(b), a) ? absolute(b) : a);
      LANE_ADD, LANE_SUBTRACT: first_of = product_pass(a);
      default: first_of = product_pass(special_of(function_of(what), a));
    endcase
  endfunction
  function automatic halves_t second_of(input lane_op_t what, input logic add, input logic [31:0] b, input logic [31:0] c,
                                        input logic [31:0] d);
    if (what == LANE_ROPE) begin
      second_of = product_halves(c, d);
      second_of.sign = second_of.sign ^ !add;
      second_of.value = add ? second_of.value : negated(second_of.value);
    end else second_of = product_pass(what == LANE_SUBTRACT ? negated(b) : b);
  endfunction

  // Inputs are registers (of the SRAM); each stage ends in one.
  always_ff @(posedge clock) begin
    if (enable[0]) ops[1] <= op;
    for (int i = 2; i <= 7; i++) if (enable[i-1]) ops[i] <= ops[i-1];
    for (int i = 0; i < COUNT; i++) begin
      if (enable[0]) first1[i] <= first_of(op, x[i], y[i]);
      if (enable[1]) first2[i] <= product_join(first1[i]);
      if (enable[2]) first3[i] <= product_move(first2[i]);
      if (enable[3]) first4[i] <= product_round(first3[i]);
      if (enable[0] && op <= LANE_ROPE) second1[i] <= second_of(op, high[i], y[i], u[i], v[i]);
      if (enable[1] && ops[1] <= LANE_ROPE) second2[i] <= product_join(second1[i]);
      if (enable[2] && ops[2] <= LANE_ROPE) second3[i] <= product_move(second2[i]);
      if (enable[3] && ops[3] <= LANE_ROPE) second4[i] <= product_round(second3[i]);
      if (enable[4]) sum5[i] <= ops[4] <= LANE_ROPE ? sum_align(first4[i], second4[i]) : sum_pass(first4[i]);
      if (enable[5]) sum6[i] <= sum_add(sum5[i]);
      if (enable[6]) single7[i] <= sum_normalise(sum6[i]);
      if (enable[0] && op >= LANE_EXP) argument1[i] <= argument_of(function_of(op), x[i]);
      if (enable[1] && ops[1] >= LANE_EXP) fixed2[i] <= fixed_of(argument1[i]);
      if (enable[2] && ops[2] >= LANE_EXP) position3[i] <= position_of(fixed2[i]);
      if (enable[3] && ops[3] >= LANE_EXP) line4[i] <= line_of(position3[i]);
      if (enable[4] && ops[4] >= LANE_EXP) parts5[i] <= parts_of(line4[i]);
      if (enable[5] && ops[5] >= LANE_EXP) total6[i] <= total_of(parts5[i]);
      if (enable[6] && ops[6] >= LANE_EXP) magnitude7[i] <= magnitude_of(total6[i]);
      if (enable[7])
        result[i] <= ops[7] >= LANE_EXP && !magnitude7[i].special ? assembled(magnitude7[i]) : single7[i];
    end
  end
endmodule
