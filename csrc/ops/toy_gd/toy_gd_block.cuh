// What a block of the direct form works with, and the steps of all its replicas' run; how it keeps
// and moves its rows of U and v is up to a Rows type.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/cuda/grid.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/runtime.cuh"
#include "core/cuda/staged_rows.cuh"
#include "ops/toy_gd/toy_gd.hpp"
#include "ops/toy_gd/toy_gd_config.hpp"
#include "toy/toy_math.hpp"

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
  double* partials;  // (2, replicas of the launch, blocks, sums + 2); used with several blocks
  double* grams;     // (R, curvatures, blocks, order^2 + 1): see ToyCurvatureArgs
  T* scratch;        // with an activation: (blocks of the launch, 2, samples, threads)
  int64_t first, width, rows;
  int64_t steps, record_every, curvature_every, columns, curvatures;
  int inputs, samples, blocks;
  int sums;              // what a step adds up over the rows: the D of w = U'v, or the N outputs
  int batches, lookers;  // of 32 samples, and warps that share them: one, or all
  double inverse_samples;
  T inverse_root_width;
  bool resident, stage_x;
  ToyActivation phi;
};

// What both networks' launches have in common.
template <typename T>
ToyGdParams<T> toy_gd_params(const ToyGdArgs& args, const ToyGdSizes& sizes, const ToyGdPlan& plan,
                             int64_t sums) {
  const ToyRecords& r = args.records;
  ToyGdParams<T> params{};
  params.u = args.u.as<T>();
  params.v = args.v.as<T>();
  params.x = args.x.as<T>();
  params.y = args.y.as<T>();
  params.eta = args.eta.as<T>();
  params.loss = r.loss.as<T>();
  params.weight_norm = r.weight_norm.as<T>();
  params.diverged_at = r.diverged_at.as<int64_t>();
  params.partials = args.workspace.as<double>();
  params.width = sizes.width;
  params.rows = plan.rows;
  params.steps = r.steps;
  params.record_every = r.record_every;
  params.curvature_every = r.curvature_every;
  params.columns = r.loss.size[1];
  params.curvatures = r.curvature.size[1];
  params.inputs = static_cast<int>(sizes.inputs);
  params.samples = static_cast<int>(sizes.samples);
  params.blocks = static_cast<int>(plan.blocks);
  params.sums = static_cast<int>(sums);
  params.inverse_samples = 1.0 / static_cast<double>(sizes.samples);
  params.inverse_root_width = static_cast<T>(1.0 / std::sqrt(static_cast<double>(sizes.width)));
  params.resident = plan.resident;
  params.stage_x = plan.stage_x;
  params.phi = args.activation;
  return params;
}

// Doubles of workspace for the sums of blocks that share a replica.
inline int64_t toy_gd_partials(const ToyGdPlan& plan, int64_t sums) {
  return plan.blocks == 1 ? 0 : 2 * plan.replicas_per_launch * plan.blocks * (sums + 2);
}

// All replicas, as many at a time as the plan allows.
template <typename T>
void toy_gd_launch(void (*kernel)(ToyGdParams<T>), const char* op, const ToyGdPlan& plan,
                   int64_t replicas, const Exec& exec, ToyGdParams<T> params) {
  for (int64_t first = 0; first < replicas; first += plan.replicas_per_launch) {
    const int64_t count = std::min(plan.replicas_per_launch, replicas - first);
    params.first = first;
    launch(kernel,
           {op, exec, dim3(static_cast<unsigned>(count * plan.blocks)),
            dim3(static_cast<unsigned>(plan.threads)), static_cast<size_t>(plan.shared_bytes),
            plan.blocks > 1},
           params);
  }
}

// Everything but the counters lives in shared memory; u and v in global memory where they do not
// fit or are kept in registers.
template <typename T>
struct ToyGdBlock {
  T *u, *v;
  int64_t row_stride, input_stride, rows;
  StagedRows<T> data;  // X
  T *sums, *w, *zeta, *residual;
  double* scratch;  // one per warp
  double* totals;   // q of the replica, |U|^2 of the replica, q of the block
  int* alive;
  T rate;
};

template <typename T>
__device__ T toy_gd_rate(const ToyGdParams<T>& p, int64_t replica) {
  return static_cast<T>(static_cast<double>(p.eta[replica]) / sqrt(static_cast<double>(p.width)));
}

// The empty record of a replica with these |U|^2 and |v|^2.
template <typename T>
__device__ ToyReplicaRecord<T> toy_gd_record(const ToyGdParams<T>& p, int64_t replica,
                                             const ToyDataNorms& norms, double u2, double v2,
                                             const ToyActivation& phi = {}) {
  ToyReplicaRecord<T> record{};
  record.loss = p.loss + replica * p.columns;
  record.weight_norm = p.weight_norm + replica * p.columns;
  record.diverged_at = p.diverged_at + replica;
  record.steps = p.steps;
  record.record_every = p.record_every;
  record.cut =
      toy_divergence_cut<T>(norms, p.samples, static_cast<double>(p.width), v2 + u2, phi, v2);
  return record;
}

// S = U'U in float64 of rows in memory, which other threads may have written before a barrier.
template <typename T>
__device__ void toy_gd_store_gram(const T* u, int64_t row_stride, int64_t input_stride,
                                  int64_t rows, int inputs, double* out) {
  for (int e = threadIdx.x; e < inputs * inputs; e += blockDim.x) {
    const T *const left = u + e / inputs * input_stride, *const right =
                                                             u + e % inputs * input_stride;
    double sum = 0.0;
#pragma unroll 1  // more would cost the rows their registers
    for (int64_t r = 0; r < rows; ++r)
      sum += static_cast<double>(left[r * row_stride]) * static_cast<double>(right[r * row_stride]);
    out[e] = sum;
  }
}

template <typename Rows, typename T>
__device__ ToyGdBlock<T> toy_gd_setup(Rows& held, const ToyGdParams<T>& p, unsigned char* smem,
                                      int block, int64_t replica, double& u_norm) {
  constexpr int kWarps = kToyGdMaxThreads / kWarpSize;
  const int directions = Rows::kLinear ? p.inputs : 0;
  ToyGdBlock<T> b;
  b.scratch = reinterpret_cast<double*>(smem);
  b.totals = b.scratch + kWarps;
  b.alive = reinterpret_cast<int*>(b.totals + 3);
  b.sums = reinterpret_cast<T*>(b.totals + 4);
  b.w = b.sums + kWarps * p.sums;
  b.zeta = b.w + p.sums;
  b.residual = b.zeta + directions;
  T* const next = held.stage(p, b);
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
  for (int j = threadIdx.x; j < directions; j += blockDim.x) b.zeta[j] = T(0);
  b.rate = toy_gd_rate(p, replica);
  return b;
}

// Sums of all warps, and of all blocks of the replica, into w and totals. Ends with a barrier.
// Rows::kLinear: |U|^2 is summed in round 0 only.
template <typename Rows, typename T>
__device__ void toy_gd_gather(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, int block,
                              int64_t local, int64_t round, double q, double u_norm) {
  const int warps = blockDim.x / kWarpSize;
  const bool alone = p.blocks == 1, norm = !Rows::kLinear || round == 0;
  q = block_sum(q, b.scratch);  // its barriers publish sums as well
  if (!Rows::kLinear) u_norm = block_sum(u_norm, b.scratch);
  const int64_t entries = p.sums + 2, replicas = gridDim.x / p.blocks;
  double* const all =
      p.partials + ((round % 2 * replicas + local) * p.blocks) * entries;  // of this replica
  for (int j = threadIdx.x; j < p.sums; j += blockDim.x) {
    T sum = T(0);
    for (int i = 0; i < warps; ++i) sum += b.sums[i * p.sums + j];
    if (alone) {
      b.w[j] = sum;
    } else {
      all[block * entries + j] = static_cast<double>(sum);
    }
  }
  if (threadIdx.x == 0) {
    b.totals[0] = b.totals[2] = q;
    if (norm) b.totals[1] = u_norm;
    if (!alone) {
      all[block * entries + p.sums] = q;
      all[block * entries + p.sums + 1] = u_norm;
    }
  }
  if (!alone) {
    // The buffers alternate, so a block one step ahead does not overwrite what is being read.
    grid_sync();
    for (int j = threadIdx.x; j < p.sums + 2; j += blockDim.x) {
      double sum = 0.0;
      for (int i = 0; i < p.blocks; ++i) sum += all[i * entries + j];
      if (j < p.sums) {
        b.w[j] = static_cast<T>(sum);
      } else if (j == p.sums) {
        b.totals[0] = sum;
      } else if (norm) {
        b.totals[1] = sum;
      }
    }
  }
  __syncthreads();
}

// Thread 0's; in shared memory, as the registers are for the rows.
template <typename T>
__device__ ToyReplicaRecord<T>& toy_record(unsigned char* smem) {
  static_assert(sizeof(ToyReplicaRecord<T>) <= kToyGdRecordBytes);
  return *reinterpret_cast<ToyReplicaRecord<T>*>(smem);
}

// All steps of the replica that this block holds, or holds a part of. Rows has stage(p, b), which
// copies X behind the residuals and returns where the rows may start, start(p, b) and step(p, b,
// u_norm) that fill sums, observe(p, b) from w to the loss, follow(p,
// b) for thread 0 after a step, and record(p, b, out) for the curvature.
template <typename Rows, typename T>
__device__ __forceinline__ void toy_gd_run(const ToyGdParams<T>& p, unsigned char* smem,
                                           ToyReplicaRecord<T>& record) {
  const int team = p.blocks, block = blockIdx.x % team;
  const int64_t local = blockIdx.x / team, replica = p.first + local;
  double u_norm, xx = 0.0, yy = 0.0;
  Rows rows;
  const ToyGdBlock<T> b = toy_gd_setup(rows, p, smem, block, replica, u_norm);
  for (int i = threadIdx.x; i < p.samples * p.inputs; i += blockDim.x)
    xx += static_cast<double>(p.x[i]) * static_cast<double>(p.x[i]);
  for (int i = threadIdx.x; i < p.samples; i += blockDim.x)
    yy += static_cast<double>(p.y[i]) * static_cast<double>(p.y[i]);
  const ToyDataNorms norms{block_sum(xx, b.scratch), block_sum(yy, b.scratch)};
  if (Rows::kLinear) u_norm = block_sum(u_norm, b.scratch);
  double q = rows.start(p, b);
  toy_gd_gather<Rows>(p, b, block, local, 0, q, u_norm);

  if (threadIdx.x == 0)
    record = toy_gd_record(p, replica, norms, b.totals[1], b.totals[0],
                           Rows::kLinear ? ToyActivation{} : p.phi);
  int64_t t = 0, next_curvature = 0, gram = replica * p.curvatures;
  const int64_t stored = ToyCurvatureSizes(p.samples, p.inputs, Rows::kLinear).stored();
  for (;; ++t) {
    const T loss = rows.observe(p, b);
    if (threadIdx.x == 0) {
      const T norm = static_cast<T>(b.totals[0] + b.totals[1]);
      *b.alive = block == 0 ? record.accept(t, loss, norm) : record.acceptable(loss, norm);
    }
    __syncthreads();
    if (!*b.alive) break;
    if (p.curvature_every > 0 && t == next_curvature) {
      rows.record(p, b, p.grams + (gram++ * team + block) * stored);
      next_curvature += p.curvature_every;
      __syncthreads();  // before the rows change
    }
    if (t == p.steps) break;
    q = rows.step(p, b, u_norm);
    if (threadIdx.x == 0) rows.follow(p, b);
    toy_gd_gather<Rows>(p, b, block, local, t + 1, q, u_norm);
  }
  // The other replicas of the launch still wait for this one once a step.
  for (; team > 1 && t < p.steps; ++t) grid_sync();
  if (!p.resident) return;
  const int64_t row0 = block * p.rows;
  T* const u = p.u + (replica * p.width + row0) * p.inputs;
  for (int64_t i = threadIdx.x; i < b.rows * p.inputs; i += blockDim.x)
    u[i] = b.u[i % p.inputs * b.input_stride + i / p.inputs];
  for (int64_t i = threadIdx.x; i < b.rows; i += blockDim.x)
    p.v[replica * p.width + row0 + i] = b.v[i];
}

}  // namespace catapult::device
