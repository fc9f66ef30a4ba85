// Runs programs on the core: reads a job from a file, plays HBM, and writes what happened. `sim JOB...` writes JOB.out.
// Formats: rtl/simulator.py.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "Vcore.h"
#include "Vcore___024root.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif
#include "verilated.h"

namespace {
enum Field { SERIAL, DEPTH, OUTSTANDING = DEPTH + 4, READ_DELAY, LIMIT, WORDS, HBM, MATRIX, VECTOR, FP, INT, FIELDS };
enum Status { DONE, FAULT, TOO_LONG };

template <typename T>
std::vector<T> take(FILE* file, size_t count) {
  std::vector<T> values(count);
  if (count && fread(values.data(), sizeof(T), count, file) != count) {
    fprintf(stderr, "harness: a job is cut short\n");
    exit(2);
  }
  return values;
}

template <typename T>
void put(FILE* file, const T* values, size_t count) {
  fwrite(values, sizeof(T), count, file);
}

struct Event {
  int32_t pc, start, end;
};

struct Beat {
  int64_t due;
  uint8_t bytes[16];
};

void run(Vcore& core, const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) {
    fprintf(stderr, "harness: cannot read %s\n", path);
    exit(2);
  }
  auto facts = take<int32_t>(file, FIELDS);
  auto words = take<uint32_t>(file, 4 * size_t(facts[WORDS]));
  auto hbm = take<uint8_t>(file, facts[HBM]);
  auto matrix = take<uint8_t>(file, facts[MATRIX]);
  auto vector = take<uint16_t>(file, facts[VECTOR]);
  auto fp = take<uint32_t>(file, facts[FP]);
  auto integer = take<uint32_t>(file, facts[INT]);
  auto accumulator = take<uint32_t>(file, 64);
  fclose(file);

  auto tick = [&] {
    core.clock = 0;
    core.eval();
    core.clock = 1;
    core.eval();
  };
  core.reset = 1;
  core.run = core.data_valid = core.program_write = 0;
  core.serial = facts[SERIAL];
  core.depth = 0;
  for (int queue = 0; queue < 4; queue++) core.depth |= uint32_t(facts[DEPTH + queue]) << (8 * queue);
  core.outstanding = facts[OUTSTANDING];
  tick();
  core.program_write = 1;
  for (int i = 0; i < facts[WORDS]; i++) {
    core.program_address = i;
    for (int part = 0; part < 4; part++) core.program_data[part] = words[4 * i + part];
    tick();
  }
  core.program_write = 0;
  tick();
  auto& root = *core.rootp;
  memcpy(&root.core__DOT__matrix_memory__DOT__memory[0], matrix.data(), matrix.size());
  memcpy(&root.core__DOT__vector_memory__DOT__memory[0], vector.data(), 2 * vector.size());
  memcpy(&root.core__DOT__fp_memory__DOT__memory[0], fp.data(), 4 * fp.size());
  memcpy(&root.core__DOT__int_memory__DOT__memory[0], integer.data(), 4 * integer.size());
  memcpy(&root.core__DOT__matrix__DOT__accumulator[0], accumulator.data(), 256);
  core.reset = 0;
  core.run = 1;
  tick();
  core.run = 0;

  std::vector<Event> events;
  std::vector<int64_t> retired(facts[WORDS]);
  std::deque<int32_t> accepted[2];  // descriptors whose turn on HBM has not begun
  std::deque<size_t> open[2];  // and those whose end is not known yet
  std::deque<Beat> beats;
  int64_t makespan = 0, cycle = 0;
  bool ended = false;
  Status status = TOO_LONG;
  for (; cycle < facts[LIMIT]; cycle++) {
    core.data_valid = 0;
    if (!beats.empty() && beats.front().due == cycle) {
      core.data_valid = 1;
      memcpy(&core.data[0], beats.front().bytes, 16);
      beats.pop_front();
    }
    core.clock = 0;
    core.eval();
    if (core.fault) {
      status = FAULT;
      break;
    }
    int32_t now = core.now;
    if (core.done && !ended) {
      ended = true;
      if (now > makespan) makespan = now;
    }
    if (core.done && core.quiet) {
      status = DONE;
      break;
    }
    if (core.control) retired[core.control_pc]++;
    for (int queue = 0; queue < 4; queue++)
      if (core.start >> queue & 1) {
        int32_t pc = core.start_pc >> (16 * queue) & 0xffff;
        int32_t end = now + int32_t(core.start_latency >> (16 * queue) & 0xffff);
        events.push_back({pc, now, end});
        retired[pc]++;
        if (end > makespan) makespan = end;
      }
    for (int queue = 0; queue < 2; queue++) {
      if (core.ends >> queue & 1) {
        Event& event = events[open[queue].front()];
        event.end = now - BEHIND + (queue ? WRITE_LATENCY : READ_LATENCY);
        open[queue].pop_front();
        if (event.end > makespan) makespan = event.end;
      }
      if (core.begins >> queue & 1) {
        int32_t pc = accepted[queue].front();
        accepted[queue].pop_front();
        open[queue].push_back(events.size());
        events.push_back({pc, now - BEHIND, -1});
        retired[pc]++;
      }
      if (core.accept >> queue & 1) accepted[queue].push_back(core.accepted_pc);
    }
    if (core.read_valid) {
      Beat beat{cycle + facts[READ_DELAY], {}};
      for (int i = 0; i < 16; i++) {
        size_t address = size_t(core.read_address) + i;
        beat.bytes[i] = address < hbm.size() ? hbm[address] : 0;
      }
      beats.push_back(beat);
    }
    if (core.write_valid)
      for (int i = 0; i < 16; i++) {
        size_t address = size_t(core.write_address) + i;
        if (core.write_strobe >> i & 1 && address < hbm.size())
          hbm[address] = reinterpret_cast<uint8_t*>(&core.write_data[0])[i];
      }
    core.clock = 1;
    core.eval();
  }
  // An M_OUT leaves zeros behind it, which pass through the array before they reach the accumulators.
  for (int i = 0; i < 32 && status == DONE; i++) tick();
  memcpy(matrix.data(), &root.core__DOT__matrix_memory__DOT__memory[0], matrix.size());
  memcpy(vector.data(), &root.core__DOT__vector_memory__DOT__memory[0], 2 * vector.size());
  memcpy(fp.data(), &root.core__DOT__fp_memory__DOT__memory[0], 4 * fp.size());
  memcpy(integer.data(), &root.core__DOT__int_memory__DOT__memory[0], 4 * integer.size());
  memcpy(accumulator.data(), &root.core__DOT__matrix__DOT__accumulator[0], 256);
  file = fopen((std::string(path) + ".out").c_str(), "wb");
  int64_t head[4] = {status, makespan, cycle, int64_t(events.size())};
  put(file, head, 4);
  put(file, events.data(), events.size());
  put(file, retired.data(), retired.size());
  put(file, hbm.data(), hbm.size());
  put(file, matrix.data(), matrix.size());
  put(file, vector.data(), vector.size());
  put(file, fp.data(), fp.size());
  put(file, integer.data(), integer.size());
  put(file, accumulator.data(), accumulator.size());
  fclose(file);
}
}  // namespace

int main(int argc, char** argv) {
  Vcore core;
  for (int i = 1; i < argc; i++) run(core, argv[i]);
  core.final();
#if VM_COVERAGE
  if (const char* folder = getenv("RTL_COVERAGE"))
    VerilatedCov::write((std::string(folder) + "/" + std::to_string(getpid()) + ".dat").c_str());
#endif
  return 0;
}
