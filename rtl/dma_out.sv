// Stores: records are read from Vector or Int SRAM and quantised, one a cycle; their bytes become beats of HBM.
module dma_out
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic begins,
    input descriptor_t begun,
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
  localparam int ENOUGH = 80;  // bytes from which on nothing more is read: five records may still come
  localparam int PLACES = 8;

  descriptor_t places[PLACES];
  logic [2:0] read_place, drain_place, last;
  logic [3:0] read_count, drain_count;
  descriptor_t d, out;
  logic read_end, drain_end;
  assign d = places[read_place];
  assign out = places[drain_place];
  always_ff @(posedge clock)
    if (reset) begin
      read_place <= '0;
      drain_place <= '0;
      last <= '0;
      read_count <= '0;
      drain_count <= '0;
    end else begin
      if (begins) begin
        places[last] <= begun;
        last <= last + 3'd1;
      end
      if (read_end) read_place <= read_place + 3'd1;
      if (drain_end) drain_place <= drain_place + 3'd1;
      read_count <= read_count + {3'd0, begins} - {3'd0, read_end};
      drain_count <= drain_count + {3'd0, begins} - {3'd0, drain_end};
    end

  // ---- records: along a row, or (H_STORE_T) down a column ----
  logic fresh, go, down, end_of_line, end_of_all;
  logic [15:0] line;  // row, or column
  logic [23:0] done_, length, left;
  logic [31:0] line_sram;
  logic [5:0] most, elements;
  logic [8:0] fill;
  logic [31:0] line_now;
  logic [23:0] done_now;
  logic [15:0] index_now;
  always_comb begin
    down = d.opcode == OP_H_STORE_T;
    length = down ? {8'd0, d.rows} : d.cols;
    most = d.opcode == OP_H_STORE_I ? 6'd4 :
        is_block_scaled(d.format) ? 6'd1 << d.block : d.format == BF16 ? 6'd8 : 6'd4;
    done_now = fresh ? '0 : done_;
    line_now = fresh ? d.sram : line_sram;
    index_now = fresh ? '0 : line;
    left = length - done_now;
    elements = left < 24'(most) ? 6'(left) : most;
    go = read_count != 0 && fill <= 9'(ENOUGH);
    end_of_line = left == 24'(elements);
    end_of_all = end_of_line && {8'd0, index_now} == (down ? d.cols : {8'd0, d.rows}) - 24'd1;
    read_end = go && end_of_all;
    vector_read = go && d.opcode != OP_H_STORE_I;
    int_read = go && d.opcode == OP_H_STORE_I;
    vector_address = line_now + (down ? 32'(done_now) * d.sram_stride : 32'(done_now));
    vector_stride = down ? d.sram_stride : 32'd1;
    vector_count = elements;
    int_address = line_now + 32'(done_now);
  end
  always_ff @(posedge clock)
    if (reset) fresh <= 1'b1;
    else if (go) begin
      fresh <= end_of_all;
      done_ <= end_of_line ? '0 : done_now + 24'(elements);
      line <= end_of_line ? index_now + 16'd1 : index_now;
      line_sram <= end_of_line ? line_now + (down ? 32'd1 : d.sram_stride) : line_now;
    end

  // ---- data, scale, bytes ----
  typedef struct packed {
    logic words;
    logic [3:0] format;
    logic [5:0] elements;
  } kind_t;
  logic v1, v2, v3;
  kind_t k1, k2;
  logic [RECORD-1:0][15:0] present1, values2;
  logic [3:0][31:0] words2;
  logic [7:0] field1, scale2;
  logic [15:0][7:0] bytes2, plain3;
  logic [RECORD_BYTES-1:0][7:0] bytes3;
  logic [RECORD-1:0][7:0] codes3;
  logic [7:0] scale3;
  logic [3:0] format3;
  logic [5:0] count3;
  always_comb begin
    for (int i = 0; i < RECORD; i++) present1[i] = i < k1.elements ? vector_data[i] : 16'd0;
    field1 = '0;
    for (int part = 0; part < RECORD / 8; part++)
      if (quantise_pkg::largest_field(present1[8*part+:8]) > field1) field1 = quantise_pkg::largest_field(present1[8*part+:8]);
    bytes2 = '0;
    if (k2.words) bytes2[15:0] = words2;
    else
      case (k2.format)
        FP32: for (int i = 0; i < 4; i++) bytes2[4*i+:4] = {values2[i], 16'd0};
        BF16: for (int i = 0; i < 8; i++) bytes2[2*i+:2] = float_pkg::to_bf16({values2[i], 16'd0});
        default: ;
      endcase
  end
  always_ff @(posedge clock) begin
    v1 <= go && !reset;
    v2 <= v1 && !reset;
    v3 <= v2 && !reset;
    if (go) k1 <= '{words: int_read, format: d.format, elements: elements};
    if (v1) begin
      k2 <= k1;
      values2 <= vector_data;
      words2 <= int_data;
      scale2 <= quantise_pkg::scale_of(field1);
    end
    if (v2) begin
      plain3 <= bytes2;
      scale3 <= scale2;
      format3 <= k2.words ? BF16 : k2.format;
      if (k2.words) count3 <= k2.elements << 2;
      else
        case (k2.format)
          FP32: count3 <= k2.elements << 2;
          BF16: count3 <= k2.elements << 1;
          MXINT8: count3 <= k2.elements + 6'd1;
          default: count3 <= (k2.elements >> 1) + 6'd1;
        endcase
    end
  end

  quantisers #(
      .COUNT(RECORD)
  ) codes (
      .clock, .enable(v2 && is_block_scaled(k2.format)), .narrow(k2.format == MXINT4), .x(values2),
      .scale({RECORD{scale2}}), .code(codes3)
  );
  always_comb begin
    bytes3 = '0;
    case (format3)
      MXINT8: bytes3 = {codes3, scale3};
      MXINT4: begin
        bytes3[0] = scale3;
        for (int i = 0; i < RECORD; i++) bytes3[1+i/2][4*(i%2)+:4] = codes3[i][3:0];
      end
      default: bytes3[15:0] = plain3;
    endcase
  end

  // ---- beats ----
  logic [BUFFER-1:0][7:0] buffer;
  logic [31:0] place, run_left;
  logic [15:0] run;
  logic drain_fresh;
  logic [31:0] place_now, left_now, run_base, base_now;
  logic [4:0] room, size;
  logic send;
  logic [8:0] kept_fill;
  always_comb begin
    base_now = drain_fresh ? out.hbm : run_base;
    place_now = drain_fresh ? out.hbm : place;
    left_now = drain_fresh ? out.run_bytes : run_left;
    room = 5'd16 - {1'b0, place_now[3:0]};
    size = left_now < {27'd0, room} ? left_now[4:0] : room;
    send = drain_count != 0 && fill >= {4'd0, size};
    drain_end = send && left_now == {27'd0, size} && (drain_fresh ? 16'd0 : run) == out.runs - 16'd1;
    kept_fill = send ? fill - {4'd0, size} : fill;
  end
  always_ff @(posedge clock)
    if (reset) begin
      fill <= '0;
      write <= 1'b0;
      finished <= 1'b0;
      fault <= 1'b0;
      drain_fresh <= 1'b1;
    end else begin
      logic [BUFFER-1:0][7:0] kept;
      if (send || v3) begin
        kept = send ? buffer >> {size, 3'd0} : buffer;
        if (v3)
          for (int i = 0; i < RECORD_BYTES; i++)
            if (i < count3) kept[8'(kept_fill)+8'(i)] = bytes3[i];
        buffer <= kept;
        fill <= kept_fill + (v3 ? {3'd0, count3} : 9'd0);
        if (kept_fill + (v3 ? {3'd0, count3} : 9'd0) > 9'(BUFFER)) fault <= 1'b1;
      end
      write <= send;
      write_address <= {place_now[31:4], 4'd0};
      if (send)
        for (int i = 0; i < BEAT_BYTES; i++) begin
          write_strobe[i] <= i >= place_now[3:0] && 5'(i) < {1'b0, place_now[3:0]} + size;
          write_data[i] <= buffer[8'(4'(i)-place_now[3:0])];
        end
      if (send) begin
        drain_fresh <= drain_end;
        if (left_now == {27'd0, size}) begin
          run <= drain_fresh ? 16'd1 : run + 16'd1;
          run_base <= base_now + out.hbm_stride;
          place <= base_now + out.hbm_stride;
          run_left <= out.run_bytes;
        end else begin
          run <= drain_fresh ? 16'd0 : run;
          run_base <= base_now;
          place <= place_now + {27'd0, size};
          run_left <= left_now - {27'd0, size};
        end
      end
      finished <= drain_end;
    end
endmodule
