// Runs the threads of a grid as fibers on the calling OS thread. What device code may call is in
// the first half; intrinsics.hpp gives it CUDA's names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulation/options.hpp"
#include "emulation/types.hpp"

namespace catapult::emulation {

// Where the running CUDA thread is.
struct Coordinates {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  unsigned lane, warp;
};
extern const Coordinates* g_here;
inline const Coordinates& here() { return *g_here; }

void* dynamic_shared();

// The votes combine `value` over the block: sum, and, or.
struct BlockVote {
  int sum, all, any;
};
BlockVote sync_block(int value, Place place);
void sync_grid(Place place);
void yield();  // what a thread does while it waits for a value another one will write

constexpr size_t kExchangeBytes = 64;

// One collective operation of a warp: every lane of `mask` hands in a value, and reads others'.
// `orders_memory` is true for __syncwarp only: shuffles and votes promise no memory ordering.
class WarpExchange {
 public:
  WarpExchange(const char* what, unsigned mask, const void* value, size_t bytes, Place place,
               bool orders_memory = false);
  ~WarpExchange();
  WarpExchange(const WarpExchange&) = delete;
  unsigned participants() const;
  // A lane that took no part reads as poison, as it is undefined on a device.
  void read(unsigned lane, void* value, size_t bytes) const;

 private:
  void* barrier_;
};

unsigned active_lanes();

// cp.async: copies arrive only when they are waited for, so a forgotten wait reads poison.
struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes;
  size_t zeros;
};
void async_copy(const AsyncCopy& copy);
void async_commit();
// Hands out the copies of all but the newest `keep` groups one by one; false when there is none.
bool async_next(int keep, AsyncCopy* copy);

// Ends the kernel; the launch throws catapult::Error with this text and the thread's name.
[[noreturn]] void device_fail(const std::string& text, Place place);
void check_aligned(const void* address, size_t bytes, Place place);

// ---------------------------------------------------------------------------------------------
struct GridConfig {
  const char* op;
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
  const void* stream;
  const void* kernel;
  const void* const* arguments;  // the address of each
};

// Tests only: launches go to this function, which returns null or what went wrong.
using Redirect = const char* (*)(const void* kernel, const void* const* arguments, unsigned blocks,
                                 unsigned threads, size_t shared_bytes, int cooperative);

void run_grid(const GridConfig& config, const std::function<void()>& kernel);

}  // namespace catapult::emulation
