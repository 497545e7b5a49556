// One replica per block (or several blocks with a barrier over the grid once a step). Its rows of U
// and v stay in registers for all steps where D is small, else in shared memory, U by columns, so
// that neighbouring threads read neighbouring words; global memory sees the records only.
#pragma once

#include "core/cuda/grid.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/runtime.cuh"
#include "core/cuda/staged_rows.cuh"
#include "ops/toy_gd/toy_gd_config.hpp"
#include "ops/toy_gd/toy_gd_math.hpp"

namespace catapult::device {

template <typename T>
struct ToyGdParams {
  T* u;  // (R, width, inputs)
  T* v;  // (R, width)
  const T* x;
  const T* y;
  const T* eta;
  T* loss;         // (R, columns)
  T* weight_norm;  // (R, columns)
  int64_t* diverged_at;
  double* partials;  // (2, replicas of the launch, blocks, inputs + 2); used with several blocks
  double* grams;     // (R, curvatures, blocks, inputs^2 + 1): U'U of the block's rows, |v|^2
  int64_t first, width, rows;
  int64_t steps, record_every, curvature_every, columns, curvatures;
  int inputs, samples, blocks;
  int padded;  // inputs, rounded up where rows are in registers
  bool resident, stage_x;
};

// What a block works with; everything but the counters lives in shared memory; u and v in global
// memory where they do not fit or are kept in registers.
template <typename T>
struct ToyGdBlock {
  T *u, *v;
  int64_t row_stride, input_stride, rows;
  StagedRows<T> data;  // X
  T *sums, *w, *zeta, *residual;
  double* scratch;  // one per warp
  double* totals;   // q of the replica, |U|^2 of the replica, q of the block
  int* alive;
  T rate, inverse_root_width;
};

template <typename T>
__device__ ToyGdBlock<T> toy_gd_setup(const ToyGdParams<T>& p, unsigned char* smem, int block,
                                      int64_t replica, double& u_norm) {
  constexpr int kWarps = kToyGdMaxThreads / kWarpSize;
  ToyGdBlock<T> b;
  b.scratch = reinterpret_cast<double*>(smem);
  b.totals = b.scratch + kWarps;
  b.alive = reinterpret_cast<int*>(b.totals + 3);
  b.sums = reinterpret_cast<T*>(b.totals + 4);
  b.w = b.sums + kWarps * p.padded;
  b.zeta = b.w + p.padded;
  b.residual = b.zeta + p.padded;
  T* next = b.residual + p.samples;
  b.data = stage_rows(p.x, p.samples, p.inputs, p.stage_x, next);
  const int64_t row0 = block * p.rows;
  b.rows = p.width - row0 < p.rows ? p.width - row0 : p.rows;
  if (b.rows < 0) b.rows = 0;
  T* const u = p.u + (replica * p.width + row0) * p.inputs;
  T* const v = p.v + replica * p.width + row0;
  b.u = p.resident ? next : u;
  b.v = p.resident ? next + p.rows * p.inputs : v;
  b.row_stride = p.resident ? 1 : p.inputs;
  b.input_stride = p.resident ? p.rows : 1;
  u_norm = 0.0;
  for (int64_t i = threadIdx.x; i < b.rows * p.inputs; i += blockDim.x) {
    const T entry = u[i];
    if (p.resident) b.u[i % p.inputs * b.input_stride + i / p.inputs] = entry;
    u_norm += static_cast<double>(entry) * static_cast<double>(entry);
  }
  for (int64_t i = threadIdx.x; p.resident && i < b.rows; i += blockDim.x) b.v[i] = v[i];
  for (int j = threadIdx.x; j < p.padded; j += blockDim.x) b.zeta[j] = T(0);
  b.rate = static_cast<T>(static_cast<double>(p.eta[replica]) / sqrt(static_cast<double>(p.width)));
  b.inverse_root_width = static_cast<T>(1.0 / sqrt(static_cast<double>(p.width)));
  return b;
}

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
  __device__ double advance(const ToyGdBlock<T>& b, T rate) {
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
};

// Sums of all warps, and of all blocks of the replica, into w and totals. Ends with a barrier.
// `kAlone`: one block is known to hold the replica.
template <bool kAlone, typename T>
__device__ void toy_gd_gather(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, int block,
                              int64_t local, int64_t round, double q, double u_norm) {
  const int warps = blockDim.x / kWarpSize;
  const bool alone = kAlone || p.blocks == 1;
  q = block_sum(q, b.scratch);  // its barriers publish sums as well
  const int64_t entries = p.inputs + 2, replicas = gridDim.x / p.blocks;
  double* const all =
      p.partials + ((round % 2 * replicas + local) * p.blocks) * entries;  // of this replica
  for (int j = threadIdx.x; j < p.inputs; j += blockDim.x) {
    T sum = T(0);
    for (int i = 0; i < warps; ++i) sum += b.sums[i * p.padded + j];
    if (alone) {
      b.w[j] = sum;
    } else {
      all[block * entries + j] = static_cast<double>(sum);
    }
  }
  if (threadIdx.x == 0) {
    b.totals[0] = b.totals[2] = q;
    if (round == 0) b.totals[1] = u_norm;
    if (!alone) {
      all[block * entries + p.inputs] = q;
      all[block * entries + p.inputs + 1] = u_norm;
    }
  }
  if (!alone) {
    // The buffers alternate, so a block one step ahead does not overwrite what is being read.
    grid_sync();
    for (int j = threadIdx.x; j < p.inputs + 2; j += blockDim.x) {
      double sum = 0.0;
      for (int i = 0; i < p.blocks; ++i) sum += all[i * entries + j];
      if (j < p.inputs) {
        b.w[j] = static_cast<T>(sum);
      } else if (j == p.inputs) {
        b.totals[0] = sum;
      } else if (round == 0) {
        b.totals[1] = sum;
      }
    }
  }
  __syncthreads();
}

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
  const int team = kInputs > 0 ? 1 : p.blocks, block = blockIdx.x % team;
  const int64_t local = blockIdx.x / team, replica = p.first + local;
  double u_norm, xx = 0.0, yy = 0.0;
  const ToyGdBlock<T> b = toy_gd_setup(p, smem, block, replica, u_norm);
  for (int i = threadIdx.x; i < p.samples * p.inputs; i += blockDim.x)
    xx += static_cast<double>(p.x[i]) * static_cast<double>(p.x[i]);
  for (int i = threadIdx.x; i < p.samples; i += blockDim.x)
    yy += static_cast<double>(p.y[i]) * static_cast<double>(p.y[i]);
  const ToyDataNorms norms{block_sum(xx, b.scratch), block_sum(yy, b.scratch)};
  u_norm = block_sum(u_norm, b.scratch);
  ToyGdRegisters<T, kInputs> rows;
  rows.load(p, b);
  const auto advance = [&](T rate) {
    if constexpr (kInputs > 0) {
      return rows.advance(b, rate);
    } else {
      return toy_gd_rows(p, b, rate);
    }
  };
  // A step of size zero along zero leaves the weights as they are and gives their w and q.
  toy_gd_gather<(kInputs > 0)>(p, b, block, local, 0, advance(T(0)), u_norm);

  // Thread 0's; in shared memory, as the registers are for the rows.
  __shared__ ToyReplicaRecord<T> record;
  if (threadIdx.x == 0) {
    record = {};
    record.loss = p.loss + replica * p.columns;
    record.weight_norm = p.weight_norm + replica * p.columns;
    record.diverged_at = p.diverged_at + replica;
    record.steps = p.steps;
    record.record_every = p.record_every;
    record.cut = toy_divergence_cut<T>(norms, p.samples, static_cast<double>(p.width),
                                       b.totals[0] + b.totals[1]);
  }
  int64_t t = 0, next_curvature = 0, gram = replica * p.curvatures;
  for (;; ++t) {
    const T loss = toy_gd_observe(p, b);
    if (threadIdx.x == 0) {
      const T norm = static_cast<T>(b.totals[0] + b.totals[1]);
      *b.alive = block == 0 ? record.accept(t, loss, norm) : record.acceptable(loss, norm);
    }
    __syncthreads();
    if (!*b.alive) break;
    if (p.curvature_every > 0 && t == next_curvature) {
      if constexpr (kInputs > 0) {
        rows.store(p, b);
        __syncthreads();
      }
      toy_gd_store_gram(p, b,
                        p.grams + (gram++ * team + block) * (int64_t{p.inputs} * p.inputs + 1));
      next_curvature += p.curvature_every;
      __syncthreads();  // before the rows change
    }
    if (t == p.steps) break;
    const double q = advance(b.rate);
    if (threadIdx.x == 0) toy_gd_follow_norm(p, b);
    toy_gd_gather<(kInputs > 0)>(p, b, block, local, t + 1, q, 0.0);
  }
  // The other replicas of the launch still wait for this one once a step.
  for (; team > 1 && t < p.steps; ++t) grid_sync();
  if constexpr (kInputs > 0) rows.store(p, b);
  if (!p.resident) return;
  const int64_t row0 = block * p.rows;
  T* const u = p.u + (replica * p.width + row0) * p.inputs;
  for (int64_t i = threadIdx.x; i < b.rows * p.inputs; i += blockDim.x)
    u[i] = b.u[i % p.inputs * b.input_stride + i / p.inputs];
  for (int64_t i = threadIdx.x; i < b.rows; i += blockDim.x)
    p.v[replica * p.width + row0 + i] = b.v[i];
}

}  // namespace catapult::device
