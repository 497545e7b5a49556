// Problem -> blocks of the CUDA kernel: one replica per warp, several warps per block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.hpp"
#include "core/odd_pitch.hpp"

namespace catapult {

struct ToyReducedPlan {
  int64_t warps;         // replicas per block; 0 where not even one fits
  bool resident;         // S stays in shared memory, otherwise it is updated in global memory
  bool stage_x;          // X is copied to shared memory, once a block
  int64_t shared_bytes;  // of a block
};

// Entries of shared memory of one replica: w, zeta, S zeta, p, the residuals, and S if resident.
CATAPULT_HOST_DEVICE inline int64_t toy_reduced_entries(int64_t inputs, int64_t samples,
                                                        bool resident) {
  return 4 * inputs + samples + (resident ? inputs * inputs : 0);
}

inline ToyReducedPlan toy_reduced_plan(int64_t replicas, int64_t inputs, int64_t samples,
                                       int64_t element, int64_t shared_limit) {
  ToyReducedPlan plan{};
  const int64_t staged = samples * odd_pitch(inputs) * element;
  plan.stage_x = staged <= shared_limit / 16;
  if (plan.stage_x) shared_limit -= staged;
  plan.resident = toy_reduced_entries(inputs, samples, true) * element <= shared_limit;
  const int64_t each = toy_reduced_entries(inputs, samples, plan.resident) * element;
  // Eight warps a block, as long as four blocks share a multiprocessor.
  plan.warps = std::clamp<int64_t>(shared_limit / 4 / each, 1, 8);
  plan.warps = std::min(plan.warps, replicas);
  if (each > shared_limit) plan.warps = 0;
  plan.shared_bytes = plan.warps * each + (plan.stage_x ? staged : 0);
  return plan;
}

}  // namespace catapult
