// Loads: beats of HBM become a stream of bytes, records of it are de-quantised and written, a record a cycle.
module dma_in
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic add,
    input descriptor_t added,
    input logic beat,
    input logic [3:0] beat_skip,
    input logic [4:0] beat_count,
    input logic data_valid,
    input logic [BEAT_BYTES-1:0][7:0] data,
    output logic vector_write,
    output logic [31:0] vector_address,
    output logic [5:0] vector_count,
    output logic [RECORD-1:0][15:0] vector_data,
    output logic matrix_write,
    output logic [31:0] matrix_address,
    output logic [5:0] matrix_count,
    output logic [RECORD_BYTES-1:0][7:0] matrix_data,
    output logic column_write,
    output logic [31:0] column_address,
    output logic [31:0] column_stride,
    output logic [3:0] fp_write,
    output logic [3:0] int_write,
    output logic [31:0] word_address,
    output logic [3:0][31:0] word_data,
    output logic finished,
    output logic fault
);
  localparam int BUFFER = 96;
  localparam int BEATS = 64;

  // ---- which bytes of each beat count ----
  logic [8:0] shapes[BEATS];
  logic [5:0] shape_first, shape_last;
  logic [BEAT_BYTES-1:0][7:0] arrived;
  logic [4:0] arriving;
  always_ff @(posedge clock) begin
    if (beat) shapes[shape_last] <= {beat_count, beat_skip};
    arriving <= data_valid && !reset ? shapes[shape_first][8:4] : 5'd0;
    if (data_valid) arrived <= data >> {shapes[shape_first][3:0], 3'd0};
    if (reset) begin
      shape_first <= '0;
      shape_last <= '0;
    end else begin
      if (beat) shape_last <= shape_last + 6'd1;
      if (data_valid) shape_first <= shape_first + 6'd1;
    end
  end

  // ---- records ----
  descriptor_t d;
  logic active, take, last_take;
  logic [5:0] elements, needed;
  logic [31:0] sram;
  records cut (
      .clock, .reset, .add, .added, .advance(take), .valid(active), .of(d), .elements,
      .bytes(needed), .address(sram), .last(last_take)
  );

  // ---- the stream of bytes ----
  logic [BUFFER-1:0][7:0] buffer, kept;
  logic [BEAT_BYTES-1:0][7:0] turned;  // `arrived`, so that byte 0 is the one behind what is kept
  logic [6:0] fill, kept_fill;
  always_comb begin
    take = active && fill >= {1'b0, needed};
    kept = take ? buffer >> {needed, 3'd0} : buffer;
    kept_fill = take ? fill - {1'b0, needed} : fill;
    for (int i = 0; i < BEAT_BYTES; i++) turned[i] = arrived[4'(4'(i)-kept_fill[3:0])];
  end
  always_ff @(posedge clock)
    if (reset) begin
      fill <= '0;
      fault <= 1'b0;
    end else begin
      if (arriving != 0 || take) begin
        // Bytes above the fill are rubbish of a beat, so they are overwritten, not added.
        for (int i = 0; i < BUFFER; i++) buffer[i] <= 7'(i) < kept_fill ? kept[i] : turned[i%BEAT_BYTES];
        fill <= kept_fill + {2'd0, arriving};
      end
      if ({1'b0, kept_fill} + {3'd0, arriving} > 8'(BUFFER)) fault <= 1'b1;
    end

  // ---- a record, then its values ----
  logic taken, taken_last, written_last;
  logic [RECORD_BYTES-1:0][7:0] raw;
  logic [RECORD-1:0][15:0] plain, decoded;
  logic scaled_block;
  descriptor_t of;
  logic [31:0] at;
  logic [5:0] many;
  always_ff @(posedge clock) begin
    taken <= take && !reset;
    taken_last <= take && last_take && !reset;
    if (take) begin
      raw <= buffer[RECORD_BYTES-1:0];
      of <= d;
      at <= sram;
      many <= elements;
    end
    vector_write <= taken && !reset && (of.opcode == OP_H_LOAD_V || of.opcode == OP_H_GATHER_V);
    matrix_write <= taken && !reset && of.opcode == OP_H_LOAD_M;
    column_write <= taken && !reset && of.opcode == OP_H_LOAD_T;
    fp_write <= '0;
    int_write <= '0;
    for (int i = 0; i < 4; i++)
      if (taken && !reset && i < many) begin
        fp_write[i] <= of.opcode == OP_H_LOAD_F;
        int_write[i] <= of.opcode == OP_H_LOAD_I;
      end
    if (taken) begin
      scaled_block <= is_block_scaled(of.format);
      vector_address <= at;
      matrix_address <= at;
      column_address <= at;
      word_address <= at;
      vector_count <= many;
      matrix_count <= many;
      column_stride <= of.sram_stride;
      matrix_data <= raw;
      word_data <= raw[15:0];
      for (int i = 0; i < RECORD; i++)
        case (of.format)
          FORMAT_FP32: plain[i] <= i < 4 ? float_pkg::to_bf16(raw[4*(i%4)+:4]) : 16'd0;
          FORMAT_BF16:
          if (of.opcode == OP_H_GATHER_V) plain[i] <= i < 8 ? raw[2*(i%8)+:2] : 16'd0;
          else plain[i] <= i < 8 ? float_pkg::to_bf16({raw[2*(i%8)+:2], 16'd0}) : 16'd0;
          default: plain[i] <= 16'd0;
        endcase
    end
    written_last <= taken_last && !reset;
  end
  assign finished = written_last;
  logic [RECORD-1:0][7:0] codes;
  always_comb
    for (int i = 0; i < RECORD; i++)
      codes[i] = of.format == FORMAT_MXINT4 ? 8'($signed(raw[1+i/2][4*(i%2)+:4])) : raw[1+i];
  dequantisers #(
      .COUNT(RECORD)
  ) values (
      .clock, .enable(taken && is_block_scaled(of.format)), .narrow(of.format == FORMAT_MXINT4), .code(codes), .scale(raw[0]),
      .value(decoded)
  );
  assign vector_data = scaled_block ? decoded : plain;
endmodule
