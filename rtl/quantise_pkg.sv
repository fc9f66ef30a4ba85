// Blocks of MXINT8 and MXINT4 from BF16: the exponent of the largest magnitude, then rounding to nearest even.
package quantise_pkg;
  // The larger exponent field; a NaN has none.
  function automatic logic [7:0] larger_field(input logic [7:0] best, input logic [15:0] x);
    larger_field = x[14:7] > best && !(x[14:7] == 8'hff && x[6:0] != 0) ? x[14:7] : best;
  endfunction

  function automatic logic [7:0] largest_field(input logic [7:0][15:0] x);
    logic [7:0][7:0] best;
    for (int i = 0; i < 8; i++) best[i] = larger_field(8'd0, x[i]);
    for (int width = 4; width >= 1; width = width / 2)
      for (int i = 0; i < 4; i++) if (i < width && best[i+width] > best[i]) best[i] = best[i+width];
    largest_field = best[0];
  endfunction

  // Scale byte of a block: exponent + 127; 255 is never written.
  function automatic logic [7:0] scale_of(input logic [7:0] field);
    scale_of = field == 8'hff ? 8'hfe : field;
  endfunction

  function automatic logic signed [7:0] code_of(input logic [15:0] x, input logic [7:0] scale, input logic narrow);
    logic [7:0] field, significand, magnitude, top;
    logic [8:0] down;
    logic [23:0] moved;
    logic [15:0] rounded;
    field = x[14:7] == 0 ? 8'd1 : x[14:7];
    significand = {x[14:7] != 0, x[6:0]};
    // A significand has 7 fractional bits, a code 6 (or 2): right by their difference and by what the block is larger.
    down = {1'b0, scale} + (narrow ? 9'd5 : 9'd1) - {1'b0, field};
    moved = {significand, 16'd0} >> (down > 9'd15 ? 9'd15 : down);
    rounded = {8'd0, moved[23:16]} + {15'd0, moved[15] && (moved[16] || moved[14:0] != 0)};
    top = narrow ? 8'd7 : 8'd127;
    magnitude = rounded > {8'd0, top} ? top : rounded[7:0];
    if (x[14:7] == 8'hff) magnitude = x[6:0] != 0 ? 8'd0 : top;
    code_of = x[15] ? -magnitude : magnitude;
  endfunction
endpackage
