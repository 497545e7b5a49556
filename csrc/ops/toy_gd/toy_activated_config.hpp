// Problem -> blocks of the CUDA kernel for networks with an activation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.hpp"
#include "ops/toy_gd/toy_gd_config.hpp"

namespace catapult {

// Samples, or inputs, that a load of a weight serves at once.
constexpr int kToyActivatedChunk = 8;

CATAPULT_HOST_DEVICE constexpr int64_t toy_activated_padded(int64_t count) {
  return (count + kToyActivatedChunk - 1) / kToyActivatedChunk * kToyActivatedChunk;
}

// A thread keeps this many numbers per sample aside, in global memory: at most these bytes of them
// at once.
constexpr int64_t kToyActivatedScratch = 2, kToyActivatedScratchBytes = int64_t{1} << 26;

// Numbers in shared memory before X: f of each warp and of all, and the residuals, up to a multiple
// of 16 bytes.
CATAPULT_HOST_DEVICE constexpr int64_t toy_activated_vectors(int64_t samples) {
  return ((kToyGdMaxThreads / 32 + 2) * samples + 3) / 4 * 4;
}

// X twice, sample by sample and input by input, each row filled up with zeros to whole chunks.
CATAPULT_HOST_DEVICE constexpr int64_t toy_activated_x(int64_t samples, int64_t inputs) {
  return samples * toy_activated_padded(inputs) + inputs * toy_activated_padded(samples);
}

// `blocks` is 0 where the small vectors alone do not fit.
inline ToyGdPlan toy_activated_plan(int64_t replicas, int64_t width, int64_t inputs,
                                    int64_t samples, int64_t element, int64_t shared_limit,
                                    int64_t multiprocessors) {
  ToyGdPlan plan{};
  const int64_t x = toy_activated_x(samples, inputs);
  plan.stage_x = x * element <= shared_limit / 4;
  const int64_t numbers = toy_activated_vectors(samples) + (plan.stage_x ? x : 0);
  toy_gd_place_rows(plan, replicas, width, inputs, element, toy_gd_small_bytes(numbers, element), 1,
                    shared_limit, multiprocessors);
  if (plan.blocks == 0) return plan;
  const int64_t each = kToyActivatedScratch * samples * plan.threads * element * plan.blocks;
  plan.replicas_per_launch =
      std::clamp<int64_t>(kToyActivatedScratchBytes / each, 1, plan.replicas_per_launch);
  return plan;
}

}  // namespace catapult
