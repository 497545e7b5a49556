// One warp per matrix, everything in shared memory and float64. The QL sweeps are a serial chain,
// so one lane walks it; loading, scaling, ranking and storing use the whole warp.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/runtime.cuh"
#include "ops/tridiag_eigh/tridiag_eigh_math.hpp"

namespace catapult::device {

template <typename T>
struct TridiagEighParams {
  const T* alpha;  // (replicas, m)
  const T* beta;   // (replicas, m - 1)
  T* eigenvalues;  // (replicas, m)
  T* first;
  T* last;
  int64_t replicas;
  int m;
};

// Dynamic shared memory: 4 m doubles per warp.
template <typename T>
__global__ void tridiag_eigh_kernel(const TridiagEighParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(double, smem);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, m = p.m;
  const int64_t replica = int64_t{blockIdx.x} * (blockDim.x / kWarpSize) + warp;
  if (!in_bounds(replica < p.replicas)) return;
  double* const d = smem + 4 * m * warp;
  double *const e = d + m, *const first = e + m, *const last = first + m;

  double scale = 0.0;
  bool finite = true;
  for (int i = lane; i < m; i += kWarpSize) {
    d[i] = p.alpha[replica * m + i];
    e[i] = in_bounds(i < m - 1) ? double(p.beta[replica * (m - 1) + i]) : 0.0;
    finite = finite && isfinite(d[i]) && isfinite(e[i]);
    scale = max(scale, max(fabs(d[i]), fabs(e[i])));
  }
  scale = warp_max(scale);
  finite = __all_sync(kFullMask, finite);
  if (scale > 0.0 && finite)
    for (int i = lane; i < m; i += kWarpSize) {
      d[i] /= scale;
      e[i] /= scale;
    }
  __syncwarp();
  int solved = finite;
  if (lane == 0 && finite) solved = tridiag_ql(d, e, first, last, m);
  solved = __shfl_sync(kFullMask, solved, 0);
  __syncwarp();

  // Ascending: an eigenvalue's place is the number of smaller ones; equal ones keep their order.
  for (int i = lane; i < m; i += kWarpSize) {
    int rank = solved ? 0 : i;
    for (int j = 0; solved && j < m; ++j) rank += d[j] < d[i] || (d[j] == d[i] && j < i);
    const int64_t out = replica * m + rank;
    const double nan = NAN;
    p.eigenvalues[out] = static_cast<T>(solved ? d[i] * scale : nan);
    p.first[out] = static_cast<T>(solved ? first[i] : nan);
    p.last[out] = static_cast<T>(solved ? last[i] : nan);
  }
}

}  // namespace catapult::device
