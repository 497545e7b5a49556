// The linear network: one replica per block (or several blocks with a barrier over the grid once a
// step). Its rows of U and v stay in registers for all steps where D is small, else in shared
// memory, U by columns, so that neighbouring threads read neighbouring words; global memory sees
// the records only.
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
        T* const slot = b.sums + warp * p.padded + j;
        *slot = base == 0 ? sum : *slot + sum;
      }
    }
  }
  return q;
}

// The rows of one thread, in registers; those beyond the width are zero and stay so.
template <typename T, int kInputs>
struct ToyGdRegisters {
  static constexpr int kRows = static_cast<int>(toy_gd_register_rows(kInputs, sizeof(T)));
  T u[kRows][kInputs], v[kRows];

  // f(k, i) for each of this thread's rows of the replica.
  template <typename F>
  __device__ static void for_rows(const ToyGdBlock<T>& b, F f) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t i = k * int64_t{blockDim.x} + threadIdx.x;
      if (in_bounds(i < b.rows)) f(k, i);
    }
  }

  __device__ void load(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      v[k] = T(0);
#pragma unroll
      for (int j = 0; j < kInputs; ++j) u[k][j] = T(0);
    }
    for_rows(b, [&](int k, int64_t i) {
      v[k] = b.v[i];
#pragma unroll
      for (int j = 0; j < kInputs; ++j)
        if (j < p.inputs) u[k][j] = b.u[i * p.inputs + j];
    });
  }

  __device__ void store(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    for_rows(b, [&](int k, int64_t i) {
      b.v[i] = v[k];
#pragma unroll
      for (int j = 0; j < kInputs; ++j)
        if (j < p.inputs) b.u[i * p.inputs + j] = u[k][j];
    });
  }

  // As toy_gd_rows. A few inputs at a time, so that their sums leave room for two blocks.
  __device__ double advance(const ToyGdParams<T>&, const ToyGdBlock<T>& b, T rate) {
    constexpr int kChunk = 8;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    double q = 0.0;
    T pull[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      T uz = T(0);
#pragma unroll
      for (int j = 0; j < kInputs; ++j) uz += u[k][j] * b.zeta[j];
      pull[k] = -rate * v[k];
      v[k] -= rate * uz;
      q += static_cast<double>(v[k]) * static_cast<double>(v[k]);
    }
#pragma unroll
    for (int first = 0; first < kInputs; first += kChunk) {
      T sum[kChunk] = {};
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        const T z = b.zeta[first + j];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          u[k][first + j] += pull[k] * z;
          sum[j] += v[k] * u[k][first + j];
        }
      }
      const T total = warp_transpose_sum(sum);
      if (lane < kChunk) b.sums[warp * kInputs + first + lane] = total;
    }
    return q;
  }
};

// Rows that stay in shared or global memory.
template <typename T>
struct ToyGdRegisters<T, 0> {
  __device__ void load(const ToyGdParams<T>&, const ToyGdBlock<T>&) {}
  __device__ void store(const ToyGdParams<T>&, const ToyGdBlock<T>&) const {}
  __device__ double advance(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, T rate) {
    return toy_gd_rows(p, b, rate);
  }
};

// The residuals and zeta of the weights as they are; returns the loss to every thread.
template <typename T>
__device__ T toy_gd_observe(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
  double squares = 0.0;
  for (int a = threadIdx.x; a < p.samples; a += blockDim.x) {
    T f = T(0);
    for (int j = 0; j < p.inputs; ++j) f += b.data.x[a * b.data.pitch + j] * b.w[j];
    const T r = f * b.inverse_root_width - p.y[a];
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

template <typename T>
__device__ void toy_gd_store_gram(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double* out) {
  const int d = p.inputs;
  for (int e = threadIdx.x; e < d * d; e += blockDim.x) {
    const int i = e / d, j = e % d;
    double sum = 0.0;
#pragma unroll 1  // more would cost the rows their registers
    for (int64_t r = 0; r < b.rows; ++r) {
      const T* row = b.u + r * b.row_stride;
      sum += static_cast<double>(row[i * b.input_stride]) *
             static_cast<double>(row[j * b.input_stride]);
    }
    out[e] = sum;
  }
  if (threadIdx.x == 0) out[d * d] = b.totals[2];
}

// The linear network's Rows for toy_gd_run: in registers, or with kInputs = 0 where they are.
template <typename T, int kInputs>
struct ToyGdLinear {
  static constexpr bool kAlone = kInputs > 0, kLinear = true;
  ToyGdRegisters<T, kInputs> rows;

  __device__ void load(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) { rows.load(p, b); }
  __device__ void store(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const { rows.store(p, b); }

  // A step of size zero along zero leaves the weights as they are and gives their w and q.
  __device__ double start(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
    return rows.advance(p, b, T(0));
  }
  __device__ double step(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double&) {
    return rows.advance(p, b, b.rate);
  }
  __device__ T observe(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    return toy_gd_observe(p, b);
  }
  __device__ void follow(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    toy_gd_follow_norm(p, b);
  }
  __device__ void record(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double* out) const {
    if constexpr (kInputs > 0) {
      rows.store(p, b);
      __syncthreads();
    }
    toy_gd_store_gram(p, b, out);
  }
};

// Two blocks a multiprocessor, where the compiler manages that without spilling.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
constexpr int kToyGdFloatBlocks = 2;
#else
constexpr int kToyGdFloatBlocks = 1;
#endif

template <typename T, int kInputs>
__global__ void __launch_bounds__(kToyGdMaxThreads,
                                  kInputs > 0 && sizeof(T) == 4 ? kToyGdFloatBlocks : 1)
    toy_gd_kernel(const ToyGdParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(unsigned char, smem);
  toy_gd_run<ToyGdLinear<T, kInputs>>(p, smem + kToyGdRecordBytes, toy_record<T>(smem));
}

}  // namespace catapult::device
