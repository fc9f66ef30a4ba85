// exp, 2^x, log2, 1/x, 1/sqrt(x) as tables with interpolation (docs/numerics.md), in eight steps with a register between them.
package transcendental_pkg;
  import tripath_pkg::*;
  import float_pkg::*;

  typedef enum logic [2:0] {EXP, EXP2, LOG2, RECIPROCAL, RSQRT} function_t;

  // The line through two entries of a table that a number lies on, and how its value becomes FP32.
  typedef struct packed {
    logic is_log;
    logic special;  // the value needs no table
    logic sign;
    logic signed [10:0] exponent;
  } kind_t;

  typedef struct packed {
    function_t what;
    logic special;
    logic [31:0] x;
    logic [40:0] low;  // x log2(e) or x, not yet shifted: low + high 2^17
    logic [39:0] high;
  } argument_t;

  typedef struct packed {
    function_t what;
    logic special;
    logic [31:0] x;
    logic [5:0] down;
    logic [39:0] fixed;  // without the 17 lowest bits: all arguments that need a table move right by more
  } fixed_t;

  typedef struct packed {
    kind_t kind;
    function_t what;
    logic odd;
    logic [7:0] place;
    logic [23:0] rest;
  } position_t;

  typedef struct packed {
    kind_t kind;
    logic [31:0] from;
    logic signed [23:0] step;  // to the next entry
    logic [23:0] rest;
  } line_t;

  typedef struct packed {
    kind_t kind;
    logic signed [40:0] from;
    logic signed [36:0] low;
    logic signed [36:0] high;
  } parts_t;

  typedef struct packed {
    kind_t kind;
    logic signed [40:0] total;  // 30 fractional bits
  } total_t;

  typedef struct packed {
    logic special;
    logic sign;
    logic signed [10:0] exponent;
    logic [5:0] zeros;
    logic [38:0] magnitude;
  } magnitude_t;

  // Whether a number needs no table, and its function then.
  function automatic logic is_special(input function_t what, input logic [31:0] x);
    logic positive;
    positive = !x[31] && (what == EXP ? x[30:0] > 31'h42b20000 : x[30:0] >= 31'h43000000);
    case (what)
      EXP, EXP2:
      is_special = x[30:23] == 8'hff || positive || x[31] && x[30:0] > (what == EXP ? 31'h42b00000 : 31'h42fc0000) ||
          x[30:23] < 8'd97;
      RECIPROCAL: is_special = x[30:23] == 8'hff || x[30:23] == 0;
      default: is_special = x[31] || x[30:23] == 8'hff || x[30:23] == 0;
    endcase
  endfunction

  function automatic logic [31:0] special_of(input function_t what, input logic [31:0] x);
    case (what)
      EXP, EXP2:
      if (is_nan(x)) special_of = quiet(x);
      else if (x[30:23] < 8'd97) special_of = 32'h3f800000;
      else special_of = x[31] ? 32'd0 : INFINITY;
      LOG2:
      if (x[30:23] == 0) special_of = 32'hc2fe0000;
      else if (is_nan(x)) special_of = quiet(x);
      else special_of = x[31] ? NAN : x;
      RECIPROCAL:
      if (is_nan(x)) special_of = quiet(x);
      else special_of = {x[31], x[30:23] == 0 ? INFINITY[30:0] : 31'd0};
      default:
      if (x[30:23] == 0) special_of = INFINITY;
      else if (is_nan(x)) special_of = quiet(x);
      else special_of = x[31] ? NAN : 32'd0;
    endcase
  endfunction

  // Step 1: x times log2(e), by 17 and by 16 bits of that.
  function automatic argument_t argument_of(input function_t what, input logic [31:0] x);
    logic [23:0] significand;
    significand = {1'b1, x[22:0]};
    argument_of.what = what;
    argument_of.special = is_special(what, x);
    argument_of.x = x;
    argument_of.low = what == EXP ? 41'(significand) * 41'(33'd6196328018 % 33'd131072) : 41'd0;
    argument_of.high = what == EXP ? 40'(significand) * 40'(33'd6196328018 >> 17) : {1'b0, significand, 15'd0};
  endfunction

  // Step 2: the halves together.
  function automatic fixed_t fixed_of(input argument_t a);
    fixed_of.what = a.what;
    fixed_of.special = a.special;
    fixed_of.x = a.x;
    fixed_of.down = 6'(8'd133 - a.x[30:23]);
    fixed_of.fixed = {16'd0, a.low[40:17]} + a.high;
  endfunction

  // Step 3: exponent and place in the table.
  function automatic position_t position_of(input fixed_t f);
    logic [39:0] magnitude;
    logic signed [40:0] y;
    logic signed [10:0] unbiased;
    position_t p;
    magnitude = f.fixed >> f.down;
    y = f.x[31] ? -$signed({1'b0, magnitude}) : $signed({1'b0, magnitude});
    unbiased = $signed({3'd0, f.x[30:23]}) - 11'sd127;
    p.what = f.what;
    p.kind.is_log = f.what == LOG2;
    p.kind.special = f.special;
    p.kind.sign = f.what == RECIPROCAL && f.x[31];
    p.odd = unbiased[0];
    p.place = f.x[22:15];
    p.rest = {f.x[14:0], 9'd0};
    case (f.what)
      EXP, EXP2: begin
        p.kind.exponent = 11'(y >>> 32);
        p.place = y[31:24];
        p.rest = y[23:0];
      end
      LOG2: p.kind.exponent = unbiased;
      RECIPROCAL: p.kind.exponent = -unbiased;
      default: p.kind.exponent = -((unbiased - $signed({10'd0, unbiased[0]})) >>> 1);
    endcase
    position_of = p;
  endfunction

  // Step 4: look up.
  function automatic line_t line_of(input position_t p);
    line_of.kind = p.kind;
    line_of.rest = p.rest;
    case (p.what)
      EXP, EXP2: begin
        line_of.from = ROM_EXP2[p.place];
        line_of.step = STEP_EXP2[p.place];
      end
      LOG2: begin
        line_of.from = ROM_LOG2[p.place];
        line_of.step = STEP_LOG2[p.place];
      end
      RECIPROCAL: begin
        line_of.from = ROM_RECIPROCAL[p.place];
        line_of.step = STEP_RECIPROCAL[p.place];
      end
      default: begin
        line_of.from = p.odd ? ROM_RSQRT_ODD[p.place] : ROM_RSQRT_EVEN[p.place];
        line_of.step = p.odd ? STEP_RSQRT_ODD[p.place] : STEP_RSQRT_EVEN[p.place];
      end
    endcase
  endfunction

  // Step 5: the way to the next entry, by half of the rest's bits at a time; a logarithm has its exponent before the point.
  function automatic parts_t parts_of(input line_t l);
    parts_of.kind = l.kind;
    parts_of.from = l.kind.is_log ? $signed({9'd0, l.from}) + $signed({l.kind.exponent, 30'd0}) : $signed({9'd0, l.from});
    parts_of.low = 37'(l.step) * $signed({25'd0, l.rest[11:0]});
    parts_of.high = 37'(l.step) * $signed({25'd0, l.rest[23:12]});
  endfunction

  // Step 6: there.
  function automatic total_t total_of(input parts_t p);
    logic signed [48:0] part;
    part = 49'(p.low) + $signed({p.high, 12'd0});
    total_of.kind = p.kind;
    total_of.total = p.from + 41'(part >>> 24);
  endfunction

  // Step 7: sign and magnitude.
  function automatic magnitude_t magnitude_of(input total_t t);
    logic [38:0] magnitude;
    magnitude = 39'(t.total < 0 ? -t.total : t.total);
    magnitude_of.special = t.kind.special;
    magnitude_of.sign = t.kind.sign || t.total < 0;
    magnitude_of.exponent = t.kind.is_log ? 11'sd0 : t.kind.exponent;
    magnitude_of.zeros = leading_zeros({magnitude, 9'd0});
    magnitude_of.magnitude = magnitude;
  endfunction

  // Step 8: to FP32, truncated; below 2^-126 zero.
  function automatic logic [31:0] assembled(input magnitude_t f);
    logic [38:0] m;
    logic signed [10:0] exponent;
    m = f.magnitude << f.zeros;
    exponent = f.exponent + 11'sd8 - $signed({5'd0, f.zeros});
    if (!m[38]) assembled = 32'd0;
    else if (exponent < -11'sd126) assembled = {f.sign, 31'd0};
    else if (exponent > 11'sd127) assembled = {f.sign, INFINITY[30:0]};
    else assembled = {f.sign, 8'(exponent + 11'sd127), m[37:15]};
  endfunction
endpackage
