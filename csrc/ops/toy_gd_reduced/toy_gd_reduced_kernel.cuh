// One replica per warp, its state in shared memory for all steps; nothing is shared between warps.
// Lane i works on samples, inputs and columns of S number i, i + 32, ...; S is symmetric, so
// reading it by columns is reading it by rows, without bank conflicts.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/runtime.cuh"
#include "core/cuda/staged_rows.cuh"
#include "ops/toy_gd_reduced/toy_gd_reduced_config.hpp"
#include "toy/toy_math.hpp"

namespace catapult::device {

template <typename T>
struct ToyReducedParams {
  T* w;  // (R, inputs)
  T* s;  // (R, inputs, inputs)
  T* q;  // (R,)
  const T* x;
  const T* y;
  const T* eta;
  T* loss;  // (R, columns)
  T* weight_norm;
  int64_t* diverged_at;
  double* grams;  // (R, curvatures, inputs^2 + 1)
  double width;
  int64_t replicas, steps, record_every, curvature_every, columns, curvatures;
  int inputs, samples;
  bool resident, stage_x;
};

template <typename T>
struct ToyReducedWarp {
  StagedRows<T> data;  // X
  T *w, *zeta, *s_zeta, *p, *residual, *s;
  T q, rate, inverse_root_width;
  double trace;
  int lane;
};

// Residuals and zeta of the current w; every lane gets the loss. Ends with a warp barrier.
template <typename T>
__device__ T toy_reduced_observe(const ToyReducedParams<T>& g, const ToyReducedWarp<T>& b) {
  const int d = g.inputs;
  double squares = 0.0;
  for (int a = b.lane; a < g.samples; a += kWarpSize) {
    T f = T(0);
    for (int j = 0; j < d; ++j) f += b.data.x[a * b.data.pitch + j] * b.w[j];
    const T r = f * b.inverse_root_width - g.y[a];
    b.residual[a] = r;
    squares += static_cast<double>(r) * static_cast<double>(r);
  }
  __syncwarp();
  for (int j = b.lane; j < d; j += kWarpSize) {
    T sum = T(0);
    for (int a = 0; a < g.samples; ++a) sum += b.data.x[a * b.data.pitch + j] * b.residual[a];
    b.zeta[j] = sum / static_cast<T>(g.samples);
  }
  __syncwarp();
  return static_cast<T>(warp_sum(squares) / (2.0 * g.samples));
}

// w' = w - e (S z + q z) + e^2 (w.z) z, S' = S + z p' + p z' with p = e^2 q z / 2 - e w,
// q' = q - 2 e w.z + e^2 z'S z; the trace of S follows in the same way.
// What it writes last (S, each column by its lane) is read by others after the next observation.
template <typename T>
__device__ void toy_reduced_advance(const ToyReducedParams<T>& g, ToyReducedWarp<T>& b) {
  const int d = g.inputs;
  double wz = 0.0, zz = 0.0, zsz = 0.0;
  for (int i = b.lane; i < d; i += kWarpSize) {
    T sz = T(0);
    for (int j = 0; j < d; ++j) sz += b.s[j * d + i] * b.zeta[j];
    b.s_zeta[i] = sz;
    const double z = static_cast<double>(b.zeta[i]);
    wz += static_cast<double>(b.w[i]) * z;
    zz += z * z;
    zsz += static_cast<double>(sz) * z;
  }
  wz = warp_sum(wz);
  zz = warp_sum(zz);
  zsz = warp_sum(zsz);
  const double e = static_cast<double>(b.rate), q = static_cast<double>(b.q);
  const T half = static_cast<T>(0.5 * e * e * q), along = static_cast<T>(e * (e * wz - q));
  for (int i = b.lane; i < d; i += kWarpSize) {
    const T z = b.zeta[i], w = b.w[i];
    b.p[i] = half * z - b.rate * w;
    b.w[i] = w - b.rate * b.s_zeta[i] + along * z;
  }
  __syncwarp();
  for (int i = b.lane; i < d; i += kWarpSize) {
    const T z = b.zeta[i], p = b.p[i];
    for (int j = 0; j < d; ++j) b.s[j * d + i] += z * b.p[j] + p * b.zeta[j];
  }
  b.q = static_cast<T>(q + e * (e * zsz - 2.0 * wz));
  b.trace += e * (e * q * zz - 2.0 * wz);
}

template <typename T>
__device__ ToyReducedWarp<T> toy_reduced_load(const ToyReducedParams<T>& g, T* smem,
                                              int64_t replica, double& xx, double& yy) {
  const int d = g.inputs;
  ToyReducedWarp<T> b;
  b.lane = threadIdx.x % kWarpSize;
  b.w = smem;
  b.zeta = b.w + d;
  b.s_zeta = b.zeta + d;
  b.p = b.s_zeta + d;
  b.residual = b.p + d;
  T* const s = g.s + replica * d * d;
  b.s = g.resident ? b.residual + g.samples : s;
  b.q = g.q[replica];
  b.rate = static_cast<T>(static_cast<double>(g.eta[replica]) / sqrt(g.width));
  b.inverse_root_width = static_cast<T>(1.0 / sqrt(g.width));
  b.trace = 0.0;
  for (int i = b.lane; i < d; i += kWarpSize) {
    b.w[i] = g.w[replica * d + i];
    b.trace += static_cast<double>(s[i * d + i]);
  }
  b.trace = warp_sum(b.trace);
  for (int i = b.lane; i < d; i += kWarpSize)  // the upper triangle counts
    for (int j = 0; j < i; ++j) {
      const T entry = s[j * d + i];
      b.s[i * d + j] = b.s[j * d + i] = entry;
    }
  for (int i = b.lane; i < d; i += kWarpSize) b.s[i * d + i] = s[i * d + i];
  xx = yy = 0.0;
  for (int i = b.lane; i < g.samples * d; i += kWarpSize)
    xx += static_cast<double>(g.x[i]) * static_cast<double>(g.x[i]);
  for (int i = b.lane; i < g.samples; i += kWarpSize)
    yy += static_cast<double>(g.y[i]) * static_cast<double>(g.y[i]);
  xx = warp_sum(xx);
  yy = warp_sum(yy);
  __syncwarp();
  return b;
}

template <typename T>
__global__ void toy_gd_reduced_kernel(const ToyReducedParams<T> g) {
  CATAPULT_DYNAMIC_SMEM(T, smem);
  const int warp = threadIdx.x / kWarpSize, d = g.inputs;
  const int64_t replica = int64_t{blockIdx.x} * (blockDim.x / kWarpSize) + warp;
  T* free = smem;
  const StagedRows<T> data = stage_rows(g.x, g.samples, d, g.stage_x, free);
  T* const mine = free + warp * toy_reduced_entries(d, g.samples, g.resident);
  __syncthreads();
  if (!in_bounds(replica < g.replicas)) return;
  double xx, yy;
  ToyReducedWarp<T> b = toy_reduced_load(g, mine, replica, xx, yy);
  b.data = data;
  ToyReplicaRecord<T> record{};
  record.loss = g.loss + replica * g.columns;
  record.weight_norm = g.weight_norm + replica * g.columns;
  record.diverged_at = g.diverged_at + replica;
  record.steps = g.steps;
  record.record_every = g.record_every;
  record.cut =
      toy_divergence_cut<T>({xx, yy}, g.samples, g.width, b.trace + static_cast<double>(b.q));
  int64_t next_curvature = 0;
  double* gram = g.grams + replica * g.curvatures * (int64_t{d} * d + 1);
  for (int64_t t = 0;; ++t) {
    const T loss = toy_reduced_observe(g, b);
    const T norm = static_cast<T>(b.trace + static_cast<double>(b.q));
    const bool alive = record.acceptable(loss, norm);  // the same in every lane
    if (b.lane == 0) record.accept(t, loss, norm);
    if (!alive) break;
    if (g.curvature_every > 0 && t == next_curvature) {
      for (int e = b.lane; e < d * d; e += kWarpSize) gram[e] = static_cast<double>(b.s[e]);
      if (b.lane == 0) gram[d * d] = static_cast<double>(b.q);
      gram += int64_t{d} * d + 1;
      next_curvature += g.curvature_every;
    }
    if (t == g.steps) break;
    toy_reduced_advance(g, b);
  }
  T* const s = g.s + replica * d * d;
  for (int i = b.lane; i < d; i += kWarpSize) {
    g.w[replica * d + i] = b.w[i];
    // The two triangles differ by rounding; the upper one counts.
    for (int j = 0; j < i; ++j) s[i * d + j] = s[j * d + i] = b.s[j * d + i];
    s[i * d + i] = b.s[i * d + i];
  }
  if (b.lane == 0) g.q[replica] = b.q;
}

}  // namespace catapult::device
