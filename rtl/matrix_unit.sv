// The array: weights of BLEN columns are loaded in BLEN cycles into one of two buffers, then a row of activations a cycle is
// quantised, multiplied with all columns, scaled, and added to the accumulators. All passes through one pipeline in order,
// so an M_OUT reads what the M_MM before it left. Cycles after the start of an instruction:
//   1+c       address of column c             7+r     address of row r of the activations
//   10+r      block dot products              11+r    to FP32, 12+r, 13+r scales
//   14+r      accumulators read; four additions of two cycles, one for each group of eight; 22+r written back
module matrix_unit
  import tripath_pkg::*;
  import core_pkg::*;
  import float_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic start,
    input entry_t in,
    output logic weights_read,
    output logic [GROUPS-1:0][31:0] scale_address,
    output logic [GROUPS-1:0][31:0] code_address,
    input logic [GROUPS-1:0][7:0] scale_data,
    input logic [GROUPS-1:0][7:0][7:0] code_data,
    output logic acts_read,
    output logic [31:0] acts_address,
    input logic [MLEN-1:0][15:0] acts_data,
    output logic out_write,
    output logic [31:0] out_address,
    output logic [7:0] out_count,
    output logic [BLEN-1:0][15:0] out_data
);
  localparam int CHAIN = 2 * GROUPS;
  typedef struct packed {
    logic multiply;  // M_MM; else M_OUT
    logic buffer;
    logic [31:0] weights;
    logic [31:0] weights_stride;
    logic [31:0] target;  // acts, or dst
    logic [31:0] target_stride;
    logic [7:0] rows;
    logic [7:0] cols;
    logic [13:0] k;
    logic [2:0] block;
    logic weights4;  // MXINT4
    logic acts4;
    logic [15:0] block_stride;
  } work_t;
  typedef struct packed {
    logic multiply;
    logic buffer;
    logic [2:0] row;
    logic [31:0] address;
    logic [7:0] cols;
    logic [13:0] k;
    logic [2:0] block;
    logic weights4;
    logic acts4;
  } row_t;

  m_mm_t mm;
  m_out_t out;
  assign mm = in.word;
  assign out = in.word;

  // ---- instructions: columns first, six cycles later rows ----
  work_t columns, rows;
  logic columns_active, rows_active, parity;
  logic [3:0] column, row;
  always_ff @(posedge clock)
    if (reset) begin
      columns_active <= 1'b0;
      rows_active <= 1'b0;
      parity <= 1'b0;
    end else begin
      if (columns_active) begin
        column <= column + 4'd1;
        columns.weights <= columns.weights + columns.weights_stride;
        if (column == 4'(BLEN - 1)) columns_active <= 1'b0;
      end
      if (start) begin
        columns_active <= 1'b1;
        column <= '0;
        columns.multiply <= in.word[7:0] == OP_M_MM;
        columns.buffer <= parity;
        if (in.word[7:0] == OP_M_MM) parity <= !parity;
        columns.weights <= in.address[0];
        columns.weights_stride <= in.stride[0];
        columns.target <= in.word[7:0] == OP_M_MM ? in.address[1] : in.address[0];
        columns.target_stride <= in.word[7:0] == OP_M_MM ? in.stride[1] : in.stride[0];
        columns.rows <= in.word[7:0] == OP_M_MM ? mm.rows : out.rows;
        columns.cols <= in.word[7:0] == OP_M_MM ? mm.cols : out.cols;
        columns.k <= mm.k;
        columns.block <= mm.block;
        columns.weights4 <= mm.weight_format == 4'd3;
        columns.acts4 <= mm.act_format == 4'd3;
        columns.block_stride <= mm.block_stride;
      end
      if (rows_active) begin
        row <= row + 4'd1;
        rows.target <= rows.target + rows.target_stride;
        if (row == 4'(BLEN - 1)) rows_active <= 1'b0;
      end
      if (columns_active && column == 4'd5) begin
        rows <= columns;
        rows_active <= 1'b1;
        row <= '0;
      end
    end

  // ---- weights ----
  always_comb begin
    weights_read = columns_active && columns.multiply && {4'd0, column} < columns.cols;
    for (int group = 0; group < GROUPS; group++) begin
      logic [31:0] record;
      logic [5:0] offset;
      record = columns.weights + 32'((8 * group) >> columns.block) * {16'd0, columns.block_stride};
      offset = 6'(8 * group) & 6'((1 << columns.block) - 1);
      scale_address[group] = record;
      code_address[group] = record + 32'd1 + {26'd0, columns.weights4 ? offset >> 1 : offset};
    end
  end
  logic fetched, fetched_buffer, fetched4;
  logic [2:0] fetched_column;
  logic [1:0][BLEN-1:0][MLEN-1:0][7:0] weight;
  logic [1:0][BLEN-1:0][GROUPS-1:0][7:0] weight_scale;
  always_ff @(posedge clock) begin
    fetched <= weights_read && !reset;
    fetched_buffer <= columns.buffer;
    fetched_column <= column[2:0];
    fetched4 <= columns.weights4;
    if (fetched)
      for (int group = 0; group < GROUPS; group++) begin
        weight_scale[fetched_buffer][fetched_column][group] <= scale_data[group];
        for (int i = 0; i < 8; i++)
          weight[fetched_buffer][fetched_column][8*group+i] <= fetched4 ?
              8'($signed(code_data[group][i/2][4*(i%2)+:4])) : code_data[group][i];
      end
  end

  // ---- rows of activations: stage 0 address, 1 data, 2 exponents, 3 codes ----
  localparam int STAGES = 6 + CHAIN;  // the last one writes the accumulators
  logic [STAGES+1:1] valid;
  row_t slot[1:STAGES+1];
  assign acts_read = rows_active && rows.multiply && {4'd0, row} < rows.rows;
  assign acts_address = rows.target;
  always_ff @(posedge clock)
    if (reset) valid <= '0;
    else begin
      valid <= {valid[STAGES:1], rows_active && {4'd0, row} < rows.rows};
      slot[1] <= '{
          multiply: rows.multiply,
          buffer: rows.buffer,
          row: row[2:0],
          address: rows.target,
          cols: rows.cols,
          k: rows.k,
          block: rows.block,
          weights4: rows.weights4,
          acts4: rows.acts4
      };
      for (int i = 2; i <= STAGES + 1; i++) if (valid[i-1]) slot[i] <= slot[i-1];
    end

  logic [GROUPS-1:0][7:0] group_field, block_field, act_scale2, act_scale3, act_scale4;
  logic [MLEN-1:0][15:0] acts2;
  logic [MLEN-1:0][7:0] act3;
  always_comb begin
    for (int group = 0; group < GROUPS; group++) begin
      group_field[group] = '0;
      for (int i = 0; i < 8; i++)
        if (14'(8 * group + i) < slot[1].k)
          group_field[group] = quantise_pkg::larger_field(group_field[group], acts_data[8*group+i]);
    end
    for (int group = 0; group < GROUPS; group++) begin
      block_field[group] = '0;
      for (int other = 0; other < GROUPS; other++)
        if ((8 * group) >> slot[1].block == (8 * other) >> slot[1].block && group_field[other] > block_field[group])
          block_field[group] = group_field[other];
    end
  end
  always_ff @(posedge clock) begin
    if (valid[1] && slot[1].multiply) begin
      acts2 <= acts_data;
      for (int group = 0; group < GROUPS; group++) act_scale2[group] <= quantise_pkg::scale_of(block_field[group]);
    end
    if (valid[2] && slot[2].multiply) act_scale3 <= act_scale2;
    if (valid[3]) act_scale4 <= act_scale3;
  end

  logic [MLEN-1:0][15:0] used2;
  logic [MLEN-1:0][7:0] scales2;
  always_comb
    for (int i = 0; i < MLEN; i++) begin
      used2[i] = 14'(i) < slot[2].k ? acts2[i] : 16'd0;
      scales2[i] = act_scale2[i/8];
    end
  quantisers #(
      .COUNT(MLEN)
  ) codes (
      .clock, .enable(valid[2] && slot[2].multiply), .narrow(slot[2].acts4), .x(used2), .scale(scales2), .code(act3)
  );

  // ---- stage 3: dot products, 4: FP32, 5, 6: scales ----
  logic [BLEN-1:0][GROUPS-1:0][23:0] dot4;
  logic [BLEN-1:0][GROUPS-1:0][7:0] weight_scale4;
  // Groups that begin a block carry its term; the others add -0, which changes nothing.
  function automatic logic begins_block(input int group, input row_t at);
    begins_block = ((8 * group) & ((1 << at.block) - 1)) == 0 && 14'(8 * group) < at.k;
  endfunction
  logic [BLEN-1:0][MLEN-1:0][7:0] weight3;
  assign weight3 = weight[slot[3].buffer];
  dots #(
      .COUNT(BLEN)
  ) of_columns (
      .clock, .enable(valid[3] && slot[3].multiply), .block(slot[3].block), .act(act3), .weight(weight3), .dot(dot4)
  );
  always_ff @(posedge clock) if (valid[3]) weight_scale4 <= weight_scale[slot[3].buffer];

  // ---- accumulators ----
  localparam logic [31:0] NOTHING = 32'h80000000;
  localparam int TERMS = BLEN * GROUPS;  // number c * GROUPS + g: column c, group g
  logic [BLEN*BLEN-1:0][31:0] accumulator  /*verilator public_flat_rw*/;  // row by row
  logic [BLEN-1:0][31:0] kept;
  logic [TERMS-1:0][31:0] term7, addend, augend, sum;
  logic [TERMS-1:0][31:0] delayed[7:5+CHAIN];  // terms in stage i until their addition
  logic [TERMS-1:0][7:0] act_scales4;
  logic [TERMS-1:0] absent6;
  logic [TERMS-1:0][1:0] adding;
  terms #(
      .COUNT(TERMS)
  ) of_blocks (
      .clock, .enable({valid[6] && slot[6].multiply, valid[5] && slot[5].multiply, valid[4] && slot[4].multiply}),
      .dot(dot4), .fraction((slot[4].weights4 ? 5'd2 : 5'd6) + (slot[4].acts4 ? 5'd2 : 5'd6)),
      .weight_scale(weight_scale4), .act_scale(act_scales4), .absent(absent6), .value(term7)
  );
  assign delayed[7] = term7;
  for (genvar i = 8; i <= 5 + CHAIN; i++) begin : delays
    always_ff @(posedge clock) if (valid[i-1]) delayed[i] <= delayed[i-1];
  end
  for (genvar c = 0; c < BLEN; c++) begin : columns_of
    assign kept[c] = valid[7+CHAIN] && slot[7+CHAIN].row == slot[7].row && 8'(c) < slot[7+CHAIN].cols ?
        sum[c*GROUPS+GROUPS-1] : accumulator[{slot[7].row, 3'(c)}];
    for (genvar g = 0; g < GROUPS; g++) begin : groups
      localparam int T = c * GROUPS + g;
      assign act_scales4[T] = act_scale4[g];
      assign absent6[T] = !begins_block(g, slot[6]);
      // Addition g takes stages 7+2g (align) and 8+2g (round).
      assign adding[T] = valid[7+2*g+:2];
      assign augend[T] = g != 0 ? sum[T-(g!=0)] : slot[7].multiply ? kept[c] : 32'd0;
      assign addend[T] = slot[7+2*g].multiply ? delayed[7+2*g][T] : NOTHING;
    end
  end
  adders #(
      .COUNT(TERMS)
  ) chains (
      .clock, .enable(adding), .a(augend), .b(addend), .sum
  );
  // The last sum leaves its adder in stage 7+CHAIN, which is the stage 7 of the same row BLEN cycles later: `kept` passes it on.
  always_ff @(posedge clock)
    if (reset) begin
      accumulator <= '0;
    end else if (valid[7+CHAIN])
      for (int c = 0; c < BLEN; c++)
        if (8'(c) < slot[7+CHAIN].cols) accumulator[{slot[7+CHAIN].row, 3'(c)}] <= sum[c*GROUPS+GROUPS-1];

  always_ff @(posedge clock) begin
    out_write <= valid[7] && !slot[7].multiply && !reset;
    out_address <= slot[7].address;
    out_count <= slot[7].cols;
    if (valid[7]) for (int c = 0; c < BLEN; c++) out_data[c] <= to_bf16(kept[c]);
  end
endmodule
