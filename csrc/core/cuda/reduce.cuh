// Reductions in a fixed order, so that results are the same on every run. Sums of squares and dots
// should be passed as double.
#pragma once

#include "core/cuda/runtime.cuh"

namespace catapult::device {

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Every lane gets the result. `Width` lanes (a power of two) form one group.
template <int Width = kWarpSize, typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int lanes = Width / 2; lanes > 0; lanes /= 2)
    value = op(value, __shfl_xor_sync(kFullMask, value, lanes, Width));
  return value;
}

template <int Width = kWarpSize, typename T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce<Width>(value, Sum{});
}

template <int Width = kWarpSize, typename T>
__device__ __forceinline__ T warp_max(T value) {
  return warp_reduce<Width>(value, Max{});
}

// Lane l gets the sum over the lanes l % kKeep, l % kKeep + kKeep, ... (kKeep a power of two).
template <int kKeep, typename T>
__device__ __forceinline__ T warp_fold(T value) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes >= kKeep; lanes /= 2)
    value += __shfl_xor_sync(kFullMask, value, lanes);
  return value;
}

// A recursion, not a loop: only then does the compiler keep v in registers.
template <int kHalf, typename T, int kCount>
__device__ __forceinline__ void warp_exchange(T (&v)[kCount]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int r = 0; r < kHalf; ++r) {
    const T sent = upper ? v[r] : v[r + kHalf];
    const T kept = upper ? v[r + kHalf] : v[r];
    v[r] = kept + __shfl_xor_sync(kFullMask, sent, kHalf);
  }
  if constexpr (kHalf > 1) warp_exchange<kHalf / 2>(v);
}

// Lane l gets the sum over the warp of v[l % kCount] (kCount a power of two up to 32): half the
// values change hands each time, so that it takes few shuffles more than one value would.
template <typename T, int kCount>
__device__ __forceinline__ T warp_transpose_sum(T (&v)[kCount]) {
  warp_exchange<kCount / 2>(v);
  return warp_fold<kCount>(v[0]);
}

// Reduces `value` over a one-dimensional block of a multiple of 32 threads; every thread gets the
// result. `scratch` is shared memory for blockDim.x / 32 values, free again when this returns.
template <typename T, typename Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T* scratch) {
  value = warp_reduce(value, op);
  const int warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  if (threadIdx.x % kWarpSize == 0) scratch[warp] = value;
  __syncthreads();
  T total = scratch[0];
  for (int i = 1; i < warps; ++i) total = op(total, scratch[i]);
  __syncthreads();  // scratch may be written again
  return total;
}

template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  return block_reduce(value, Sum{}, scratch);
}

template <typename T>
__device__ __forceinline__ T block_max(T value, T* scratch) {
  return block_reduce(value, Max{}, scratch);
}

}  // namespace catapult::device
