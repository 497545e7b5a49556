// What runs: a grid of blocks of warps. A warp runs its lanes together, one path after the other
// where they part, until the paths meet again.
#pragma once

#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.hpp"
#include "shadow.hpp"

namespace ptx {

struct Frame {
  Function* function = nullptr;
  std::vector<uint8_t> registers;
  std::array<int, kLanes> pc{};
  Mask called = 0;  // lanes that entered
  Mask mask = 0;    // of these, the ones that have not returned
  Mask parked = 0;  // of these, the ones that wait for others at an instruction they run together
  const Instr* call = nullptr;
  uint32_t local_base = 0;
};

struct Copy {  // cp.async of one instruction, in flight
  Mask mask;
  int bytes;
  std::array<uint64_t, kLanes> to, from;
  std::array<uint32_t, kLanes> valid, group;
};

struct Block;
struct Grid;

class Warp {
 public:
  Warp(Block& block, int index, int threads, Function& entry);

  // Runs at most `most` instructions, up to a barrier or the end; how many it ran.
  uint64_t run(uint64_t most);
  bool done() const { return frames_.empty(); }
  bool waiting() const { return waiting_; }
  void release() { waiting_ = false; }
  void pause() { paused_ = true; }  // it polls: let others go on

  template <typename T>
  T* at(uint32_t slot) {
    return reinterpret_cast<T*>(registers_ + slot);
  }
  Mask& predicate(uint32_t slot) { return *at<Mask>(slot); }

  uint8_t* local(int lane) { return local_.data() + size_t(lane) * kLocalBytes; }
  Count& count(const Instr& instr);
  Frame& frame() { return frames_.back(); }
  int thread(int lane) const { return index * kLanes + lane; }
  [[noreturn]] void fail(const Instr& instr, const std::string& what) const;

  static constexpr uint32_t kLocalBytes = 16384;
  Block& block;
  const int index;
  Mask alive;
  Mask carry = 0;
  uint32_t epoch = 0;  // of warp barriers
  std::vector<Copy> copies;
  std::array<uint32_t, kLanes> groups{};  // committed by each lane

 private:
  struct Group {  // lanes at one pc, and the pc of those that come next
    int pc, other;
    Mask mask;
  };
  Group pick(Frame& frame) const;
  void step(Group& group);
  bool gather(Frame& frame, Group& group, const Instr& instr);
  void branch(Frame& frame, Group& group, const Instr& instr, Mask taken);
  void leave(Group& group, Mask mask);
  void put_down(Frame& frame, Group& group, int pc, Mask mask);
  void enter(const Instr& instr, Mask mask);
  void push(Function& function, Mask mask, const Instr* call);
  void fill_specials(Frame& frame);
  void finish_copies();

  std::vector<Frame> frames_, spare_;
  uint8_t* registers_ = nullptr;
  bool waiting_ = false, paused_ = false;
  std::vector<uint8_t> local_;
};

struct Block {
  Block(Grid& grid, unsigned index);
  // A turn of every warp; whether any instruction ran.
  bool turn();
  bool done() const;

  Grid& grid;
  const unsigned index;
  std::vector<uint8_t> shared;
  Shadow shadow;  // of shared memory
  std::vector<Warp> warps;
  uint32_t epoch = 1;                                   // of block barriers
  std::vector<uint32_t> seen;                           // epochs of other blocks that came before
  std::unordered_map<int, std::vector<uint32_t>> held;  // by a thread, until the next barrier
};

struct Range {
  uint64_t begin, end;
  std::string name;
};

// The memory that kernels may touch, with what is remembered of each access.
class Memory {
 public:
  void add(uint64_t begin, uint64_t bytes);
  void clear();
  void start_launch();
  // Null where it is outside.
  Shadow* find(uint64_t address, uint64_t bytes);

 private:
  struct Part {
    uint64_t begin, end;
    Shadow shadow;
  };
  std::vector<Part> parts_;
  size_t last_ = 0;
};

struct Grid {
  Function& entry;
  Memory& memory;
  std::vector<uint8_t> params;
  unsigned blocks, threads;
  uint32_t dynamic_bytes;
  bool cooperative;
  std::vector<uint8_t> workspace = std::vector<uint8_t>(256);  // of a grid barrier
  std::unordered_map<uint64_t, std::vector<uint32_t>> released;
  const Module& module;
};

void run(Grid& grid);

}  // namespace ptx
