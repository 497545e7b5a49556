// State of one block of CUDA threads, private to the scheduler.
#pragma once

#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "emulation/async_queue.hpp"
#include "emulation/fiber.hpp"
#include "emulation/scheduler.hpp"

namespace catapult::emulation {

enum class Wait { kReady, kBlock, kWarp, kGrid, kYield, kDone };

struct WarpBarrier {
  const char* what = nullptr;
  Place place{};
  unsigned mask = 0, arrived = 0, readers = 0;
  bool gathering = false;
  bool free = true;
  unsigned char values[32][kExchangeBytes];
  char race_key = 0;
};

struct Thread {
  Thread() {}

  Context context;
  Coordinates at{};
  Wait wait = Wait::kReady;
  Place place{};  // of what it waits for
  const char* what = "";
  const WarpBarrier* barrier = nullptr;
  uint64_t generation = 0;  // of the block or grid barrier it waits for
  AsyncQueue copies;
};

struct Warp {
  unsigned alive = 0;
  std::deque<WarpBarrier> barriers;  // reused; a deque so that addresses stay
};

struct Block {
  uint3 index{};
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free>
      dynamic;                         // exactly the bytes asked for, so ASan sees the end
  std::vector<unsigned char> statics;  // its static shared memory while another block runs
  unsigned alive = 0, arrived = 0;
  uint64_t generation = 0;
  Place place{};  // the barrier that gathers now
  BlockVote gathering{0, 1, 0}, result{0, 1, 0};
  char race_keys[2] = {};
  size_t first_stack = 0;
};

bool can_run(const Block& block, const Thread& thread, uint64_t grid_generation);
std::string name_of(const Thread& thread);
// "block (0,0,0): 31 threads wait at __syncthreads (file:line), first thread (1,0,0)", per place.
std::string describe_waiting(const Block& block);

}  // namespace catapult::emulation
