// The array: weights of BLEN columns are loaded in BLEN cycles, then take the place of those of the tile product before, and a
// row of activations a cycle is quantised, multiplied with all columns, scaled, and added to the accumulators. All passes
// through one pipeline in order, so an M_OUT reads what the M_MM before it left. Cycles after the start of an instruction:
//   1+c       address of column c, 3+c loaded   7+r     address of row r of the activations
//   8+r, 9+r  largest exponents of groups, of blocks   10+r   codes
//   11+r, 12+r   block dot products                    13+r   to numbers, 14+r to 17+r scales
//   18+r      accumulators read; four additions of two cycles, one for each group of eight; 26+r written back
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
    output logic [BLEN-1:0][15:0] out_data,
    output logic fault  // an instruction that this unit does not know
);
  localparam int CHAIN = 2 * GROUPS;
  localparam int MATRIX_BITS = $clog2(MATRIX_BYTES), VECTOR_BITS = $clog2(VECTOR_ELEMENTS);
  typedef struct packed {
    logic multiply;  // M_MM; else M_OUT
    logic [MATRIX_BITS-1:0] weights;
    logic [MATRIX_BITS-1:0] weights_stride;
    logic [VECTOR_BITS-1:0] target;  // acts, or dst
    logic [VECTOR_BITS-1:0] target_stride;
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
    logic [2:0] row;
    logic [VECTOR_BITS-1:0] address;
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
  always_ff @(posedge clock) fault <= !reset && start && in.word[7:0] != OP_M_MM && in.word[7:0] != OP_M_OUT;

  // ---- instructions: columns first, six cycles later rows ----
  work_t columns, rows;
  logic columns_active, rows_active;
  logic [3:0] column, row;
  always_ff @(posedge clock)
    if (reset) begin
      columns_active <= 1'b0;
      rows_active <= 1'b0;
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
        columns.weights <= MATRIX_BITS'(in.address[0]);
        columns.weights_stride <= MATRIX_BITS'(in.stride[0]);
        columns.target <= VECTOR_BITS'(in.word[7:0] == OP_M_MM ? in.address[1] : in.address[0]);
        columns.target_stride <= VECTOR_BITS'(in.word[7:0] == OP_M_MM ? in.stride[1] : in.stride[0]);
        columns.rows <= in.word[7:0] == OP_M_MM ? mm.rows : out.rows;
        columns.cols <= in.word[7:0] == OP_M_MM ? mm.cols : out.cols;
        columns.k <= mm.k;
        columns.block <= mm.block;
        columns.weights4 <= mm.weight_format == FORMAT_MXINT4;
        columns.acts4 <= mm.act_format == FORMAT_MXINT4;
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
      logic [MATRIX_BITS-1:0] record;
      logic [5:0] offset;
      record = columns.weights + MATRIX_BITS'((8 * group) >> columns.block) * MATRIX_BITS'(columns.block_stride);
      offset = 6'(8 * group) & 6'((1 << columns.block) - 1);
      scale_address[group] = 32'(record);
      code_address[group] = 32'(MATRIX_BITS'(record + 1'b1 + (columns.weights4 ? offset >> 1 : offset)));
    end
  end
  logic fetched, fetched4;
  logic [2:0] fetched_column;
  logic [BLEN-1:0][MLEN-1:0][7:0] loaded, weight;
  logic [BLEN-1:0][GROUPS-1:0][7:0] loaded_scale, weight_scale;
  always_ff @(posedge clock) begin
    fetched <= weights_read && !reset;
    fetched_column <= column[2:0];
    fetched4 <= columns.weights4;
    if (fetched)
      for (int group = 0; group < GROUPS; group++) begin
        loaded_scale[fetched_column][group] <= scale_data[group];
        for (int i = 0; i < 8; i++)
          loaded[fetched_column][8*group+i] <= fetched4 ?
              8'($signed(code_data[group][i/2][4*(i%2)+:4])) : code_data[group][i];
      end
  end

  // ---- rows of activations: stage 0 address, 1 data and exponents of groups, 2 of blocks, 3 codes ----
  localparam int DOTS = 4;  // stage of the dot products
  localparam int TERM = DOTS + 2;  // of their scales
  localparam int SUM = TERM + 5;  // of the accumulators
  localparam int STAGES = SUM - 1 + CHAIN;
  logic [STAGES+1:1] valid;
  row_t slot[1:STAGES+1];
  assign acts_read = rows_active && rows.multiply && {4'd0, row} < rows.rows;
  assign acts_address = 32'(rows.target);
  always_ff @(posedge clock)
    if (reset) valid <= '0;
    else begin
      valid <= {valid[STAGES:1], rows_active && {4'd0, row} < rows.rows};
      slot[1] <= '{
          multiply: rows.multiply,
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

  logic [GROUPS-1:0][7:0] group_field1, group_field2, block_field2;
  logic [GROUPS-1:0][7:0] act_scale[3:TERM];
  logic [MLEN-1:0][15:0] used1, used2, used3;
  logic [MLEN-1:0][7:0] scales3, act4;
  always_comb begin
    for (int i = 0; i < MLEN; i++) used1[i] = 14'(i) < slot[1].k ? acts_data[i] : 16'd0;
    for (int group = 0; group < GROUPS; group++) group_field1[group] = quantise_pkg::largest_field(used1[8*group+:8]);
    for (int group = 0; group < GROUPS; group++) begin
      block_field2[group] = '0;
      for (int other = 0; other < GROUPS; other++)
        if ((8 * group) >> slot[2].block == (8 * other) >> slot[2].block && group_field2[other] > block_field2[group])
          block_field2[group] = group_field2[other];
    end
    for (int i = 0; i < MLEN; i++) scales3[i] = act_scale[3][i/8];
  end
  always_ff @(posedge clock) begin
    if (valid[1] && slot[1].multiply) begin
      used2 <= used1;
      group_field2 <= group_field1;
    end
    if (valid[2] && slot[2].multiply) begin
      used3 <= used2;
      for (int group = 0; group < GROUPS; group++) act_scale[3][group] <= quantise_pkg::scale_of(block_field2[group]);
    end
    for (int i = 4; i <= TERM; i++) if (valid[i-1]) act_scale[i] <= act_scale[i-1];
  end

  quantisers #(
      .COUNT(MLEN)
  ) codes (
      .clock, .enable(valid[3] && slot[3].multiply), .narrow(slot[3].acts4), .x(used3), .scale(scales3), .code(act4)
  );

  // ---- dot products, then scales ----
  logic [BLEN-1:0][GROUPS-1:0][23:0] dot;
  logic [BLEN-1:0][GROUPS-1:0][7:0] weight_scales[DOTS+1:TERM];
  // Groups that begin a block carry its term; the others add -0, which changes nothing.
  function automatic logic begins_block(input int group, input row_t at);
    begins_block = ((8 * group) & ((1 << at.block) - 1)) == 0 && 14'(8 * group) < at.k;
  endfunction
  logic [STAGES:1] multiplies;
  always_comb for (int i = 1; i <= STAGES; i++) multiplies[i] = valid[i] && slot[i].multiply;
  // The columns are loaded when the codes of the first row are computed.
  logic swap;
  always_ff @(posedge clock) begin
    swap <= valid[DOTS-2] && slot[DOTS-2].multiply && slot[DOTS-2].row == 0;
    if (swap) begin
      weight <= loaded;
      weight_scale <= loaded_scale;
    end
  end
  dots #(
      .COUNT(BLEN)
  ) of_columns (
      .clock, .enable(multiplies[DOTS+:2]), .block(slot[DOTS+1].block), .act(act4), .weight, .dot
  );
  always_ff @(posedge clock) begin
    if (valid[DOTS]) weight_scales[DOTS+1] <= weight_scale;
    if (valid[DOTS+1]) weight_scales[TERM] <= weight_scales[DOTS+1];
  end

  // ---- accumulators ----
  localparam int TERMS = BLEN * GROUPS;  // number c * GROUPS + g: column c, group g
  logic [BLEN*BLEN-1:0][31:0] accumulator  /*verilator public_flat_rw*/;  // row by row
  logic [BLEN-1:0][31:0] read, read_out;  // for the sums (zeros: M_OUT, and where a sum is passed on) and for M_OUT
  logic [BLEN-1:0] passed, passed_out;
  logic [TERMS-1:0][31:0] term, addend, augend, sum;
  logic [TERMS-1:0][31:0] delayed[SUM:SUM-2+CHAIN];  // terms in stage i until their addition
  logic [TERMS-1:0][7:0] act_scales;
  logic [TERMS-1:0] absent;
  logic [TERMS-1:0][1:0] adding;
  terms #(
      .COUNT(TERMS)
  ) of_blocks (
      .clock, .enable({valid[TERM+4], multiplies[TERM+:4]}), .dot,
      .fraction((slot[TERM].weights4 ? 5'd2 : 5'd6) + (slot[TERM].acts4 ? 5'd2 : 5'd6)),
      .weight_scale(weight_scales[TERM]), .act_scale(act_scales), .absent, .value(term)
  );
  assign delayed[SUM] = term;
  for (genvar i = SUM + 1; i <= SUM - 2 + CHAIN; i++) begin : delays
    always_ff @(posedge clock) if (valid[i-1]) delayed[i] <= delayed[i-1];
  end
  for (genvar c = 0; c < BLEN; c++) begin : columns_of
    for (genvar g = 0; g < GROUPS; g++) begin : groups
      localparam int T = c * GROUPS + g;
      assign act_scales[T] = act_scale[TERM][g];
      assign absent[T] = !slot[SUM-1].multiply || !begins_block(g, slot[SUM-1]);
      // Addition g takes two stages from SUM + 2 g on.
      assign adding[T] = valid[SUM+2*g+:2];
      assign augend[T] = g != 0 ? sum[T-(g!=0)] : {32{passed[c]}} & sum[c*GROUPS+GROUPS-1] | read[c];
      assign addend[T] = delayed[SUM+2*g][T];
    end
  end
  adders #(
      .COUNT(TERMS)
  ) chains (
      .clock, .enable(adding), .a(augend), .b(addend), .sum
  );
  // The last sum leaves its adder in stage SUM+CHAIN, which is the stage SUM of the same row BLEN cycles later, and is passed on.
  // What decides that is known a cycle before, so that nothing but the choice lies before the first addition.
  function automatic logic writes(input int stage, input int c, input logic [2:0] of_row);
    writes = valid[stage] && slot[stage].row == of_row && 8'(c) < slot[stage].cols;
  endfunction
  logic [BLEN-1:0] passing;
  always_comb
    for (int c = 0; c < BLEN; c++) passing[c] = writes(SUM + CHAIN - 1, c, slot[SUM-1].row) && slot[SUM-1].multiply;
  always_ff @(posedge clock)
    for (int c = 0; c < BLEN; c++) begin
      passed[c] <= passing[c];
      passed_out[c] <= writes(SUM + CHAIN - 1, c, slot[SUM-1].row);
      if (valid[SUM-1]) begin
        logic [31:0] now;
        now = writes(SUM + CHAIN, c, slot[SUM-1].row) ? sum[c*GROUPS+GROUPS-1] : accumulator[{slot[SUM-1].row, 3'(c)}];
        read[c] <= slot[SUM-1].multiply && !passing[c] ? now : 32'd0;
        read_out[c] <= now;
      end
    end
  always_ff @(posedge clock)
    if (reset) begin
      accumulator <= '0;
    end else if (valid[SUM+CHAIN])
      for (int c = 0; c < BLEN; c++)
        if (8'(c) < slot[SUM+CHAIN].cols) accumulator[{slot[SUM+CHAIN].row, 3'(c)}] <= sum[c*GROUPS+GROUPS-1];

  always_ff @(posedge clock) begin
    out_write <= valid[SUM] && !slot[SUM].multiply && !reset;
    out_address <= 32'(slot[SUM].address);
    out_count <= slot[SUM].cols;
    if (valid[SUM]) for (int c = 0; c < BLEN; c++) out_data[c] <= to_bf16(passed_out[c] ? sum[c*GROUPS+GROUPS-1] : read_out[c]);
  end
endmodule
