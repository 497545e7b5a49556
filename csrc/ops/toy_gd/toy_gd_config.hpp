// Problem -> tiles of the CPU kernel, blocks of the CUDA kernel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/odd_pitch.hpp"

namespace catapult {

// Tiles handled together, so that one load of zeta and of the sums serves several: as many as leave
// their rows in half of a 32 KiB first-level cache between the two sweeps over them.
inline int toy_gd_group(int64_t inputs, int lanes, int64_t element_bytes) {
  const int64_t tile_bytes = inputs * lanes * element_bytes;
  constexpr int64_t kBudget = 16 * 1024;
  return 4 * tile_bytes <= kBudget ? 4 : 2 * tile_bytes <= kBudget ? 2 : 1;
}

// How a replica is spread over a GPU: `blocks` blocks of `rows` hidden units each.
struct ToyGdPlan {
  int64_t blocks, rows;
  int threads;
  int registers;  // inputs, rounded up, where U and v stay in registers for all steps; otherwise 0
  bool resident;  // they stay in shared memory; where neither, in global memory
  bool stage_x;   // X is copied to shared memory
  int64_t shared_bytes;
  int64_t replicas_per_launch;
};

constexpr int64_t kToyGdMaxThreads = 256;
constexpr int64_t kToyGdRecordBytes = 128;  // of thread 0's record, at the start of shared memory

inline int toy_gd_threads(int64_t wanted) {
  return static_cast<int>(std::clamp<int64_t>((wanted + 31) / 32 * 32, 32, kToyGdMaxThreads));
}

// Rows of `registers` inputs that a thread keeps: at most 64 registers of U.
constexpr int64_t toy_gd_register_rows(int64_t registers, int64_t element) {
  return std::min<int64_t>(4, 256 / (element * registers));
}

// Shared memory beside the rows: the record, a number for each warp and a few more, and `numbers`
// of the element.
inline int64_t toy_gd_small_bytes(int64_t numbers, int64_t element) {
  return kToyGdRecordBytes + 8 * (kToyGdMaxThreads / 32 + 4) + element * numbers;
}

// The rows in what `small` bytes leave of the shared memory of a block, else of several, else in
// global memory; a thread has `thread_rows` at a time. Blocks are 0 where `small` does not fit. A
// grid with a barrier between blocks holds at most one block per multiprocessor.
inline void toy_gd_place_rows(ToyGdPlan& plan, int64_t replicas, int64_t width, int64_t inputs,
                              int64_t element, int64_t small, int64_t thread_rows,
                              int64_t shared_limit, int64_t multiprocessors) {
  if (small > shared_limit) return;
  const int64_t row_bytes = (inputs + 1) * element, room = (shared_limit - small) / row_bytes;
  plan.blocks = room > 0 ? (width + room - 1) / room : multiprocessors + 1;
  plan.resident = plan.blocks <= multiprocessors;
  if (!plan.resident) plan.blocks = std::min(multiprocessors, (width + 1023) / 1024);
  plan.rows = (width + plan.blocks - 1) / plan.blocks;
  plan.threads = toy_gd_threads((plan.rows + thread_rows - 1) / thread_rows);
  plan.shared_bytes = small + (plan.resident ? plan.rows * row_bytes : 0);
  plan.replicas_per_launch =
      plan.blocks == 1 ? replicas : std::max<int64_t>(1, multiprocessors / plan.blocks);
}

// Shared memory of a replica in registers: at most these bytes, two numbers a warp and one for each
// padded input, and whole batches of 32 samples.
constexpr int64_t kToyGdSharedBytes = 832;
inline int64_t toy_gd_batches(int64_t samples) { return (samples + 31) / 32; }
inline int64_t toy_gd_register_bytes(int64_t registers, int64_t samples, int64_t element) {
  const int64_t warps = kToyGdMaxThreads / 32, pitch = registers + 16 / element;
  return kToyGdSharedBytes +
         element * ((2 * warps + 1) * registers + 32 * toy_gd_batches(samples) * pitch);
}

// Of the linear network. `blocks` is 0 where the small vectors alone do not fit.
inline ToyGdPlan toy_gd_plan(int64_t replicas, int64_t width, int64_t inputs, int64_t samples,
                             int64_t element, int64_t shared_limit, int64_t multiprocessors) {
  ToyGdPlan plan{};
  const int fit = inputs <= 8 ? 8 : inputs <= 16 ? 16 : inputs <= 32 ? 32 : 0;
  if (fit > 0) {
    const int64_t thread_rows = toy_gd_register_rows(fit, element);
    plan.shared_bytes = toy_gd_register_bytes(fit, samples, element);
    // half of the shared memory, so that two blocks find room
    if (width <= thread_rows * kToyGdMaxThreads && 2 * plan.shared_bytes <= shared_limit) {
      plan.registers = fit;
      plan.blocks = 1;
      plan.rows = width;
      plan.threads = toy_gd_threads((width + thread_rows - 1) / thread_rows);
      plan.replicas_per_launch = replicas;
      return plan;
    }
  }
  plan.stage_x = samples * inputs * element <= shared_limit / 8;
  // w of each warp and of all, zeta, the residuals and X
  const int64_t numbers = (kToyGdMaxThreads / 32 + 2) * inputs + samples +
                          (plan.stage_x ? samples * odd_pitch(inputs) : 0);
  toy_gd_place_rows(plan, replicas, width, inputs, element, toy_gd_small_bytes(numbers, element), 4,
                    shared_limit, multiprocessors);
  return plan;
}

}  // namespace catapult
