// Blocks that work on one problem together. One block is its own team; larger teams need a
// cooperative launch, as they wait for each other.
#pragma once

#include "core/cuda/atomics.cuh"
#include "core/cuda/runtime.cuh"

namespace catapult::device {

struct Team {
  int rank, size;
  int* arrived;    // global; zero before the launch, one per team
  int target = 0;  // kept by thread 0

  // What any thread of the team wrote before is seen by all of them after.
  __device__ void sync() {
    __syncthreads();
    if (size == 1) return;
    if (threadIdx.x == 0) {
      target += size;
      add_acq_rel(arrived, 1);
      while (load_acquire(arrived) < target) {
      }
    }
    __syncthreads();
  }
};

}  // namespace catapult::device
