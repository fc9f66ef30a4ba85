package lane_pkg;
  typedef enum logic [3:0] {
    LANE_ADD, LANE_SUBTRACT, LANE_ROPE,  // through the adder
    LANE_MULTIPLY, LANE_MAX, LANE_MAX_ABS,
    LANE_EXP, LANE_EXP2, LANE_LOG2, LANE_RECIPROCAL, LANE_RSQRT,  // through the tables
    LANE_UNKNOWN
  } lane_op_t;
endpackage
