// The linear network whose rows do not fit in registers: one replica per block (or several blocks
// with a barrier over the grid once a step). Its rows of U and v stay in shared memory for all
// steps where they fit, U by columns, so that neighbouring threads read neighbouring words; global
// memory then sees the records only.
#pragma once

#include "ops/toy_gd/toy_gd_block.cuh"

namespace catapult::device {

// One step of size `rate` along zeta on the block's rows; sums[warp][j] holds the warps' shares of
// w_j of the new weights, the return value this thread's share of |v|^2.
template <typename T>
__device__ double toy_gd_rows(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, T rate) {
  constexpr int kRows = 4;
  const int warp = threadIdx.x / kWarpSize;
  double q = 0.0;
  for (int64_t base = 0; base == 0 || base < b.rows; base += kRows * int64_t{blockDim.x}) {
    T fresh[kRows], pull[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t i = base + k * int64_t{blockDim.x} + threadIdx.x;
      fresh[k] = pull[k] = T(0);
      if (!in_bounds(i < b.rows)) continue;
      T uz = T(0);
      for (int j = 0; j < p.inputs; ++j)
        uz += b.u[i * b.row_stride + j * b.input_stride] * b.zeta[j];
      const T old = b.v[i];
      fresh[k] = old - rate * uz;
      pull[k] = -rate * old;
      b.v[i] = fresh[k];
      q += static_cast<double>(fresh[k]) * static_cast<double>(fresh[k]);
    }
    for (int j = 0; j < p.inputs; ++j) {
      const T z = b.zeta[j];
      T sum = T(0);
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int64_t i = base + k * int64_t{blockDim.x} + threadIdx.x;
        if (!in_bounds(i < b.rows)) continue;
        T* const entry = b.u + i * b.row_stride + j * b.input_stride;
        const T row = *entry + pull[k] * z;
        *entry = row;
        sum += fresh[k] * row;
      }
      sum = warp_sum(sum);
      if (threadIdx.x % kWarpSize == 0) {
        T* const slot = b.sums + warp * p.sums + j;
        *slot = base == 0 ? sum : *slot + sum;
      }
    }
  }
  return q;
}

// The residuals and zeta of the weights as they are; returns the loss to every thread.
template <typename T>
__device__ T toy_gd_observe(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
  double squares = 0.0;
  for (int a = threadIdx.x; a < p.samples; a += blockDim.x) {
    T f = T(0);
    for (int j = 0; j < p.inputs; ++j) f += b.data.x[a * b.data.pitch + j] * b.w[j];
    const T r = f * p.inverse_root_width - p.y[a];
    b.residual[a] = r;
    squares += static_cast<double>(r) * static_cast<double>(r);
  }
  squares = block_sum(squares, b.scratch);  // its barriers publish the residuals as well
  // A warp per input: a chain of few additions, as every step waits for it.
  const int lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  for (int j = threadIdx.x / kWarpSize; j < p.inputs; j += warps) {
    T sum = T(0);
    for (int a = lane; a < p.samples; a += kWarpSize)
      sum += b.data.x[a * b.data.pitch + j] * b.residual[a];
    sum = warp_sum(sum);
    if (lane == 0) b.zeta[j] = sum / static_cast<T>(p.samples);
  }
  return static_cast<T>(squares / (2.0 * p.samples));
}

// Thread 0 tracks |U|^2: it follows from w, q and zeta exactly.
template <typename T>
__device__ void toy_gd_follow_norm(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
  double wz = 0.0, zz = 0.0;
  for (int j = 0; j < p.inputs; ++j) {
    const double z = static_cast<double>(b.zeta[j]);
    wz += static_cast<double>(b.w[j]) * z;
    zz += z * z;
  }
  const double rate = static_cast<double>(b.rate);
  b.totals[1] += rate * (rate * b.totals[0] * zz - 2.0 * wz);
}

// The linear network's Rows for toy_gd_run, where they are.
template <typename T>
struct ToyGdLinear {
  static constexpr bool kLinear = true;

  __device__ T* stage(const ToyGdParams<T>& p, ToyGdBlock<T>& b) const {
    T* next = b.residual + p.samples;
    b.data = stage_rows(p.x, p.samples, p.inputs, p.stage_x, next);
    return next;
  }

  // A step of size zero along zero leaves the weights as they are and gives their w and q.
  __device__ double start(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
    return toy_gd_rows(p, b, T(0));
  }
  __device__ double step(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double&) {
    return toy_gd_rows(p, b, b.rate);
  }
  __device__ T observe(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    return toy_gd_observe(p, b);
  }
  __device__ void follow(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    toy_gd_follow_norm(p, b);
  }
  __device__ void record(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double* out) const {
    toy_gd_store_gram(b.u, b.row_stride, b.input_stride, b.rows, p.inputs, out);
    if (threadIdx.x == 0) out[p.inputs * p.inputs] = b.totals[2];
  }
};

template <typename T>
__global__ void __launch_bounds__(kToyGdMaxThreads, 1) toy_gd_kernel(const ToyGdParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(unsigned char, smem);
  toy_gd_run<ToyGdLinear<T>>(p, smem + kToyGdRecordBytes, toy_record<T>(smem));
}

}  // namespace catapult::device
