// The vector unit and the scalar unit, which share a queue. Operands are read in the cycle of the start (stage 0); results
// are written as soon as they are there, and count as complete after the latency that vector_control knows.
//   stage 1  fill, compare, select, round, map: written in stage 2
//   stage 1    operands of the lanes are chosen; 2-9 lanes: written in stage 10
//   stage 1-8  the scalar unit, one more lane: written in stage 9
//   stage 1-3  maximum and count: written in stage 4
//   stage 6-..  sums by the fixed tree, two stages a level
module vector_unit
  import tripath_pkg::*;
  import core_pkg::*;
  import lane_pkg::*;
  import float_pkg::*;
(
    input logic clock,
    input logic reset,
    input logic start,
    input entry_t in,
    // Vector SRAM
    output logic [2:0] read,
    output logic [2:0][31:0] read_address,
    input logic [2:0][VLEN-1:0][15:0] read_data,
    output logic [1:0] write,
    output logic [1:0][31:0] write_address,
    output logic [1:0][15:0] write_count,
    output logic [1:0][VLEN-1:0][15:0] write_data,
    // FP SRAM: two single reads, one wide; writes by S_MOV, lanes, maxima, sums
    output logic [1:0][31:0] fp_read_address,
    input logic [1:0][31:0] fp_read_now,
    output logic fp_wide_read,
    input logic [VLEN-1:0][31:0] fp_wide_data,
    output logic [3:0] fp_write,
    output logic [3:0][31:0] fp_write_address,
    output logic [3:0][31:0] fp_write_data,
    // Int SRAM: one single read, two wide; writes by S_SET_INT, and by maxima and counts; a wide one by V_SELECT_INT
    output logic [31:0] int_read_address,
    input logic [31:0] int_read_now,
    output logic [1:0] int_wide_read,
    output logic [1:0][31:0] int_wide_address,
    input logic [1:0][VLEN-1:0][31:0] int_wide_data,
    output logic [1:0] int_write,
    output logic [1:0][31:0] int_write_address,
    output logic [1:0][31:0] int_write_data,
    output logic [VLEN-1:0] int_wide_write,
    output logic [31:0] int_wide_write_address,
    output logic [VLEN-1:0][31:0] int_wide_write_data,
    output logic fault  // an instruction that this unit does not know
);
  localparam int LEVELS = $clog2(VLEN);
  localparam int FIRST = 6;  // stage in which a product leaves its lane
  localparam int LAST = FIRST + 2 + 2 * LEVELS;  // stage in which a sum is written

  typedef struct packed {
    logic [7:0] opcode;
    logic [31:0] dst;
    logic [31:0] other;  // V_RED_MAX_IDX: place
    logic [31:0] index;  // V_RED_MAX_IDX: first
    logic [15:0] n;
    logic [8:0] head_dim;
    logic [31:0] fp;  // FP operand
    logic [31:0] fp_b;
    logic [31:0] integer_;  // Int operand
  } slot_t;

  logic [LAST:1] valid;
  slot_t slot[1:LAST];
  v_rope_v_t rope;
  s_set_int_t set_int;
  logic [7:0] opcode;

  // ---- stage 0: addresses ----
  assign opcode = in.word[7:0];
  assign rope = in.word;
  assign set_int = in.word;
  always_comb begin
    read_address[0] = in.address[1];  // a
    read_address[1] = in.address[2];  // b, or the mask of V_TOPK_MASK, or the table of V_ROPE_V
    read_address[2] = in.address[2];
    read = '0;
    fp_wide_read = start && opcode == OP_S_MAP_V_FP;
    fp_read_address = {in.address[2], in.address[1]};
    int_read_address = in.address[2];  // the key of V_CMP_EQ_INT
    int_wide_read = '0;
    int_wide_address = {in.address[3], in.address[2]};
    case (opcode)
      OP_V_ADD_VV, OP_V_MUL_VV, OP_V_MAX_VV, OP_V_SUB_VV, OP_V_MAX_ABS_VV, OP_V_ROPE_V: read = 3'b011;
      OP_V_TOPK_MASK: begin
        read = 3'b011;
        int_read_address = in.address[3];
      end
      OP_V_ADD_VF, OP_V_SUB_VF, OP_V_MUL_VF, OP_V_MAX_VF, OP_V_CMP_GE_VF: begin
        read = 3'b001;
        fp_read_address[0] = in.address[2];
      end
      OP_V_EXP_V, OP_V_RECI_V, OP_V_LOG2_V, OP_V_EXP2_V, OP_V_ROUND_V: read = 3'b001;
      OP_V_RED_MAX, OP_V_RED_SUM, OP_V_RED_SUMSQ: begin
        read = 3'b001;
        fp_read_address[0] = in.address[0];
      end
      OP_V_RED_MAX_IDX: begin
        read = 3'b001;
        read_address[0] = in.address[2];
        fp_read_address[0] = in.address[0];
      end
      OP_V_SELECT_INT: begin
        read = 3'b001;
        int_wide_read = 2'b11;
      end
      OP_V_CMP_EQ_INT: begin
        int_wide_read = 2'b01;
        int_wide_address[0] = in.address[1];
      end
      OP_V_RED_COUNT: begin
        read = 3'b001;
        int_read_address = in.address[0];
      end
      default: ;
    endcase
    if (!start) begin
      read = '0;
      int_wide_read = '0;
    end
  end

  always_ff @(posedge clock)
    if (reset) valid <= '0;
    else begin
      valid <= {valid[LAST-1:1], start};
      if (start)
        slot[1] <= '{
            opcode: opcode,
            dst: in.address[0],
            other: in.address[1],
            index: in.address[3],
            n: in.word[lanes_place(opcode)+:16],
            head_dim: 9'(rope.head_dim),
            fp: fp_read_now[0],
            fp_b: fp_read_now[1],
            integer_: int_read_now
        };
      for (int i = 2; i <= LAST; i++) if (valid[i-1]) slot[i] <= slot[i-1];
    end

  assign fp_write[0] = start && opcode == OP_S_MOV_FP;
  assign fp_write_address[0] = in.address[0];
  assign fp_write_data[0] = fp_read_now[0];
  assign int_write[0] = start && opcode == OP_S_SET_INT;
  assign int_write_address[0] = in.address[0];
  assign int_write_data[0] = {1'b0, set_int.value};

  // ---- stage 1: short results ----
  slot_t s1;
  logic short_;
  logic [VLEN-1:0][15:0] short_data;
  logic [VLEN-1:0] masked;  // lanes of a mask that are not zero
  assign s1 = slot[1];
  always_comb begin
    short_ = 1'b1;
    short_data = '0;
    masked = '0;
    for (int i = 0; i < VLEN; i++) masked[i] = i < s1.n && read_data[0][i][14:0] != 0;
    if (valid[1])
      case (s1.opcode)
        OP_V_FILL_VF: for (int i = 0; i < VLEN; i++) short_data[i] = to_bf16(s1.fp);
        OP_S_MAP_V_FP: for (int i = 0; i < VLEN; i++) short_data[i] = to_bf16(fp_wide_data[i]);
        OP_V_ROUND_V: for (int i = 0; i < VLEN; i++) short_data[i] = nearest_integer(read_data[0][i]);
        OP_V_CMP_GE_VF:
        for (int i = 0; i < VLEN; i++)
          if (!is_nan({read_data[0][i], 16'd0}) && !is_nan(s1.fp) && !greater(s1.fp, {read_data[0][i], 16'd0}))
            short_data[i] = 16'h3f80;
        OP_V_CMP_EQ_INT:
        for (int i = 0; i < VLEN; i++) if (int_wide_data[0][i] == s1.integer_) short_data[i] = 16'h3f80;
        default: short_ = 1'b0;
      endcase
    else short_ = 1'b0;
  end

  logic short2;
  logic [VLEN-1:0][15:0] short_data2;
  logic [VLEN-1:0] select2;
  logic [VLEN-1:0][31:0] select_data2;
  always_ff @(posedge clock) begin
    short2 <= short_ && !reset;
    if (short_) short_data2 <= short_data;
    select2 <= '0;
    if (valid[1] && s1.opcode == OP_V_SELECT_INT)
      for (int i = 0; i < VLEN; i++) begin
        select2[i] <= i < s1.n;
        select_data2[i] <= masked[i] ? int_wide_data[0][i] : int_wide_data[1][i];
      end
  end
  assign int_wide_write = select2;
  assign int_wide_write_address = slot[2].dst;
  assign int_wide_write_data = select_data2;

  // ---- lanes ----
  function automatic lane_op_t lane_op_of(input logic [7:0] what);
    case (what)
      OP_V_ADD_VV, OP_V_ADD_VF, OP_S_ADD_FP: lane_op_of = LANE_ADD;
      OP_V_SUB_VV, OP_V_SUB_VF, OP_S_SUB_FP: lane_op_of = LANE_SUBTRACT;
      OP_V_MAX_VV, OP_V_MAX_VF, OP_V_RED_SUM: lane_op_of = LANE_MAX;
      OP_V_MAX_ABS_VV: lane_op_of = LANE_MAX_ABS;
      OP_V_EXP_V, OP_S_EXP_FP: lane_op_of = LANE_EXP;
      OP_V_EXP2_V: lane_op_of = LANE_EXP2;
      OP_V_LOG2_V: lane_op_of = LANE_LOG2;
      OP_V_RECI_V, OP_S_RECI_FP: lane_op_of = LANE_RECIPROCAL;
      OP_S_RSQRT_FP: lane_op_of = LANE_RSQRT;
      OP_V_ROPE_V: lane_op_of = LANE_ROPE;
      OP_V_MUL_VV, OP_V_MUL_VF, OP_S_MUL_FP, OP_V_RED_SUMSQ: lane_op_of = LANE_MULTIPLY;
      default: lane_op_of = LANE_UNKNOWN;
    endcase
  endfunction
  function automatic logic on_lanes(input logic [7:0] what);
    on_lanes = is_elementwise(what) || is_transcendental(what);
  endfunction
  // What needs no lane, by name: each has stages of its own below.
  function automatic logic on_its_own(input logic [7:0] what);
    case (what)
      OP_V_FILL_VF, OP_V_ROUND_V, OP_V_CMP_GE_VF, OP_V_CMP_EQ_INT, OP_V_SELECT_INT, OP_S_MAP_V_FP, OP_V_RED_MAX,
      OP_V_RED_MAX_IDX, OP_V_RED_COUNT, OP_V_TOPK_MASK, OP_S_MOV_FP, OP_S_SET_INT:
      on_its_own = 1'b1;
      default: on_its_own = 1'b0;
    endcase
  endfunction
  always_ff @(posedge clock)
    fault <= !reset && start && !on_its_own(opcode) && lane_op_of(opcode) == LANE_UNKNOWN;

  logic [9:1] on_vector, on_scalar_, on_sum;
  logic by_scalar;
  lane_op_t op1, op2;
  logic [VLEN-1:0][15:0] x1, u1, v1, x2, u2, v2;
  logic [VLEN-1:0][31:0] y1, y2, products, results;
  logic [VLEN-1:0] high1, high2;
  logic [31:0] scalar_product, scalar_result;
  logic [8:0] half1;

  always_comb begin
    for (int i = 1; i <= 9; i++) begin
      on_vector[i] = valid[i] && on_lanes(slot[i].opcode);
      on_sum[i] = valid[i] && i < FIRST && is_reduce_sum(slot[i].opcode);
      on_scalar_[i] = valid[i] && is_scalar(slot[i].opcode);
    end
    op1 = lane_op_of(s1.opcode);
    by_scalar = s1.opcode == OP_V_ADD_VF || s1.opcode == OP_V_SUB_VF || s1.opcode == OP_V_MUL_VF || s1.opcode == OP_V_MAX_VF;
    half1 = s1.head_dim >> 1;
    for (int i = 0; i < VLEN; i++) begin
      x1[i] = read_data[0][i];
      y1[i] = by_scalar ? s1.fp : {read_data[1][i], 16'd0};
      high1[i] = (9'(i) & half1) != 0;
      u1[i] = read_data[0][LEVELS'(9'(i) ^ half1)];
      v1[i] = read_data[1][LEVELS'(half1 + (9'(i) & (half1 - 9'd1)))];
      // The maximum of a number and itself is what it was.
      if (is_reduce_sum(s1.opcode)) y1[i] = {x1[i], 16'd0};
      if (s1.opcode == OP_V_ROPE_V) y1[i] = {read_data[1][LEVELS'(9'(i) & (half1 - 9'd1))], 16'd0};
    end
  end
  always_ff @(posedge clock)
    if (on_vector[1] || on_sum[1]) begin
      op2 <= op1;
      high2 <= high1;
      x2 <= x1;
      y2 <= y1;
      u2 <= u1;
      v2 <= v1;
    end

  logic [VLEN-1:0][31:0] wide_x2, wide_u2, wide_v2;
  always_comb
    for (int i = 0; i < VLEN; i++) begin
      wide_x2[i] = {x2[i], 16'd0};
      wide_u2[i] = {u2[i], 16'd0};
      wide_v2[i] = {v2[i], 16'd0};
    end
  lanes #(
      .COUNT(VLEN)
  ) vector_lanes (
      .clock, .enable(on_vector[9:2] | on_sum[9:2]), .op(op2), .high(high2), .x(wide_x2), .y(y2), .u(wide_u2),
      .v(wide_v2), .product(products), .result(results)
  );
  lanes scalar (
      .clock, .enable(on_scalar_[8:1]), .op(op1), .high(1'b0), .x(s1.fp), .y(s1.fp_b), .u('0), .v('0),
      .product(scalar_product), .result(scalar_result)
  );

  logic vector10, scalar9;
  always_ff @(posedge clock) begin
    vector10 <= on_vector[9] && !reset;
    scalar9 <= on_scalar_[8] && !reset;
  end
  assign fp_write[1] = scalar9;
  assign fp_write_address[1] = slot[9].dst;
  assign fp_write_data[1] = scalar_result;

  // ---- maximum with its index, and count ----
  typedef struct packed {
    logic [16:0] order_;  // of a BF16; 0 for a NaN and for a lane that is not there
    logic [$clog2(VLEN)-1:0] lane_;
    logic [15:0] value;
  } candidate_t;
  function automatic candidate_t best_of(input candidate_t a, input candidate_t b);
    best_of = b.order_ > a.order_ ? b : a;
  endfunction
  candidate_t [VLEN-1:0] leaf;
  candidate_t [VLEN/4-1:0] quarter2;
  candidate_t best3;
  candidate_t [VLEN/4-1:0] tree;
  logic [$clog2(VLEN+1)-1:0] total1, total2, total3;
  logic max1, max2, max3;
  logic [31:0] best_value;
  logic better;

  function automatic logic is_max(input logic [7:0] what);
    is_max = what == OP_V_RED_MAX || what == OP_V_RED_MAX_IDX;
  endfunction
  always_comb begin
    max1 = valid[1] && is_max(s1.opcode);
    max2 = valid[2] && is_max(slot[2].opcode);
    max3 = valid[3] && is_max(slot[3].opcode);
    leaf = '0;
    total1 = '0;
    if (max1)
      for (int i = 0; i < VLEN; i++) begin
        leaf[i].order_ = i < s1.n ? 17'(order({read_data[0][i], 16'd0}) >> 16) : 17'd0;
        leaf[i].lane_ = LEVELS'(i);
        leaf[i].value = read_data[0][i];
      end
    if (valid[1] && s1.opcode == OP_V_RED_COUNT)
      for (int i = 0; i < VLEN; i++) total1 = total1 + {{LEVELS{1'b0}}, masked[i]};
    tree = quarter2;
    if (max2)
      for (int width = VLEN / 8; width >= 1; width = width / 2)
        for (int i = 0; i < VLEN / 8; i++) if (i < width) tree[i] = best_of(tree[2*i], tree[2*i+1]);
    best_value = {best3.value, 16'd0};
    better = best3.order_ != 0 && !is_nan(slot[3].fp) && order(best_value) > order(slot[3].fp);
  end

  logic fp_write4, int_write4;
  logic [31:0] fp_data4, int_data4;
  always_ff @(posedge clock) begin
    if (max1)
      for (int i = 0; i < VLEN / 4; i++)
        quarter2[i] <= best_of(best_of(leaf[4*i], leaf[4*i+1]), best_of(leaf[4*i+2], leaf[4*i+3]));
    if (max2) best3 <= tree[0];
    total2 <= total1;
    total3 <= total2;
    fp_write4 <= max3 && better && !reset;
    fp_data4 <= best_value;
    int_write4 <= !reset && (max3 && better && slot[3].opcode == OP_V_RED_MAX_IDX
                             || valid[3] && slot[3].opcode == OP_V_RED_COUNT);
    int_data4 <= slot[3].opcode == OP_V_RED_COUNT ? slot[3].integer_ + 32'(total3) : slot[3].index + 32'(best3.lane_);
  end
  assign fp_write[2] = fp_write4;
  assign fp_write_address[2] = slot[4].dst;
  assign fp_write_data[2] = fp_data4;
  assign int_write[1] = int_write4;
  assign int_write_address[1] = slot[4].opcode == OP_V_RED_COUNT ? slot[4].dst : slot[4].other;
  assign int_write_data[1] = int_data4;

  // ---- sums by the fixed tree: lane i meets lane i + width; -0, which changes nothing, where a lane is absent ----
  localparam logic [31:0] ABSENT = 32'h80000000;
  logic [VLEN-1:0][31:0] leaves;
  logic [VLEN-1:0] there;  // lanes of the instruction in stage FIRST
  always_ff @(posedge clock) for (int i = 0; i < VLEN; i++) there[i] <= i < slot[FIRST-1].n;
  always_comb for (int i = 0; i < VLEN; i++) leaves[i] = there[i] ? products[i] : ABSENT;
  logic [LAST:1] sums;  // stages with a sum
  always_comb for (int i = 1; i <= LAST; i++) sums[i] = valid[i] && is_reduce_sum(slot[i].opcode);
  // Adder WIDTH + i adds lanes i and i + WIDTH of the level that leaves WIDTH lanes; adder 1 is the tree's root, adder 0
  // adds what was there before.
  logic [VLEN-1:0][1:0] tree_enable;
  logic [VLEN-1:0][31:0] tree_a, tree_b, tree_sum;
  for (genvar level = 0; level < LEVELS; level++) begin : levels
    localparam int WIDTH = VLEN >> (level + 1);
    for (genvar i = 0; i < WIDTH; i++) begin : pairs
      assign tree_enable[WIDTH+i] = sums[FIRST+2*level+:2];
      assign tree_a[WIDTH+i] = level == 0 ? leaves[i] : tree_sum[(2*WIDTH+i)%VLEN];
      assign tree_b[WIDTH+i] = level == 0 ? leaves[i+WIDTH] : tree_sum[(3*WIDTH+i)%VLEN];
    end
  end
  localparam int FINAL = FIRST + 2 * LEVELS;
  assign tree_enable[0] = sums[FINAL+:2];
  assign tree_a[0] = slot[FINAL].fp;
  assign tree_b[0] = tree_sum[1];
  adders #(
      .COUNT(VLEN)
  ) tree_of_adders (
      .clock, .enable(tree_enable), .a(tree_a), .b(tree_b), .sum(tree_sum)
  );
  assign fp_write[3] = sums[LAST];
  assign fp_write_address[3] = slot[LAST].dst;
  assign fp_write_data[3] = tree_sum[0];

  // ---- top-k: a lane a cycle is shown to all; each counts those that come before it ----
  // Greater ones come first, of equals the lower lane. A NaN comes as soon as nothing is left below it, as if it were the
  // least of the lanes below; that is known when its turn comes, and until then all are before it.
  localparam int RANKS = $clog2(VLEN + 1);
  logic [VLEN-1:0] eligible, chosen, ahead;
  logic [VLEN-1:0][16:0] orders;
  logic [VLEN-1:0][RANKS-1:0] rank;
  logic [RANKS-1:0] limit;
  logic [LEVELS-1:0] turn;
  logic [16:0] shown, key, least;
  logic present, top_active, top_write;
  logic [15:0] top_n, chosen_n;
  logic [31:0] top_dst, chosen_dst;
  always_comb begin
    key = shown == 0 ? least : shown;
    for (int i = 0; i < VLEN; i++)
      ahead[i] = present && turn != LEVELS'(i) && (key > orders[i] || key == orders[i] && turn < LEVELS'(i));
  end
  always_ff @(posedge clock)
    if (reset) begin
      top_active <= 1'b0;
      top_write <= 1'b0;
    end else begin
      top_write <= top_active && turn == LEVELS'(VLEN - 1);
      if (top_active) begin
        turn <= turn + 1'b1;
        shown <= orders[LEVELS'(turn+1'b1)];
        present <= eligible[LEVELS'(turn+1'b1)];
        if (present && key < least) least <= key;
        for (int i = 0; i < VLEN; i++) begin
          rank[i] <= rank[i] + {{RANKS - 1{1'b0}}, ahead[i]};
          if (turn == LEVELS'(i)) orders[i] <= key;
          chosen[i] <= eligible[i] && rank[i] + {{RANKS - 1{1'b0}}, ahead[i]} < limit;
        end
        chosen_n <= top_n;
        chosen_dst <= top_dst;
        if (turn == LEVELS'(VLEN - 1)) top_active <= 1'b0;
      end
      if (valid[1] && s1.opcode == OP_V_TOPK_MASK) begin
        top_active <= 1'b1;
        turn <= '0;
        top_n <= s1.n;
        top_dst <= s1.dst;
        rank <= '0;
        least <= '1;
        limit <= s1.integer_[31] ? '0 : s1.integer_ >= 32'(VLEN) ? RANKS'(VLEN) : s1.integer_[RANKS-1:0];
        for (int i = 0; i < VLEN; i++) begin
          orders[i] <= 17'(order({read_data[0][i], 16'd0}) >> 16);
          eligible[i] <= i < s1.n && read_data[1][i][14:0] != 0;
        end
        shown <= 17'(order({read_data[0][0], 16'd0}) >> 16);
        present <= read_data[1][0][14:0] != 0;
      end
    end

  // ---- Vector SRAM ----
  always_comb begin
    write[0] = short2;
    write_address[0] = slot[2].dst;
    write_count[0] = slot[2].n;
    write_data[0] = short_data2;
    write[1] = vector10 || top_write;
    write_address[1] = top_write ? chosen_dst : slot[10].dst;
    write_count[1] = top_write ? chosen_n : slot[10].n;
    write_data[1] = '0;
    if (vector10) for (int i = 0; i < VLEN; i++) write_data[1][i] = to_bf16(results[i]);
    if (top_write) for (int i = 0; i < VLEN; i++) write_data[1][i] = chosen[i] ? 16'h3f80 : 16'd0;
  end
endmodule
