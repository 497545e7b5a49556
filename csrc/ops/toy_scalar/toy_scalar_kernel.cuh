// One lane per thread, the whole run in registers. A lane that has finished leaves its warp to the
// others; nothing is shared.
#pragma once

#include "core/cuda/runtime.cuh"
#include "ops/toy_scalar/toy_scalar_math.hpp"

namespace catapult::device {

template <typename T>
struct ToyScalarParams {
  T* h;  // (lanes,) each
  T* k;
  const T* b;
  const T* beta;  // null: no momentum
  T* peak;
  int64_t* peak_step;
  int64_t* diverged_at;
  T* record_a;  // (lanes, records)
  T* record_v;
  int64_t lanes, steps, record_every, records;
  bool early_exit;
};

template <typename T>
__global__ void toy_scalar_kernel(const ToyScalarParams<T> p) {
  const int64_t lane = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (!in_bounds(lane < p.lanes)) return;
  T h = p.h[lane], k = p.k[lane], mh = T(0), mk = T(0);
  const T b = p.b[lane], beta = p.beta != nullptr ? p.beta[lane] : T(0);
  const T cut = toy_scalar_cut(h, k, b);
  T a = h * k - b, peak = a * a;
  int64_t peak_step = 0, diverged_at = peak <= cut ? -1 : 0, record = 0;
  if (diverged_at == 0) peak = T(NAN);
  for (int64_t t = 0;; ++t) {
    if (p.records > 0 && t % p.record_every == 0) {
      p.record_a[lane * p.records + record] = a;
      p.record_v[lane * p.records + record] = h * h + k * k;
      ++record;
    }
    if (t == p.steps || diverged_at >= 0) break;
    if (p.early_exit && p.beta == nullptr && p.records == 0 && toy_scalar_settled(h, k, b)) {
      k = toy_scalar_decay(h, k, b, p.steps - t);
      break;
    }
    mh = beta * mh - a * k;
    mk = beta * mk - a * h;
    const T next_h = h + mh, next_k = k + mk, next_a = next_h * next_k - b;
    const T u = next_a * next_a;
    if (!(u <= cut)) {
      diverged_at = t + 1;
      break;
    }
    h = next_h;
    k = next_k;
    a = next_a;
    if (u > peak) {
      peak = u;
      peak_step = t + 1;
    }
  }
  for (; record < p.records; ++record) {
    p.record_a[lane * p.records + record] = a;
    p.record_v[lane * p.records + record] = h * h + k * k;
  }
  p.h[lane] = h;
  p.k[lane] = k;
  p.peak[lane] = peak;
  p.peak_step[lane] = peak_step;
  p.diverged_at[lane] = diverged_at;
}

}  // namespace catapult::device
