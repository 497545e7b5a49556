// The grid that runs, private to the scheduler and to what device code calls.
#pragma once

#include <exception>
#include <random>

#include "emulation/block.hpp"

namespace catapult::emulation {

struct Grid {
  const GridConfig* config = nullptr;
  const std::function<void()>* kernel = nullptr;
  Order order = Order::kForward;
  std::mt19937 random{1};
  Context main;
  Block* block = nullptr;
  Thread* thread = nullptr;
  size_t threads = 0, arrived = 0;
  uint64_t generation = 0;
  std::exception_ptr error;
  char start_key = 0, end_key = 0, race_keys[2] = {};
};
extern Grid* g_grid;  // one at a time, under the launch lock

// The last thread has come, or one has left: lets the others continue.
void release_block_barrier(Block& block);
bool settle(WarpBarrier& barrier, unsigned alive);

}  // namespace catapult::emulation
