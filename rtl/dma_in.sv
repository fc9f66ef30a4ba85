// Loads: beats of HBM become a stream of bytes, records of it are de-quantised and written, a record a cycle.
module dma_in
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic begins,
    input descriptor_t begun,
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
  localparam int PLACES = 8;

  // ---- descriptors that HBM serves, and which bytes of each beat count ----
  descriptor_t places[PLACES];
  logic [2:0] first, last;
  logic [3:0] count;
  logic [8:0] shapes[BEATS];
  logic [5:0] shape_first, shape_last;
  descriptor_t d;
  logic active, next, take, last_take;
  assign next = count != 0 && (!active || take && last_take);
  always_ff @(posedge clock)
    if (reset) begin
      first <= '0;
      last <= '0;
      count <= '0;
      shape_first <= '0;
      shape_last <= '0;
    end else begin
      if (begins) begin
        places[last] <= begun;
        last <= last + 3'd1;
      end
      if (next) first <= first + 3'd1;
      count <= count + {3'd0, begins} - {3'd0, next};
      if (beat) begin
        shapes[shape_last] <= {beat_count, beat_skip};
        shape_last <= shape_last + 6'd1;
      end
      if (data_valid) shape_first <= shape_first + 6'd1;
    end

  // ---- the stream of bytes ----
  logic [BUFFER-1:0][7:0] buffer, kept;
  logic [6:0] fill, kept_fill, needed;
  logic [4:0] arriving;
  logic [BEAT_BYTES-1:0][7:0] arrived;
  always_comb begin
    arriving = data_valid ? shapes[shape_first][8:4] : 5'd0;
    arrived = data >> {shapes[shape_first][3:0], 3'd0};
    kept = take ? buffer >> {needed, 3'd0} : buffer;
    kept_fill = take ? fill - needed : fill;
  end
  always_ff @(posedge clock)
    if (reset) begin
      fill <= '0;
      fault <= 1'b0;
    end else begin
      if (data_valid || take) begin
        // Bytes above the fill are rubbish of a beat, so they are overwritten, not added.
        for (int i = 0; i < BUFFER; i++)
          buffer[i] <= 7'(i) < kept_fill ? kept[i] : 7'(i) - kept_fill < 7'd16 ? arrived[4'(7'(i)-kept_fill)] : 8'd0;
        fill <= kept_fill + {2'd0, arriving};
      end
      if (kept_fill + {2'd0, arriving} > 7'(BUFFER)) fault <= 1'b1;
    end

  // ---- records: as many elements, words or bytes as a cycle takes ----
  logic [15:0] row;
  logic [23:0] left;
  logic [31:0] sram, row_sram;
  logic [5:0] elements, most;
  always_comb begin
    case (d.opcode)
      OP_H_LOAD_M: most = 6'(RECORD_BYTES);
      OP_H_LOAD_F, OP_H_LOAD_I: most = 6'd4;
      default: most = is_block_scaled(d.format) ? 6'd1 << d.block : d.format == BF16 ? 6'd8 : 6'd4;
    endcase
    elements = left < 24'(most) ? 6'(left) : most;
    case (d.opcode)
      OP_H_LOAD_M: needed = {1'b0, elements};
      OP_H_LOAD_F, OP_H_LOAD_I: needed = {elements[4:0], 2'd0};
      default:
      case (d.format)
        FP32: needed = {elements[4:0], 2'd0};
        BF16: needed = {elements, 1'd0};
        MXINT8: needed = {1'b0, elements} + 7'd1;
        default: needed = {2'd0, elements[5:1]} + 7'd1;
      endcase
    endcase
    take = active && fill >= needed;
    last_take = left == 24'(elements) && row == d.rows - 16'd1;
  end
  always_ff @(posedge clock)
    if (reset) active <= 1'b0;
    else begin
      if (take) begin
        if (left != 24'(elements)) begin
          left <= left - 24'(elements);
          sram <= sram + (d.opcode == OP_H_LOAD_T ? d.sram_stride * {26'd0, elements} : {26'd0, elements});
        end else begin
          left <= d.cols;
          row <= row + 16'd1;
          row_sram <= row_sram + (d.opcode == OP_H_LOAD_T ? 32'd2 : d.sram_stride);
          sram <= row_sram + (d.opcode == OP_H_LOAD_T ? 32'd2 : d.sram_stride);
          if (last_take) active <= 1'b0;
        end
      end
      if (next) begin
        active <= 1'b1;
        d <= places[first];
        left <= places[first].cols;
        row <= '0;
        row_sram <= places[first].sram;
        sram <= places[first].sram;
      end
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
          FP32: plain[i] <= i < 4 ? float_pkg::to_bf16(raw[4*(i%4)+:4]) : 16'd0;
          BF16:
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
      codes[i] = of.format == MXINT4 ? 8'($signed(raw[1+i/2][4*(i%2)+:4])) : raw[1+i];
  dequantisers #(
      .COUNT(RECORD)
  ) values (
      .clock, .enable(taken && is_block_scaled(of.format)), .narrow(of.format == MXINT4), .code(codes), .scale(raw[0]),
      .value(decoded)
  );
  assign vector_data = scaled_block ? decoded : plain;
endmodule
