// Kernels with one planted fault each: every one of them must be found.
#include "core/cuda/atomics.cuh"
#include "core/cuda/grid.cuh"
#include "core/cuda/vec_io.cuh"
#include "harness.hpp"

using namespace catapult::device;

namespace {

struct Data {
  float* x;
  int n;
};

constexpr int kThreads = 64;

__global__ void missing_barrier_kernel(Data p) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = p.x[threadIdx.x];
  p.x[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void missing_syncwarp_kernel(Data p) {
  __shared__ float shared[32];
  shared[threadIdx.x] = p.x[threadIdx.x];
  // The shuffle makes the lanes meet here, but promises nothing about memory.
  const float other = __shfl_xor_sync(kFullMask, p.x[threadIdx.x], 1);
  p.x[threadIdx.x] = shared[threadIdx.x ^ 1] - other;
}

__global__ void missing_wait_kernel(Data p) {
  __shared__ __align__(16) float shared[32];
  copy_async<4>(&shared[threadIdx.x], p.x + threadIdx.x);
  copy_commit();
  __syncthreads();
  p.x[threadIdx.x] = shared[31 - threadIdx.x];
}

__global__ void uninitialised_kernel(Data p) {
  __shared__ float shared[kThreads];
  if (threadIdx.x > 0) shared[threadIdx.x] = 0.0f;
  __syncthreads();
  p.x[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void out_of_bounds_global_kernel(Data p) { p.x[threadIdx.x + 1] = 1.0f; }

__global__ void out_of_bounds_dynamic_kernel(Data p) {
  CATAPULT_DYNAMIC_SMEM(float, shared);
  shared[threadIdx.x + 1] = 1.0f;
  p.x[threadIdx.x] = shared[threadIdx.x];
}

__global__ void out_of_bounds_static_kernel(Data p) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = 1.0f;
  p.x[threadIdx.x] = shared[threadIdx.x + p.n / kThreads];
}

__global__ void divergent_barrier_kernel(Data p) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    p.x[threadIdx.x] = 1.0f;
    __syncthreads();
  }
}

__global__ void barrier_against_shuffle_kernel(Data p) {
  if (blockIdx.x == 1 && threadIdx.x % 2) {
    __syncthreads();
  } else {
    p.x[threadIdx.x] = __shfl_sync(kFullMask, 1.0f, 0);
    __syncthreads();
  }
}

__global__ void divergent_shuffle_kernel(Data p) {
  if (threadIdx.x % 2) {
    p.x[threadIdx.x] = __shfl_sync(kFullMask, 1.0f, 0);
  } else {
    p.x[threadIdx.x] = __shfl_sync(kFullMask, 2.0f, 0);
  }
}

__global__ void race_between_blocks_kernel(Data p) {
  // Ordered within the block by the barrier, not between the blocks.
  if (threadIdx.x == blockIdx.x) p.x[0] += 1.0f;
  __syncthreads();
}

__global__ void race_same_thread_kernel(Data p) { p.x[threadIdx.x] += 1.0f; }

__global__ void missing_grid_sync_kernel(Data p) {
  p.x[blockIdx.x * 32 + threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) p.x[blockIdx.x * 32] += p.x[(1 - blockIdx.x) * 32 + 5];
}

__global__ void grid_sync_kernel(Data p) {
  grid_sync();
  p.x[0] = 1.0f;
}

__global__ void grid_sync_with_exit_kernel(Data p) {
  if (blockIdx.x == 0 && threadIdx.x == 3) return;
  grid_sync();
  if (threadIdx.x == 0 && blockIdx.x == 0) p.x[0] = 1.0f;
}

__global__ void misaligned_kernel(Data p) { p.x[0] = load_pack<4>(p.x + 1)[0]; }

__global__ void polls_for_ever_kernel(Data p) {
  while (load_acquire(reinterpret_cast<int*>(p.x)) == 12345) {
  }
}

bool run(void (*kernel)(Data), int blocks, int threads, size_t shared = 0,
         bool cooperative = false) {
  std::vector<float> x(kThreads * 4, 0.0f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  if (kernel == polls_for_ever_kernel) {
    const int never = 12345;
    std::memcpy(x.data(), &never, 4);
  }
  x.resize(kThreads);
  x.shrink_to_fit();  // so that the end of the memory is the end of the data
  const std::vector<float> before = x;
  zoo::run(kernel, dim3(blocks), dim3(threads), Data{x.data(), kThreads}, shared, cooperative);
  for (int i = 0; i < threads; ++i)  // what the reversing kernels should have done
    if (x[i] != before[threads - 1 - i]) return false;
  return true;
}

}  // namespace

ZOO(missing_barrier) { return run(missing_barrier_kernel, 1, kThreads); }
ZOO(missing_syncwarp) { return run(missing_syncwarp_kernel, 1, 32); }
ZOO(missing_wait) { return run(missing_wait_kernel, 1, 32); }
ZOO(uninitialised) { return run(uninitialised_kernel, 1, kThreads); }
ZOO(out_of_bounds_global) { return run(out_of_bounds_global_kernel, 1, kThreads); }
ZOO(out_of_bounds_dynamic) { return run(out_of_bounds_dynamic_kernel, 1, kThreads, kThreads * 4); }
ZOO(out_of_bounds_static) { return run(out_of_bounds_static_kernel, 1, kThreads); }
ZOO(divergent_barrier) { return run(divergent_barrier_kernel, 1, kThreads); }
ZOO(barrier_against_shuffle) { return run(barrier_against_shuffle_kernel, 2, kThreads); }
ZOO(divergent_shuffle) { return run(divergent_shuffle_kernel, 1, 32); }
ZOO(race_between_blocks) { return run(race_between_blocks_kernel, 2, kThreads); }
ZOO(race_same_thread) { return run(race_same_thread_kernel, 2, kThreads); }
ZOO(missing_grid_sync) { return run(missing_grid_sync_kernel, 2, kThreads / 2, 0, true); }
ZOO(grid_sync_not_cooperative) { return run(grid_sync_kernel, 1, 32); }
ZOO(grid_sync_with_exit) { return run(grid_sync_with_exit_kernel, 2, 32, 0, true); }
ZOO(cooperative_too_large) { return run(grid_sync_kernel, 500, 32, 0, true); }
ZOO(too_much_shared) { return run(missing_barrier_kernel, 1, kThreads, 300 * 1024); }
ZOO(misaligned) { return run(misaligned_kernel, 1, 1); }
ZOO(polls_for_ever) { return run(polls_for_ever_kernel, 1, 32); }
