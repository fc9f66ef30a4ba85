// SRAM bodies are behavioural, their ports flat: what a memory compiler would deliver. A read takes a cycle where its data
// is named `data`, none (a register file) where it is named `now`.

// Vector SRAM, in BF16 elements. Every port reaches consecutive elements (`out` strided ones) from any element on.
module vector_sram
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic [2:0] read,
    input logic [2:0][31:0] read_address,
    output logic [2:0][VLEN-1:0][15:0] read_data,
    input logic [1:0] write,
    input logic [1:0][31:0] write_address,
    input logic [1:0][15:0] write_count,
    input logic [1:0][VLEN-1:0][15:0] write_data,
    input logic array_read,
    input logic [31:0] array_read_address,
    output logic [MLEN-1:0][15:0] array_read_data,
    input logic array_write,
    input logic [31:0] array_write_address,
    input logic [7:0] array_write_count,
    input logic [BLEN-1:0][15:0] array_write_data,
    input logic in_write,
    input logic [31:0] in_address,
    input logic [5:0] in_count,
    input logic [RECORD-1:0][15:0] in_data,
    input logic out_read,
    input logic [31:0] out_address,
    input logic [31:0] out_stride,
    input logic [5:0] out_count,
    output logic [RECORD-1:0][15:0] out_data
);
  localparam int BITS = $clog2(VECTOR_ELEMENTS);
  logic [15:0] memory[VECTOR_ELEMENTS]  /*verilator public_flat_rw*/;

  // Reads see what was there before the writes of the cycle.
  // verilator lint_off BLKSEQ
  always @(posedge clock) begin
    for (int port = 0; port < 3; port++)
      if (read[port])
        for (int i = 0; i < VLEN; i++) read_data[port][i] <= memory[BITS'(read_address[port]+i)];
    if (array_read) for (int i = 0; i < MLEN; i++) array_read_data[i] <= memory[BITS'(array_read_address+i)];
    if (out_read)
      for (int i = 0; i < RECORD; i++)
        if (i < out_count) out_data[i] <= memory[BITS'(out_address+i*out_stride)];
    for (int port = 0; port < 2; port++)
      if (write[port])
        for (int i = 0; i < VLEN; i++)
          if (i < write_count[port]) memory[BITS'(write_address[port]+i)] = write_data[port][i];
    if (array_write)
      for (int i = 0; i < BLEN; i++)
        if (i < array_write_count) memory[BITS'(array_write_address+i)] = array_write_data[i];
    if (in_write)
      for (int i = 0; i < RECORD; i++) if (i < in_count) memory[BITS'(in_address+i)] = in_data[i];
  end
endmodule

// Matrix SRAM, in bytes. A read fetches a scale and eight codes for each group of eight elements of a column.
module matrix_sram
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic read,
    input logic [GROUPS-1:0][31:0] scale_address,
    input logic [GROUPS-1:0][31:0] code_address,
    output logic [GROUPS-1:0][7:0] scale_data,
    output logic [GROUPS-1:0][7:0][7:0] code_data,
    input logic write,
    input logic [31:0] write_address,
    input logic [5:0] write_count,
    input logic [RECORD_BYTES-1:0][7:0] write_data,
    input logic column_write,  // two bytes each, a stride apart
    input logic [31:0] column_address,
    input logic [31:0] column_stride,
    input logic [5:0] column_count,
    input logic [RECORD-1:0][15:0] column_data
);
  localparam int BITS = $clog2(MATRIX_BYTES);
  logic [7:0] memory[MATRIX_BYTES]  /*verilator public_flat_rw*/;

  always @(posedge clock) begin
    if (read)
      for (int group = 0; group < GROUPS; group++) begin
        scale_data[group] <= memory[BITS'(scale_address[group])];
        for (int i = 0; i < 8; i++) code_data[group][i] <= memory[BITS'(code_address[group]+i)];
      end
    if (write)
      for (int i = 0; i < RECORD_BYTES; i++)
        if (i < write_count) memory[BITS'(write_address+i)] = write_data[i];
    if (column_write)
      for (int i = 0; i < RECORD; i++)
        if (i < column_count) begin
          memory[BITS'(column_address+i*column_stride)] = column_data[i][7:0];
          memory[BITS'(column_address+i*column_stride+1)] = column_data[i][15:8];
        end
  end
endmodule

// verilator lint_on BLKSEQ

// FP and Int SRAM: 32-bit entries. One wide port each way, ports of four words for the DMA, single ones for the rest.
module scalar_sram
  import tripath_pkg::*;
#(
    parameter int ENTRIES = 256,
    parameter int READS = 2,
    parameter int WIDE_READS = 2,
    parameter int WRITES = 2
) (
    input logic clock,
    input logic [READS-1:0][31:0] read_address,
    output logic [READS-1:0][31:0] read_now,
    input logic [WIDE_READS-1:0] wide_read,
    input logic [WIDE_READS-1:0][31:0] wide_read_address,
    output logic [WIDE_READS-1:0][VLEN-1:0][31:0] wide_read_data,
    input logic [WRITES-1:0] write,
    input logic [WRITES-1:0][31:0] write_address,
    input logic [WRITES-1:0][31:0] write_data,
    input logic [VLEN-1:0] wide_write,
    input logic [31:0] wide_write_address,
    input logic [VLEN-1:0][31:0] wide_write_data,
    input logic out_read,
    input logic [31:0] out_address,
    output logic [3:0][31:0] out_data,
    input logic [3:0] in_write,
    input logic [31:0] in_address,
    input logic [3:0][31:0] in_data
);
  localparam int BITS = $clog2(ENTRIES);
  logic [31:0] memory[ENTRIES]  /*verilator public_flat_rw*/;

  always_comb for (int port = 0; port < READS; port++) read_now[port] = memory[BITS'(read_address[port])];

  always_ff @(posedge clock) begin
    for (int port = 0; port < WIDE_READS; port++)
      if (wide_read[port])
        for (int i = 0; i < VLEN; i++) wide_read_data[port][i] <= memory[BITS'(wide_read_address[port]+i)];
    if (out_read) for (int i = 0; i < 4; i++) out_data[i] <= memory[BITS'(out_address+i)];
    for (int port = 0; port < WRITES; port++)
      if (write[port]) memory[BITS'(write_address[port])] <= write_data[port];
    for (int part = 0; part < VLEN / 8; part++)
      for (int i = 0; i < 8; i++)
        if (wide_write[8*part+i]) memory[BITS'(wide_write_address+8*part+i)] <= wide_write_data[8*part+i];
    for (int i = 0; i < 4; i++) if (in_write[i]) memory[BITS'(in_address+i)] <= in_data[i];
  end
endmodule

// Program memory: the host writes it before the start.
module program_sram
  import tripath_pkg::*;
(
    input logic clock,
    input logic [15:0] address,
    output logic [127:0] data,
    input logic write,
    input logic [15:0] write_address,
    input logic [127:0] write_data
);
  localparam int BITS = $clog2(PROGRAM_WORDS);
  logic [127:0] memory[PROGRAM_WORDS];
  always_ff @(posedge clock) begin
    data <= memory[BITS'(address)];
    if (write) memory[BITS'(write_address)] <= write_data;
  end
endmodule
