// Stores: records are read from Vector or Int SRAM and quantised, one a cycle; their bytes become beats of HBM.
module dma_out
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic add,
    input descriptor_t added,
    input logic beat,
    input logic [31:0] beat_address,
    input logic [3:0] beat_skip,
    input logic [4:0] beat_count,
    input logic beat_ends,  // a descriptor
    output logic vector_read,
    output logic [31:0] vector_address,
    output logic [31:0] vector_stride,
    output logic [5:0] vector_count,
    input logic [RECORD-1:0][15:0] vector_data,
    output logic int_read,
    output logic [31:0] int_address,
    input logic [3:0][31:0] int_data,
    output logic write,
    output logic [31:0] write_address,
    output logic [BEAT_BYTES-1:0] write_strobe,
    output logic [BEAT_BYTES-1:0][7:0] write_data,
    output logic finished,
    output logic fault
);
  localparam int BUFFER = 256;
  localparam int BEATS = 128;

  // ---- records: along a row, or (H_STORE_T) down a column; read ahead of their turn on HBM while there is room ----
  descriptor_t d;
  logic active, go;
  logic [5:0] elements, bytes;
  logic last_record;
  logic [8:0] reserved;  // bytes in the buffer and on their way to it
  records cut (
      .clock, .reset, .add, .added, .advance(go), .valid(active), .of(d), .elements, .bytes,
      .address(vector_address), .last(last_record)
  );
  assign go = active && reserved <= 9'(BUFFER - RECORD_BYTES);
  assign vector_read = go && d.opcode != OP_H_STORE_I;
  assign int_read = go && d.opcode == OP_H_STORE_I;
  assign vector_stride = d.opcode == OP_H_STORE_T ? d.sram_stride : 32'd1;
  assign vector_count = elements;
  assign int_address = vector_address;

  // ---- data, scale, bytes ----
  typedef struct packed {
    logic words;
    logic [3:0] format;
    logic [5:0] elements;
    logic [5:0] bytes;
  } kind_t;
  logic v1, v2, v3, v4, v5;
  kind_t k1, k2, k3;
  logic [RECORD-1:0][15:0] present1, values2, values3;
  logic [3:0][31:0] words2, words3;
  logic [RECORD/8-1:0][7:0] field1, field2;
  logic [7:0] largest2, scale3, scale4;
  logic [15:0][7:0] bytes3, plain4;
  logic [RECORD_BYTES-1:0][7:0] bytes4;
  logic [RECORD-1:0][7:0] codes4;
  logic [3:0] format4;
  logic [5:0] count4;
  always_comb begin
    for (int i = 0; i < RECORD; i++) present1[i] = i < k1.elements ? vector_data[i] : 16'd0;
    for (int part = 0; part < RECORD / 8; part++) field1[part] = quantise_pkg::largest_field(present1[8*part+:8]);
    largest2 = '0;
    for (int part = 0; part < RECORD / 8; part++) if (field2[part] > largest2) largest2 = field2[part];
    bytes3 = '0;
    if (k3.words) bytes3 = words3;
    else
      case (k3.format)
        FORMAT_FP32: for (int i = 0; i < 4; i++) bytes3[4*i+:4] = {values3[i], 16'd0};
        FORMAT_BF16: for (int i = 0; i < 8; i++) bytes3[2*i+:2] = float_pkg::to_bf16({values3[i], 16'd0});
        default: ;
      endcase
  end
  always_ff @(posedge clock) begin
    v1 <= go && !reset;
    v2 <= v1 && !reset;
    v3 <= v2 && !reset;
    v4 <= v3 && !reset;
    if (go) k1 <= '{words: int_read, format: d.format, elements: elements, bytes: bytes};
    if (v1) begin
      k2 <= k1;
      values2 <= vector_data;
      words2 <= int_data;
      field2 <= field1;
    end
    if (v2) begin
      k3 <= k2;
      values3 <= values2;
      words3 <= words2;
      scale3 <= quantise_pkg::scale_of(largest2);
    end
    if (v3) begin
      plain4 <= bytes3;
      scale4 <= scale3;
      format4 <= k3.words ? FORMAT_BF16 : k3.format;
      count4 <= k3.bytes;
    end
  end

  quantisers #(
      .COUNT(RECORD)
  ) codes (
      .clock, .enable(v3 && is_block_scaled(k3.format)), .narrow(k3.format == FORMAT_MXINT4), .x(values3),
      .scale({RECORD{scale3}}), .code(codes4)
  );
  always_comb begin
    bytes4 = '0;
    case (format4)
      FORMAT_MXINT8: bytes4 = {codes4, scale4};
      FORMAT_MXINT4: begin
        bytes4[0] = scale4;
        for (int i = 0; i < RECORD; i++) bytes4[1+i/2][4*(i%2)+:4] = codes4[i][3:0];
      end
      default: bytes4[15:0] = plain4;
    endcase
  end

  // ---- a ring of beats: a record is turned to its place, then written ----
  localparam int ROWS = BUFFER / BEAT_BYTES;
  localparam int SPAN = 48;  // bytes of the rows that a record touches
  logic [7:0] put, take;  // where the next record begins, where the next beat is taken
  logic [3:0] row5;
  logic [5:0] count5;
  logic [SPAN-1:0][7:0] turned5;
  logic [SPAN-1:0] strobe5;
  logic [ROWS-1:0][BEAT_BYTES-1:0][7:0] buffer;
  logic [8:0] fill;
  logic send;
  logic [4:0] size;
  always_ff @(posedge clock) begin
    v5 <= v4 && !reset;
    if (v4) begin
      row5 <= put[7:4];
      count5 <= count4;
      turned5 <= {{(SPAN - RECORD_BYTES) {8'd0}}, bytes4} << {put[3:0], 3'd0};
      for (int i = 0; i < SPAN; i++) strobe5[i] <= 6'(i) >= {2'd0, put[3:0]} && 7'(i) < {3'd0, put[3:0]} + {1'b0, count4};
    end
    if (v5)
      for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < SPAN / BEAT_BYTES; part++)
          for (int i = 0; i < BEAT_BYTES; i++)
            if (4'(row5 + 4'(part)) == 4'(row) && strobe5[BEAT_BYTES*part+i]) buffer[row][i] <= turned5[BEAT_BYTES*part+i];
    if (reset) begin
      put <= '0;
      take <= '0;
      fill <= '0;
      reserved <= '0;
    end else begin
      if (v4) put <= put + {2'd0, count4};
      if (send) take <= take + {3'd0, size};
      fill <= fill + (v5 ? {3'd0, count5} : 9'd0) - (send ? {4'd0, size} : 9'd0);
      reserved <= reserved + (go ? {3'd0, bytes} : 9'd0) - (send ? {4'd0, size} : 9'd0);
    end
  end

  // ---- beats: as the walker says, as soon as their bytes are there ----
  typedef struct packed {
    logic ends;
    logic [27:0] place;
    logic [3:0] skip;
    logic [4:0] count;
  } beat_t;
  beat_t beats[BEATS];
  beat_t present;
  logic [$clog2(BEATS)-1:0] beat_first, beat_last;
  logic [$clog2(BEATS):0] waiting;
  logic ready, fetch;
  logic [7:0] from;  // place in the ring of the beat's byte 0
  assign size = present.count;
  assign send = ready && fill >= {4'd0, size};
  assign fetch = waiting != 0 && (!ready || send);
  assign from = take - {4'd0, present.skip};
  always_ff @(posedge clock) begin
    if (beat) beats[beat_last] <= '{ends: beat_ends, place: beat_address[31:4], skip: beat_skip, count: beat_count};
    if (fetch) present <= beats[beat_first];
    write_address <= {present.place, 4'd0};
    for (int i = 0; i < BEAT_BYTES; i++) begin
      logic [7:0] at;
      at = from + 8'(i);
      write_strobe[i] <= 5'(i) >= {1'b0, present.skip} && 6'(i) < {2'd0, present.skip} + {1'b0, size};
      write_data[i] <= buffer[at[7:4]][at[3:0]];
    end
    if (reset) begin
      beat_first <= '0;
      beat_last <= '0;
      waiting <= '0;
      ready <= 1'b0;
      write <= 1'b0;
      finished <= 1'b0;
      fault <= 1'b0;
    end else begin
      if (beat) beat_last <= beat_last + 1'b1;
      if (fetch) beat_first <= beat_first + 1'b1;
      waiting <= waiting + ($clog2(BEATS) + 1)'(beat) - ($clog2(BEATS) + 1)'(fetch);
      ready <= fetch || ready && !send;
      write <= send;
      finished <= send && present.ends;
      if (waiting == ($clog2(BEATS) + 1)'(BEATS) && beat && !fetch) fault <= 1'b1;
    end
  end
endmodule
