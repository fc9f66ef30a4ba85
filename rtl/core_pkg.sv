// What the parts of the core hand to each other.
package core_pkg;
  import tripath_pkg::*;
  localparam int RECORD = 32;  // elements of the longest block
  localparam int RECORD_BYTES = RECORD + 1;
  localparam int GROUPS = MLEN / 8;

  typedef logic [31:0] address_t;
  typedef logic [15:0] pc_t;
  typedef logic [63:0][3:0] tokens_t;  // tokens given, per semaphore

  // The tokens, and one more of each of two semaphores (0: none).
  function automatic tokens_t with_signals(input tokens_t tokens, input logic [5:0] signal0, input logic [5:0] signal1);
    with_signals = tokens;
    if (signal0 != 0) with_signals[signal0] = with_signals[signal0] + 4'd1;
    if (signal1 != 0) with_signals[signal1] = with_signals[signal1] + 4'd1;
  endfunction

  // A dispatched instruction: its word, where its address registers point, row strides of the first two.
  typedef struct packed {
    pc_t pc;
    logic [127:0] word;
    logic [PORTS-1:0][31:0] address;
    logic [1:0][31:0] stride;
  } entry_t;

  // What an instruction changes of the address registers.
  typedef struct packed {
    logic set_base;
    logic set_step;
    logic set_rows;
    logic set_ring;
    logic next;  // loop `level` goes round, or leaves
    logic advance;  // ring `ring` moves on, or starts again
    logic ends;  // the loop leaves, the ring starts again
    logic [REGISTER_BITS-1:0] number;  // of the register that is set
    logic [3:0] level;
    logic [3:0] ring;
    logic [31:0] value;
  } change_t;
endpackage
