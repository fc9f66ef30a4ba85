// Cuts descriptors into records, what passes between SRAM and HBM in a cycle: a block, or as many elements as a beat holds.
// What a descriptor's records look like is worked out in two cycles, while those of the one before pass.
module records
  import tripath_pkg::*;
  import core_pkg::*;
  import dma_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic add,
    input descriptor_t added,
    input logic advance,  // the present record passes
    output logic valid,  // there is a present record
    output descriptor_t of,
    output logic [5:0] elements,  // also words, or bytes
    output logic [5:0] bytes,  // in HBM
    output logic [31:0] address,  // in SRAM
    output logic last  // of its descriptor
);
  localparam int PLACES = 8;
  typedef struct packed {
    descriptor_t d;
    logic [23:0] more;  // records of a line behind the first
    logic [23:0] lines;
    logic [5:0] most;  // elements of a record
    logic [5:0] tail;  // of the last one of a line
    logic [31:0] step;  // from record to record, in SRAM
    logic [31:0] line_step;
    logic [5:0] most_bytes;
    logic [5:0] tail_bytes;
  } shape_t;

  descriptor_t places[PLACES];
  logic [2:0] first, behind;
  logic [3:0] count;

  function automatic logic [2:0] log_of(input descriptor_t d);  // of the elements of a record
    case (d.opcode)
      OP_H_LOAD_M: log_of = 3'd5;
      OP_H_LOAD_F, OP_H_LOAD_I, OP_H_STORE_I: log_of = 3'd2;
      default: log_of = is_block_scaled(d.format) ? d.block : d.format == FORMAT_BF16 ? 3'd3 : 3'd2;
    endcase
  endfunction
  function automatic logic [5:0] bytes_of_record(input descriptor_t d, input logic [5:0] many);
    case (d.opcode)
      OP_H_LOAD_M: bytes_of_record = many;
      OP_H_LOAD_F, OP_H_LOAD_I, OP_H_STORE_I: bytes_of_record = many << 2;
      default:
      case (d.format)
        FORMAT_FP32: bytes_of_record = many << 2;
        FORMAT_BF16: bytes_of_record = many << 1;
        FORMAT_MXINT8: bytes_of_record = many + 6'd1;
        default: bytes_of_record = (many >> 1) + 6'd1;
      endcase
    endcase
  endfunction
  function automatic shape_t shape_of(input descriptor_t d);
    logic [2:0] log;
    logic [23:0] others;
    shape_of = '0;
    log = log_of(d);
    others = (d.opcode == OP_H_STORE_T ? {8'd0, d.rows} : d.cols) - 24'd1;  // of a line, without one
    shape_of.d = d;
    shape_of.more = others >> log;
    shape_of.lines = d.opcode == OP_H_STORE_T ? d.cols : {8'd0, d.rows};
    shape_of.most = 6'd1 << log;
    shape_of.tail = (others[5:0] & ((6'd1 << log) - 6'd1)) + 6'd1;
    case (d.opcode)
      OP_H_LOAD_T, OP_H_STORE_T: begin
        shape_of.step = d.sram_stride << log;
        shape_of.line_step = d.opcode == OP_H_LOAD_T ? 32'd2 : 32'd1;
      end
      default: begin
        shape_of.step = 32'd1 << log;
        shape_of.line_step = d.sram_stride;
      end
    endcase
    shape_of.most_bytes = bytes_of_record(d, shape_of.most);
    shape_of.tail_bytes = bytes_of_record(d, shape_of.tail);
  endfunction

  // ---- the next ones ----
  logic valid0, valid1, go0, load;
  descriptor_t d0;
  shape_t s1;
  assign load = !valid || advance && last;
  assign go0 = valid0 && (!valid1 || load);
  logic fetch, passes;  // passes: straight on, for nothing waits
  assign fetch = count != 0 && (!valid0 || go0);
  assign passes = add && count == 0 && (!valid0 || go0);
  always_ff @(posedge clock) begin
    if (add) places[behind] <= added;
    if (fetch || passes) d0 <= count != 0 ? places[first] : added;
    if (go0) s1 <= shape_of(d0);
    if (reset) begin
      first <= '0;
      behind <= '0;
      count <= '0;
      valid0 <= 1'b0;
      valid1 <= 1'b0;
    end else begin
      if (add && !passes) behind <= behind + 3'd1;
      if (fetch) first <= first + 3'd1;
      count <= count + {3'd0, add && !passes} - {3'd0, fetch};
      valid0 <= fetch || passes || valid0 && !go0;
      valid1 <= go0 || valid1 && !load;
    end
  end

  // ---- the present one ----
  shape_t s;
  logic [23:0] more, lines;
  logic [31:0] line;  // where the next line begins
  logic end_of_line, last_line, single;  // single: a line is one record
  assign of = s.d;
  assign elements = end_of_line ? s.tail : s.most;
  assign bytes = end_of_line ? s.tail_bytes : s.most_bytes;
  assign last = end_of_line && last_line;
  always_ff @(posedge clock)
    if (reset) valid <= 1'b0;
    else if (load) begin
      valid <= valid1;
      s <= s1;
      more <= s1.more;
      end_of_line <= s1.more == 0;
      single <= s1.more == 0;
      lines <= s1.lines;
      last_line <= s1.lines == 1;
      address <= s1.d.sram;
      line <= s1.d.sram + s1.line_step;
    end else if (advance) begin
      if (end_of_line) begin
        more <= s.more;
        end_of_line <= single;
        lines <= lines - 24'd1;
        last_line <= lines == 2;
        address <= line;
        line <= line + s.line_step;
      end else begin
        more <= more - 24'd1;
        end_of_line <= more == 1;
        address <= address + s.step;
      end
    end
endmodule
