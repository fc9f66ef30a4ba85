// exp, 2^x, log2, 1/x, 1/sqrt(x) as tables with interpolation (docs/numerics.md), in four steps with a register between them.
package transcendental_pkg;
  import tripath_pkg::*;
  import float_pkg::*;

  typedef enum logic [2:0] {EXP, EXP2, LOG2, RECIPROCAL, RSQRT} function_t;

  typedef struct packed {
    function_t what;
    logic special;
    logic [31:0] value;
    logic [31:0] x;
    logic [56:0] fixed;  // x log2(e) or x, not yet shifted
  } argument_t;

  typedef struct packed {
    function_t what;
    logic special;
    logic [31:0] value;
    logic sign;
    logic odd;
    logic signed [10:0] exponent;
    logic [7:0] place;
    logic [23:0] rest;
  } position_t;

  typedef struct packed {
    logic special;
    logic [31:0] value;
    logic sign;
    logic signed [10:0] exponent;
    logic [38:0] fixed;  // 30 fractional bits
  } fixed_t;

  // Step 1: what needs no table; x times log2(e).
  function automatic argument_t argument_of(input function_t what, input logic [31:0] x);
    logic [23:0] significand;
    logic tiny;
    argument_t a;
    significand = {1'b1, x[22:0]};
    tiny = x[30:23] < 8'd97;
    a.what = what;
    a.x = x;
    a.fixed = what == EXP ? 57'(significand) * 57'd6196328018 : {1'b0, significand, 32'd0};
    a.special = 1'b1;
    a.value = quiet(x);
    case (what)
      EXP, EXP2:
        if (is_nan(x)) a.value = quiet(x);
        else if (!x[31] && (what == EXP ? x[30:0] > 31'h42b20000 : x[30:0] >= 31'h43000000)) a.value = INFINITY;
        else if (x[31] && x[30:0] > (what == EXP ? 31'h42b00000 : 31'h42fc0000)) a.value = 32'd0;
        else if (tiny) a.value = 32'h3f800000;
        else a.special = 1'b0;
      LOG2:
        if (x[30:23] == 0) a.value = 32'hc2fe0000;
        else if (is_nan(x)) a.value = quiet(x);
        else if (x[31]) a.value = NAN;
        else if (x[30:23] == 8'hff) a.value = x;
        else a.special = 1'b0;
      RECIPROCAL:
        if (is_nan(x)) a.value = quiet(x);
        else if (x[30:23] == 8'hff) a.value = {x[31], 31'd0};
        else if (x[30:23] == 0) a.value = {x[31], INFINITY[30:0]};
        else a.special = 1'b0;
      default:
        if (x[30:23] == 0) a.value = INFINITY;
        else if (is_nan(x)) a.value = quiet(x);
        else if (x[31]) a.value = NAN;
        else if (x[30:23] == 8'hff) a.value = 32'd0;
        else a.special = 1'b0;
    endcase
    argument_of = a;
  endfunction

  // Step 2: exponent and place in the table.
  function automatic position_t position_of(input argument_t a);
    logic [39:0] magnitude;
    logic signed [40:0] y;
    logic signed [10:0] unbiased;
    position_t p;
    magnitude = 40'(a.fixed >> (8'd150 - a.x[30:23]));
    y = a.x[31] ? -$signed({1'b0, magnitude}) : $signed({1'b0, magnitude});
    unbiased = $signed({3'd0, a.x[30:23]}) - 11'sd127;
    p.what = a.what;
    p.special = a.special;
    p.value = a.value;
    p.sign = a.what == RECIPROCAL && a.x[31];
    p.odd = unbiased[0];
    p.place = a.x[22:15];
    p.rest = {a.x[14:0], 9'd0};
    case (a.what)
      EXP, EXP2: begin
        p.exponent = 11'(y >>> 32);
        p.place = y[31:24];
        p.rest = y[23:0];
      end
      LOG2: p.exponent = unbiased;
      RECIPROCAL: p.exponent = -unbiased;
      default: p.exponent = -((unbiased - $signed({10'd0, unbiased[0]})) >>> 1);
    endcase
    position_of = p;
  endfunction

  // Step 3: interpolate.
  function automatic fixed_t interpolated(input position_t p);
    logic [31:0] low, high;
    logic signed [32:0] difference;
    logic signed [56:0] part;
    logic signed [40:0] total;
    logic [8:0] next;
    next = {1'b0, p.place} + 9'd1;
    case (p.what)
      EXP, EXP2: begin
        low = ROM_EXP2[{1'b0, p.place}];
        high = ROM_EXP2[next];
      end
      LOG2: begin
        low = ROM_LOG2[{1'b0, p.place}];
        high = ROM_LOG2[next];
      end
      RECIPROCAL: begin
        low = ROM_RECIPROCAL[{1'b0, p.place}];
        high = ROM_RECIPROCAL[next];
      end
      default: begin
        low = p.odd ? ROM_RSQRT_ODD[{1'b0, p.place}] : ROM_RSQRT_EVEN[{1'b0, p.place}];
        high = p.odd ? ROM_RSQRT_ODD[next] : ROM_RSQRT_EVEN[next];
      end
    endcase
    difference = $signed({1'b0, high}) - $signed({1'b0, low});
    part = 57'(difference) * $signed({33'd0, p.rest});
    total = $signed({9'd0, low}) + 41'(part >>> 24);
    if (p.what == LOG2) total = total + $signed({p.exponent, 30'd0});
    interpolated.special = p.special || total == 0;
    interpolated.value = p.special ? p.value : 32'd0;
    interpolated.sign = p.sign || total < 0;
    interpolated.exponent = p.what == LOG2 ? 11'sd0 : p.exponent;
    interpolated.fixed = 39'(total < 0 ? -total : total);
  endfunction

  // Step 4: to FP32, truncated; below 2^-126 zero.
  function automatic logic [31:0] assembled(input fixed_t f);
    logic [5:0] zeros;
    logic [38:0] m;
    logic signed [10:0] exponent;
    zeros = leading_zeros({f.fixed, 9'd0});
    m = f.fixed << zeros;
    exponent = f.exponent + 11'sd8 - $signed({5'd0, zeros});
    if (f.special) assembled = f.value;
    else if (exponent < -11'sd126) assembled = {f.sign, 31'd0};
    else if (exponent > 11'sd127) assembled = {f.sign, INFINITY[30:0]};
    else assembled = {f.sign, 8'(exponent + 11'sd127), m[37:15]};
  endfunction
endpackage
