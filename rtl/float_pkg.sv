// FP32 arithmetic of docs/numerics.md: round to nearest even, subnormals kept, no fused operations. Sum and product come in
// two halves, so that a register can stand between them.
package float_pkg;
  localparam logic [31:0] NAN = 32'hffc00000;
  localparam logic [31:0] INFINITY = 32'h7f800000;

  function automatic logic is_nan(input logic [31:0] x);
    is_nan = x[30:23] == 8'hff && x[22:0] != 0;
  endfunction

  function automatic logic [31:0] quiet(input logic [31:0] x);
    quiet = x | 32'h00400000;
  endfunction

  // Orders numbers as integers: -0 counts as +0, a NaN lies below everything.
  function automatic logic [32:0] order(input logic [31:0] x);
    if (is_nan(x)) order = 33'd0;
    else if (x[30:0] == 0) order = {1'b1, 32'h80000000};
    else order = {1'b1, x[31] ? ~x : x | 32'h80000000};
  endfunction

  function automatic logic greater(input logic [31:0] x, input logic [31:0] y);
    greater = !is_nan(x) && !is_nan(y) && order(x) > order(y);
  endfunction

  function automatic logic [5:0] leading_zeros(input logic [47:0] x);
    logic [63:0] m;
    m = {x, 16'hffff};
    leading_zeros[5] = m[63:32] == 0;
    if (leading_zeros[5]) m = m << 32;
    leading_zeros[4] = m[63:48] == 0;
    if (leading_zeros[4]) m = m << 16;
    leading_zeros[3] = m[63:56] == 0;
    if (leading_zeros[3]) m = m << 8;
    leading_zeros[2] = m[63:60] == 0;
    if (leading_zeros[2]) m = m << 4;
    leading_zeros[1] = m[63:62] == 0;
    if (leading_zeros[1]) m = m << 2;
    leading_zeros[0] = !m[63];
  endfunction

  function automatic logic [15:0] to_bf16(input logic [31:0] x);
    logic [31:0] rounded;
    rounded = x + 32'h7fff + {31'd0, x[16]};
    to_bf16 = is_nan(x) ? x[31:16] | 16'h0040 : rounded[31:16];
  endfunction

  // Sum, first half: the operand of smaller magnitude moves to the exponent of the other; three bits more, the last sticky.
  typedef struct packed {
    logic special;
    logic [31:0] value;
    logic sign;
    logic subtract;
    logic [7:0] exponent;
    logic [26:0] larger;
    logic [26:0] lesser;
  } sum_t;

  function automatic sum_t sum_align(input logic [31:0] a, input logic [31:0] b);
    logic [31:0] x, y;
    logic [7:0] ex, ey, distance;
    logic [53:0] moved;
    if (b[30:0] > a[30:0]) begin
      x = b;
      y = a;
    end else begin
      x = a;
      y = b;
    end
    ex = x[30:23] == 0 ? 8'd1 : x[30:23];
    ey = y[30:23] == 0 ? 8'd1 : y[30:23];
    distance = ex - ey;
    moved = {y[30:23] != 0, y[22:0], 30'd0} >> (distance > 8'd27 ? 8'd27 : distance);
    sum_align.special = x[30:23] == 8'hff;
    if (is_nan(a)) sum_align.value = quiet(a);
    else if (is_nan(b)) sum_align.value = quiet(b);
    else if (y[30:23] == 8'hff && x[31] != y[31]) sum_align.value = NAN;
    else sum_align.value = x;
    sum_align.sign = x[31];
    sum_align.subtract = x[31] != y[31];
    sum_align.exponent = ex;
    sum_align.larger = {x[30:23] != 0, x[22:0], 3'd0};
    sum_align.lesser = {moved[53:28], moved[27] || moved[26:0] != 0};
  endfunction

  // Second half: add, normalise, round.
  function automatic logic [31:0] sum_round(input sum_t s);
    logic [27:0] total;
    logic [26:0] m;
    logic [8:0] exponent;
    logic [5:0] zeros;
    logic up;
    logic [31:0] packed_sum;
    total = s.subtract ? {1'b0, s.larger} - {1'b0, s.lesser} : {1'b0, s.larger} + {1'b0, s.lesser};
    exponent = {1'b0, s.exponent};
    if (total[27]) begin
      m = {total[27:2], total[1] || total[0]};
      exponent = exponent + 9'd1;
    end else begin
      zeros = leading_zeros({total[26:0], 21'd0});
      if ({3'd0, zeros} >= exponent) zeros = 6'(exponent - 9'd1);
      m = total[26:0] << zeros;
      exponent = exponent - {3'd0, zeros};
    end
    up = m[2] && (m[3] || m[1:0] != 0);
    packed_sum = {s.sign, m[26] ? exponent[7:0] : 8'd0, m[25:3]} + {31'd0, up};
    if (s.special) sum_round = s.value;
    else if (total == 0) sum_round = {s.sign && !s.subtract, 31'd0};
    else if (exponent >= 9'd255) sum_round = {s.sign, INFINITY[30:0]};
    else sum_round = packed_sum;
  endfunction

  // Product, first half: the significands multiplied.
  typedef struct packed {
    logic special;
    logic [31:0] value;
    logic sign;
    logic signed [10:0] exponent;  // biased, of a product whose leading one is bit 46
    logic [47:0] significand;
  } product_t;

  function automatic product_t product_multiply(input logic [31:0] a, input logic [31:0] b);
    logic infinite, zero;
    infinite = a[30:23] == 8'hff || b[30:23] == 8'hff;
    zero = a[30:0] == 0 || b[30:0] == 0;
    product_multiply.special = infinite || zero;
    product_multiply.sign = a[31] ^ b[31];
    if (is_nan(a)) product_multiply.value = quiet(a);
    else if (is_nan(b)) product_multiply.value = quiet(b);
    else if (infinite && zero) product_multiply.value = NAN;
    else product_multiply.value = {a[31] ^ b[31], infinite ? INFINITY[30:0] : 31'd0};
    product_multiply.exponent = 11'($unsigned({3'd0, a[30:23] == 0 ? 8'd1 : a[30:23]})) +
                                11'($unsigned({3'd0, b[30:23] == 0 ? 8'd1 : b[30:23]})) - 11'sd127;
    product_multiply.significand = 48'({a[30:23] != 0, a[22:0]}) * 48'({b[30:23] != 0, b[22:0]});
  endfunction

  // A value significand * 2^.. with its leading one anywhere, normalised and rounded to 24 bits.
  function automatic logic [31:0] product_round(input product_t p);
    logic [5:0] zeros;
    logic signed [10:0] exponent;
    logic [47:0] m;
    logic [10:0] down;
    logic sticky, up;
    zeros = leading_zeros(p.significand);
    exponent = p.exponent + 11'sd1 - $signed({5'd0, zeros});
    m = p.significand << zeros;
    sticky = 1'b0;
    if (exponent < 11'sd1) begin
      down = 11'(11'sd1 - exponent);
      if (down > 11'd26) down = 11'd26;
      sticky = (m & ~(48'hffffffffffff << down)) != 0;
      m = m >> down;
    end
    up = m[23] && (m[24] || m[22:0] != 0 || sticky);
    if (p.special) product_round = p.value;
    else if (exponent >= 11'sd255) product_round = {p.sign, INFINITY[30:0]};
    else product_round = {p.sign, exponent < 11'sd1 ? 8'd0 : exponent[7:0], m[46:24]} + {31'd0, up};
  endfunction

  // x * 2^e in two steps, each rounded: 2^floor(e/2), then the rest (docs/numerics.md, scales).
  function automatic logic [31:0] shifted(input logic [31:0] x, input logic signed [8:0] e);
    product_t p;
    p.special = x[30:23] == 8'hff || x[30:0] == 0;
    p.value = is_nan(x) ? quiet(x) : x;
    p.sign = x[31];
    p.exponent = $signed({3'd0, x[30:23] == 0 ? 8'd1 : x[30:23]}) + 11'(e);
    p.significand = {1'b0, x[30:23] != 0, x[22:0], 23'd0};
    shifted = product_round(p);
  endfunction

  function automatic logic [31:0] scaled(input logic [31:0] x, input logic signed [8:0] e);
    scaled = shifted(shifted(x, e >>> 1), e - (e >>> 1));
  endfunction

  // A signed integer times 2^-fraction, exactly.
  function automatic logic [31:0] from_integer(input logic signed [23:0] x, input logic [4:0] fraction);
    product_t p;
    logic [23:0] magnitude;
    magnitude = x < 0 ? -x : x;
    p.special = x == 0;
    p.value = 32'd0;
    p.sign = x < 0;
    p.exponent = 11'sd150 - $signed({6'd0, fraction});
    p.significand = {1'b0, magnitude, 23'd0};
    from_integer = product_round(p);
  endfunction

  // BF16 rounded to the nearest integer, ties to even.
  function automatic logic [15:0] nearest_integer(input logic [15:0] x);
    logic [15:0] fixed;  // 8 integer bits, 8 fractional ones
    logic [7:0] whole, field;
    logic [5:0] zeros;
    field = x[14:7];
    fixed = {1'b1, x[6:0], 8'd0} >> (8'd134 - field);
    whole = fixed[15:8] + {7'd0, fixed[7] && (fixed[8] || fixed[6:0] != 0)};
    zeros = leading_zeros({whole, 40'd0});
    if (field >= 8'd134) nearest_integer = is_nan({x, 16'd0}) ? x | 16'h0040 : x;
    else if (field < 8'd126 || whole == 0) nearest_integer = {x[15], 15'd0};
    else nearest_integer = {x[15], 8'd134 - {2'd0, zeros}, 7'((whole << zeros))};
  endfunction
endpackage
