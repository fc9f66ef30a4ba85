// The core: front end, four queues, matrix unit, vector and scalar unit, two DMA units, SRAMs, semaphores.
module core
  import tripath_pkg::*;
  import core_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic run,
    // registers of the host
    input logic serial,
    input logic [3:0][7:0] depth,
    input logic [7:0] outstanding,
    input logic program_write,
    input logic [15:0] program_address,
    input logic [127:0] program_data,
    // HBM: a beat is asked for every cycle at most; data come in order. Writes have a strobe for each byte.
    output logic read_valid,
    output logic [31:0] read_address,
    input logic data_valid,
    input logic [8*BEAT_BYTES-1:0] data,
    output logic write_valid,
    output logic [31:0] write_address,
    output logic [BEAT_BYTES-1:0] write_strobe,
    output logic [8*BEAT_BYTES-1:0] write_data,
    // what happens in this cycle
    output logic [31:0] now,
    output logic control,
    output pc_t control_pc,
    output logic [3:0] start,  // matrix, vector; a sync of the DMA queues
    output logic [3:0][15:0] start_pc,
    output logic [3:0][15:0] start_latency,
    output logic [1:0] accept,  // a descriptor will be served
    output pc_t accepted_pc,
    output logic [1:0] begins,  // its turn on HBM begins, BEHIND cycles ago
    output logic [1:0] ends,  // its last beat passed, BEHIND cycles ago
    output logic done,
    output logic quiet,
    output logic fault
);
  // ---- semaphores ----
  // Of each semaphore one unit gives and one takes the tokens.
  logic [63:0][10:0] gives, takes, takes_next;  // takes_next: one more
  tokens_t [3:0] given;
  logic [3:0][1:0][5:0] given_late;
  logic [3:0] immediate;
  logic [3:0] pop;
  entry_t [3:0] head;
  logic front_take;
  logic [5:0] front_take_number;

  logic [3:0] tokens, valid, push;
  logic [63:0] some, several;  // tokens
  logic overflow;
  always_comb begin
    for (int s = 0; s < 64; s++) begin
      some[s] = gives[s] != takes[s] || s == 0;
      several[s] = gives[s] != takes[s] && gives[s] != takes_next[s] || s == 0;
    end
    for (int q = 0; q < 4; q++)
      tokens[q] = some[head[q].word[13:8]] && some[head[q].word[19:14]] &&
          (head[q].word[13:8] != head[q].word[19:14] || several[head[q].word[13:8]]);
  end
  always_ff @(posedge clock)
    if (reset) begin
      gives <= '0;
      takes <= '0;
      takes_next <= {64{11'd1}};
      overflow <= 1'b0;
    end else
      for (int s = 1; s < 64; s++) begin
        logic [3:0] early;
        logic [10:0] known;  // whatever starts in this cycle
        logic [1:0] late, now_given, down;
        early = '0;
        late = '0;
        now_given = '0;
        down = {1'b0, front_take && front_take_number == 6'(s)};
        for (int q = 0; q < 4; q++) begin
          logic [1:0] signals, waits;
          signals = {1'b0, head[q].word[25:20] == 6'(s)} + {1'b0, head[q].word[31:26] == 6'(s)};
          waits = {1'b0, head[q].word[13:8] == 6'(s)} + {1'b0, head[q].word[19:14] == 6'(s)};
          early = early | given[q][s];
          late = late | ({1'b0, given_late[q][0] == 6'(s)} + {1'b0, given_late[q][1] == 6'(s)});
          if (pop[q] && immediate[q]) now_given = now_given | signals;
          if (pop[q]) down = down | waits;
        end
        known = gives[s] + {7'd0, early} + {9'd0, late};
        gives[s] <= now_given == 0 ? known : now_given == 1 ? known + 11'd1 : known + 11'd2;
        takes[s] <= down == 0 ? takes[s] : down == 1 ? takes_next[s] : takes[s] + 11'd2;
        takes_next[s] <= down == 0 ? takes_next[s] : down == 1 ? takes[s] + 11'd2 : takes[s] + 11'd3;
        if (11'(gives[s] - takes[s]) > 11'd1024) overflow <= 1'b1;
      end

  // ---- front end and queues ----
  logic [15:0] fetch_address;
  logic [127:0] word;
  entry_t entry;
  logic [31:0] flag_address, flag;
  logic [3:0] idle, busy, none, free, refill, move;
  logic [3:0][15:0] latency;
  entry_t [3:0] coming;
  logic started, empty;
  logic [2:0] unknown;  // an instruction that its unit does not know
  always_ff @(posedge clock)
    if (reset) begin
      now <= '0;
      started <= 1'b0;
    end else begin
      if (run) started <= 1'b1;
      if (started) now <= now + 1;
    end
  assign idle = none & ~busy;
  program_sram program_memory (
      .clock, .address(fetch_address), .data(word), .write(program_write), .write_address(program_address),
      .write_data(program_data)
  );
  front_end front (
      .clock, .reset, .run, .serial, .depth, .fetch_address, .word, .pop, .idle, .push, .entry,
      .token(some[word[13:8]]), .take(front_take), .take_number(front_take_number), .flag_address, .flag,
      .control, .pc(control_pc), .done, .empty, .fault(unknown[0])
  );
  for (genvar q = 0; q < 4; q++) begin : queues
    queue places (
        .clock, .reset, .push(push[q]), .in(entry), .pop(pop[q]), .valid(valid[q]), .head(head[q]),
        .latency(latency[q]), .free(free[q]), .empty(none[q]), .refill(refill[q]), .coming(coming[q]),
        .move(move[q])
    );
    assign start_pc[q] = head[q].pc;
    assign start_latency[q] = q < 2 ? latency[q] : 16'd1;
  end

  // ---- matrix ----
  logic [1:0] retire_fault;
  assign pop[0] = valid[0] && tokens[0] && free[0];
  vector_control control_of_vector (
      .clock, .reset, .valid(valid[1]), .latency(latency[1]), .free(free[1]), .tokens(tokens[1]),
      .refill(refill[1]), .coming(coming[1]), .move(move[1]), .start(pop[1])
  );
  for (genvar q = 0; q < 2; q++) begin : retirements
    retirement tokens_of (
        .clock, .reset, .start(pop[q]), .latency(latency[q]), .signal0(head[q].word[25:20]),
        .signal1(head[q].word[31:26]), .busy(busy[q]), .immediate(immediate[q]), .given(given[q]), .given_late(given_late[q]), .fault(retire_fault[q])
    );
  end

  logic weights_read, acts_read, out_write;
  logic [GROUPS-1:0][31:0] scale_address, code_address;
  logic [GROUPS-1:0][7:0] scale_data;
  logic [GROUPS-1:0][7:0][7:0] code_data;
  logic [31:0] acts_address, out_address;
  logic [MLEN-1:0][15:0] acts_data;
  logic [7:0] out_count;
  logic [BLEN-1:0][15:0] out_data;
  matrix_unit matrix (
      .clock, .reset, .start(pop[0] && !is_sync(head[0].word[7:0])), .in(head[0]), .weights_read, .scale_address,
      .code_address, .scale_data, .code_data, .acts_read, .acts_address, .acts_data, .out_write, .out_address,
      .out_count, .out_data, .fault(unknown[1])
  );

  // ---- vector and scalar ----
  logic [2:0] vector_read;
  logic [2:0][31:0] vector_read_address;
  logic [2:0][VLEN-1:0][15:0] vector_read_data;
  logic [1:0] vector_write;
  logic [1:0][31:0] vector_write_address;
  logic [1:0][15:0] vector_write_count;
  logic [1:0][VLEN-1:0][15:0] vector_write_data;
  logic [1:0][31:0] fp_read_address, fp_read_now;
  logic fp_wide_read;
  logic [VLEN-1:0][31:0] fp_wide_data;
  logic [3:0] fp_write;
  logic [3:0][31:0] fp_write_address, fp_write_data;
  logic [31:0] int_read_address, index_address;
  logic [2:0][31:0] int_read_now;
  logic [1:0] int_wide_read;
  logic [1:0][31:0] int_wide_address;
  logic [1:0][VLEN-1:0][31:0] int_wide_data;
  logic [1:0] int_write;
  logic [1:0][31:0] int_write_address, int_write_data;
  logic [VLEN-1:0] int_wide_write;
  logic [31:0] int_wide_write_address;
  logic [VLEN-1:0][31:0] int_wide_write_data;
  vector_unit vector (
      .clock, .reset, .start(pop[1] && !is_sync(head[1].word[7:0])), .in(head[1]), .read(vector_read),
      .read_address(vector_read_address), .read_data(vector_read_data), .write(vector_write),
      .write_address(vector_write_address), .write_count(vector_write_count), .write_data(vector_write_data),
      .fp_read_address, .fp_read_now, .fp_wide_read, .fp_wide_data, .fp_write, .fp_write_address, .fp_write_data,
      .int_read_address, .int_read_now(int_read_now[0]), .int_wide_read, .int_wide_address, .int_wide_data, .int_write,
      .int_write_address, .int_write_data, .int_wide_write, .int_wide_write_address, .int_wide_write_data,
      .fault(unknown[2])
  );

  // ---- DMA ----
  logic in_fault, out_fault, dma_fault, in_vector, in_matrix, in_column;
  logic [1:0] beat;
  logic [3:0] beat_skip, in_fp, in_int;
  logic [4:0] beat_count;
  logic [1:0] complete, finished;
  dma_pkg::descriptor_t [1:0] added;
  logic [1:0] add;
  logic [31:0] in_vector_address, in_matrix_address, in_column_address, in_column_stride, in_word_address;
  logic [5:0] in_vector_count, in_matrix_count, store_count;
  logic [RECORD-1:0][15:0] in_vector_data, store_data;
  logic [RECORD_BYTES-1:0][7:0] in_matrix_data;
  logic [3:0][31:0] in_word_data, store_words;
  logic store_read, store_int_read;
  logic [31:0] store_address, store_stride, store_int_address;
  dma_control dma (
      .clock, .reset, .outstanding, .valid(valid[3:2]), .head(head[3:2]), .tokens(tokens[3:2]), .issue(pop[3:2]),
      .busy(busy[3:2]), .immediate(immediate[3:2]), .given(given[3:2]), .given_late(given_late[3:2]), .add, .added, .accept, .accepted_pc, .begins, .beat,
      .beat_address(read_address), .beat_skip, .beat_count, .index_address, .index_now(int_read_now[2]), .ends,
      .complete, .finished, .fault(dma_fault)
  );
  assign read_valid = beat[0];
  dma_in load (
      .clock, .reset, .add(add[0]), .added(added[0]), .beat(beat[0]), .beat_skip, .beat_count, .data_valid, .data,
      .vector_write(in_vector), .vector_address(in_vector_address), .vector_count(in_vector_count),
      .vector_data(in_vector_data), .matrix_write(in_matrix), .matrix_address(in_matrix_address),
      .matrix_count(in_matrix_count), .matrix_data(in_matrix_data), .column_write(in_column),
      .column_address(in_column_address), .column_stride(in_column_stride), .fp_write(in_fp), .int_write(in_int),
      .word_address(in_word_address), .word_data(in_word_data), .finished(finished[0]), .fault(in_fault)
  );
  dma_out store (
      .clock, .reset, .add(add[1]), .added(added[1]), .beat(beat[1]), .beat_address(read_address), .beat_skip, .beat_count,
      .beat_ends(ends[1]), .vector_read(store_read), .vector_address(store_address),
      .vector_stride(store_stride), .vector_count(store_count), .vector_data(store_data), .int_read(store_int_read),
      .int_address(store_int_address), .int_data(store_words), .write(write_valid), .write_address, .write_strobe,
      .write_data, .finished(finished[1]), .fault(out_fault)
  );

  // ---- SRAMs ----
  vector_sram vector_memory (
      .clock, .read(vector_read), .read_address(vector_read_address), .read_data(vector_read_data),
      .write(vector_write), .write_address(vector_write_address), .write_count(vector_write_count),
      .write_data(vector_write_data), .array_read(acts_read), .array_read_address(acts_address),
      .array_read_data(acts_data), .array_write(out_write), .array_write_address(out_address),
      .array_write_count(out_count), .array_write_data(out_data), .in_write(in_vector), .in_address(in_vector_address),
      .in_count(in_vector_count), .in_data(in_vector_data), .out_read(store_read), .out_address(store_address),
      .out_stride(store_stride), .out_count(store_count), .out_data(store_data)
  );
  matrix_sram matrix_memory (
      .clock, .read(weights_read), .scale_address, .code_address, .scale_data, .code_data, .write(in_matrix),
      .write_address(in_matrix_address), .write_count(in_matrix_count), .write_data(in_matrix_data),
      .column_write(in_column), .column_address(in_column_address), .column_stride(in_column_stride),
      .column_count(in_vector_count), .column_data(in_vector_data)
  );
  logic [3:0][31:0] no_words;
  logic [VLEN-1:0][31:0] no_data;
  scalar_sram #(
      .ENTRIES(FP_ENTRIES), .READS(2), .WIDE_READS(1), .WRITES(4)
  ) fp_memory (
      .clock, .read_address(fp_read_address), .read_now(fp_read_now), .wide_read(fp_wide_read),
      .wide_read_address(head[1].address[1]), .wide_read_data(fp_wide_data), .write(fp_write),
      .write_address(fp_write_address), .write_data(fp_write_data), .wide_write('0), .wide_write_address('0),
      .wide_write_data(no_data), .out_read(1'b0), .out_address('0), .out_data(no_words), .in_write(in_fp),
      .in_address(in_word_address), .in_data(in_word_data)
  );
  assign no_data = '0;
  scalar_sram #(
      .ENTRIES(INT_ENTRIES), .READS(3), .WIDE_READS(2), .WRITES(2)
  ) int_memory (
      .clock, .read_address({index_address, flag_address, int_read_address}), .read_now(int_read_now),
      .wide_read(int_wide_read), .wide_read_address(int_wide_address), .wide_read_data(int_wide_data),
      .write(int_write), .write_address(int_write_address), .write_data(int_write_data), .wide_write(int_wide_write),
      .wide_write_address(int_wide_write_address), .wide_write_data(int_wide_write_data), .out_read(store_int_read),
      .out_address(store_int_address), .out_data(store_words), .in_write(in_int), .in_address(in_word_address),
      .in_data(in_word_data)
  );
  assign flag = int_read_now[1];

  assign start = {pop[3] && is_sync(head[3].word[7:0]), pop[2] && is_sync(head[2].word[7:0]), pop[1:0]};
  assign quiet = done && empty && idle == '1;
  assign fault = overflow || retire_fault != 0 || in_fault || out_fault || dma_fault || unknown != 0;
endmodule
