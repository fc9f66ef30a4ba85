// What a DMA instruction moves, and in which shape it lies in HBM.
package dma_pkg;
  import tripath_pkg::*;
  import core_pkg::*;

  typedef struct packed {
    logic [7:0] opcode;
    logic [31:0] hbm;
    logic [31:0] hbm_stride;
    logic [15:0] runs;  // in HBM; rows without a gap are one run
    logic [31:0] run_bytes;
    logic [31:0] sram;
    logic [31:0] sram_stride;
    logic [31:0] index;  // H_GATHER_V
    logic [15:0] rows;  // in SRAM: rows of elements, words, or bytes
    logic [23:0] cols;
    logic [3:0] format;
    logic [2:0] block;
  } descriptor_t;

  // Whether a queue (1: stores) knows an instruction.
  function automatic logic is_known(input logic store, input logic [7:0] opcode);
    case (opcode)
      OP_H_LOAD_M, OP_H_LOAD_V, OP_H_LOAD_T, OP_H_LOAD_F, OP_H_LOAD_I, OP_H_GATHER_V: is_known = !store;
      OP_H_STORE_V, OP_H_STORE_T, OP_H_STORE_I: is_known = store;
      default: is_known = 1'b0;
    endcase
  endfunction

  function automatic logic is_block_scaled(input logic [3:0] format);
    is_block_scaled = format == FORMAT_MXINT8 || format == FORMAT_MXINT4;
  endfunction

  function automatic logic [31:0] bytes_of(input logic [31:0] elements, input logic [3:0] format, input logic [2:0] block);
    case (format)
      FORMAT_FP32: bytes_of = elements << 2;
      FORMAT_BF16: bytes_of = elements << 1;
      FORMAT_MXINT8: bytes_of = elements + (elements >> block);
      default: bytes_of = (elements >> 1) + (elements >> block);
    endcase
  endfunction

  // What an instruction says, and its rows in HBM and their bytes; `runs` and `run_bytes` follow from those.
  typedef struct packed {
    descriptor_t d;
    logic [15:0] rows;
    logic [31:0] row_bytes;
  } described_t;
  function automatic described_t describe(input entry_t entry);
    h_load_m_t load_m;
    h_load_v_t load_v;  // as H_LOAD_T and H_STORE_V
    h_load_f_t words;  // as H_LOAD_I and H_STORE_I
    h_gather_v_t gather;
    h_store_t_t store_t;
    logic [15:0] rows;
    logic [31:0] row_bytes;
    descriptor_t d;
    load_m = entry.word;
    load_v = entry.word;
    words = entry.word;
    gather = entry.word;
    store_t = entry.word;
    d.opcode = entry.word[7:0];
    d.hbm = entry.address[1];
    d.hbm_stride = entry.stride[1];
    d.sram = entry.address[0];
    d.sram_stride = entry.stride[0];
    d.index = entry.address[2];
    d.format = load_v.format;
    d.block = load_v.block;
    d.rows = load_v.rows;
    d.cols = {4'd0, load_v.cols};
    row_bytes = bytes_of({12'd0, load_v.cols}, load_v.format, load_v.block);
    if (queue_of(d.opcode) == Q_DMA_OUT) begin
      d.hbm = entry.address[0];
      d.hbm_stride = entry.stride[0];
      d.sram = entry.address[1];
      d.sram_stride = entry.stride[1];
    end
    rows = d.rows;
    case (d.opcode)
      OP_H_LOAD_M: begin
        d.rows = load_m.rows;
        d.cols = load_m.row_bytes;
        rows = d.rows;
        row_bytes = {8'd0, load_m.row_bytes};
      end
      OP_H_LOAD_F, OP_H_LOAD_I, OP_H_STORE_I: begin
        d.rows = 16'd1;
        d.cols = {8'd0, words.n};
        rows = 16'd1;
        row_bytes = {14'd0, words.n, 2'd0};
      end
      OP_H_GATHER_V: begin
        d.format = FORMAT_BF16;
        d.rows = gather.rows;
        d.cols = {4'd0, gather.cols};
        rows = gather.rows;
        row_bytes = {11'd0, gather.cols, 1'b0};
      end
      OP_H_STORE_T: begin  // a row in HBM; in SRAM a block of rows for each column
        d.format = store_t.format;
        d.block = store_t.block;
        d.cols = {4'd0, store_t.cols};
        d.rows = 16'd1 << store_t.block;
        rows = 16'd1;
        row_bytes = bytes_of({12'd0, store_t.cols} << store_t.block, store_t.format, store_t.block);
      end
      default: ;
    endcase
    d.runs = '0;
    d.run_bytes = '0;
    describe = '{d: d, rows: rows, row_bytes: row_bytes};
  endfunction
endpackage
