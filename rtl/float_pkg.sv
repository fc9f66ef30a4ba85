// FP32 arithmetic of docs/numerics.md: round to nearest even, subnormals kept, no fused operations. Sums, products and scales
// come in steps, so that a register can stand between them.
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

  // Sum, step 1: the operand of smaller magnitude moves to the exponent of the other; three bits more, the last sticky.
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

  // Step 2: add.
  typedef struct packed {
    logic special;
    logic [31:0] value;
    logic sign;
    logic [7:0] exponent;
    logic [27:0] total;
  } added_t;

  function automatic added_t sum_add(input sum_t s);
    sum_add.special = s.special;
    sum_add.value = s.value;
    sum_add.exponent = s.exponent;
    sum_add.total = s.subtract ? {1'b0, s.larger} - {1'b0, s.lesser} : {1'b0, s.larger} + {1'b0, s.lesser};
    sum_add.sign = s.sign && !(s.subtract && s.larger == s.lesser);
  endfunction

  // Step 3: two ways that need not wait for each other. Where more than one leading digit vanished, the operands were neighbours
  // and the sum is exact: it only moves left. Else it moves by one place at most and is rounded.
  function automatic logic [31:0] sum_normalise(input added_t s);
    logic [26:0] m, moved;
    logic [8:0] exponent;
    logic [5:0] zeros;
    logic up;
    logic [31:0] rounded, exact;
    if (s.total[27]) begin
      m = {s.total[27:2], s.total[1] || s.total[0]};
      exponent = {1'b0, s.exponent} + 9'd1;
    end else if (s.total[26] || s.exponent == 8'd1) begin
      m = s.total[26:0];
      exponent = {1'b0, s.exponent};
    end else begin
      m = {s.total[25:0], 1'b0};
      exponent = {1'b0, s.exponent} - 9'd1;
    end
    up = m[2] && (m[3] || m[1:0] != 0);
    rounded = {s.sign, m[26] ? exponent[7:0] : 8'd0, m[25:3]} + {31'd0, up};
    if (exponent == 9'd255) rounded = {s.sign, INFINITY[30:0]};
    // A bit where exponent 1 is reached stops the count of zeros.
    zeros = leading_zeros({s.total[26:0] | 27'(28'h8000000 >> s.exponent), 21'd0});
    moved = s.total[26:0] << zeros;
    exact = {s.sign, moved[26] ? s.exponent - {2'd0, zeros} : 8'd0, moved[25:3]};
    if (s.special) sum_normalise = s.value;
    else sum_normalise = s.total[27:25] == 0 ? exact : rounded;
  endfunction

  // A number that takes the way of a sum, or of a product, and stays what it is.
  function automatic sum_t sum_pass(input logic [31:0] x);
    sum_pass = '0;
    sum_pass.special = 1'b1;
    sum_pass.value = x;
  endfunction

  // Product, step 1: the significands multiplied, half of the second at a time.
  typedef struct packed {
    logic special;
    logic [31:0] value;
    logic sign;
    logic signed [10:0] exponent;  // biased, of a product whose leading one is bit 46
    logic [5:0] zeros;  // before the leading ones of both
    logic [35:0] low;
    logic [35:0] high;
  } halves_t;

  function automatic halves_t product_halves(input logic [31:0] a, input logic [31:0] b);
    logic infinite, zero;
    logic [23:0] m, n;
    infinite = a[30:23] == 8'hff || b[30:23] == 8'hff;
    zero = a[30:0] == 0 || b[30:0] == 0;
    m = {a[30:23] != 0, a[22:0]};
    n = {b[30:23] != 0, b[22:0]};
    product_halves.special = infinite || zero;
    product_halves.sign = a[31] ^ b[31];
    if (is_nan(a)) product_halves.value = quiet(a);
    else if (is_nan(b)) product_halves.value = quiet(b);
    else if (infinite && zero) product_halves.value = NAN;
    else product_halves.value = {a[31] ^ b[31], infinite ? INFINITY[30:0] : 31'd0};
    product_halves.exponent = 11'($unsigned({3'd0, a[30:23] == 0 ? 8'd1 : a[30:23]})) +
                              11'($unsigned({3'd0, b[30:23] == 0 ? 8'd1 : b[30:23]})) - 11'sd127;
    product_halves.zeros = leading_zeros({m, 24'd0}) + leading_zeros({n, 24'd0});
    product_halves.low = 36'(m) * 36'(n[11:0]);
    product_halves.high = 36'(m) * 36'(n[23:12]);
  endfunction

  function automatic halves_t product_pass(input logic [31:0] x);
    product_pass = '0;
    product_pass.special = 1'b1;
    product_pass.value = x;
  endfunction

  // Step 2: the halves together, and how far the product moves: left until its leading one is bit 47 or 46, but no further than
  // to exponent 1, which may lie to the right.
  typedef struct packed {
    logic special;
    logic [31:0] value;
    logic sign;
    logic right;
    logic [5:0] distance;
    logic [9:0] exponent;  // after the move, of a leading one in bit 46; 0: as exponent 1, it must not move further
    logic [47:0] significand;
  } product_t;

  function automatic product_t product_join(input halves_t h);
    logic [10:0] down;
    down = -h.exponent;
    product_join.special = h.special;
    product_join.value = h.value;
    product_join.sign = h.sign;
    product_join.right = h.exponent < 0;
    if (h.exponent < 0) product_join.distance = down > 11'd26 ? 6'd26 : down[5:0];
    else product_join.distance = h.exponent < $signed({5'd0, h.zeros}) ? h.exponent[5:0] : h.zeros;
    product_join.exponent = h.exponent < $signed({5'd0, h.zeros}) ? 10'd0 : 10'(h.exponent - $signed({5'd0, h.zeros}));
    product_join.significand = {12'd0, h.low} + {h.high, 12'd0};
  endfunction

  // Step 3: the move. Bits that fall off on the right stay as one sticky bit.
  function automatic product_t product_move(input product_t p);
    logic [73:0] lower;
    lower = {p.significand, 26'd0} >> p.distance;
    product_move = p;
    product_move.significand = p.right ? {lower[73:27], lower[26:0] != 0} : p.significand << p.distance;
  endfunction

  // Step 4: the last place, and rounding to 24 bits.
  function automatic logic [31:0] product_round(input product_t p);
    logic [46:0] m;  // the leading one, if there is one, left out
    logic [9:0] field;
    logic up;
    if (p.significand[47] || p.exponent == 0) begin
      m = p.significand[46:0];
      field = p.significand[47] ? p.exponent + 10'd1 : 10'd0;
    end else begin
      m = {p.significand[45:0], 1'b0};
      field = p.exponent;
    end
    up = m[23] && (m[24] || m[22:0] != 0);
    if (p.special) product_round = p.value;
    else if (field >= 10'd255) product_round = {p.sign, INFINITY[30:0]};
    else product_round = {p.sign, field[7:0], m[46:24]} + {31'd0, up};
  endfunction

  // A finite number on its way through scales: significand * 2^(exponent - 150), exponent 1 where the leading one is missing.
  typedef struct packed {
    logic sign;
    logic signed [10:0] exponent;
    logic [23:0] significand;
  } number_t;
  localparam logic signed [10:0] BEYOND = 11'sd600;  // an exponent that no scale brings back: infinity

  // A signed integer times 2^-fraction, exactly.
  function automatic number_t from_integer(input logic signed [23:0] x, input logic [4:0] fraction);
    logic [23:0] magnitude;
    logic [5:0] zeros;
    magnitude = x < 0 ? -x : x;
    zeros = leading_zeros({magnitude, 24'd0});
    from_integer.sign = x < 0;
    from_integer.exponent = 11'sd150 - $signed({6'd0, fraction}) - $signed({5'd0, zeros});
    from_integer.significand = magnitude << zeros;
  endfunction

  // x * 2^e for e <= 0, rounded.
  function automatic number_t scaled_down(input number_t x, input logic signed [8:0] e);
    logic signed [10:0] exponent, below;
    logic [48:0] moved;
    exponent = x.exponent + 11'(e);
    below = 11'sd1 - x.exponent - 11'(e);
    moved = {x.significand, 25'd0} >> (below < 0 ? 5'd0 : below > 11'sd25 ? 5'd25 : below[4:0]);
    scaled_down.sign = x.sign;
    scaled_down.exponent = exponent < 11'sd1 ? 11'sd1 : exponent;
    scaled_down.significand = moved[48:25] + {23'd0, moved[24] && (moved[25] || moved[23:0] != 0)};
  endfunction

  // x * 2^e where the exponent stays 1 or more, exactly: digits move left as far as exponent 1 allows.
  function automatic number_t scaled_up(input number_t x, input logic signed [8:0] e);
    logic signed [10:0] exponent;
    logic [5:0] zeros;
    exponent = x.exponent + 11'(e);
    zeros = leading_zeros({x.significand | 24'(25'h1000000 >> (exponent > 11'sd25 ? 5'd25 : exponent[4:0])), 24'd0});
    scaled_up.sign = x.sign;
    scaled_up.exponent = exponent - $signed({5'd0, zeros});
    scaled_up.significand = x.significand << zeros;
  endfunction

  // x * 2^e in two steps, each rounded: 2^floor(e/2), then the rest (docs/numerics.md, scales). Upwards nothing is rounded,
  // and one step does.
  function automatic number_t scale_first(input number_t x, input logic signed [8:0] e);
    scale_first = e < 0 ? scaled_down(x, e >>> 1) : scaled_up(x, e);
  endfunction

  function automatic number_t scale_second(input number_t x, input logic signed [8:0] e);
    scale_second = e < 0 ? scaled_down(x, e - (e >>> 1)) : x;
    if (x.significand[23] && x.exponent > 11'sd254) scale_second.exponent = BEYOND;
  endfunction

  function automatic logic [31:0] to_fp32(input number_t x);
    if (!x.significand[23]) to_fp32 = {x.sign, 8'd0, x.significand[22:0]};
    else if (x.exponent > 11'sd254) to_fp32 = {x.sign, INFINITY[30:0]};
    else to_fp32 = {x.sign, x.exponent[7:0], x.significand[22:0]};
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
