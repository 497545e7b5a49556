// The curvature records of the toy models, from the Gram matrices that a run has left behind: a
// warp per record. Neighbouring lanes hold neighbouring entries of a row, so that nothing that is
// read or written lies scattered.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/runtime.cuh"
#include "toy/top_eigenvalue.hpp"
#include "toy/toy_math.hpp"

namespace catapult::device {

// X / sqrt(N) where N < D, otherwise X'X / N.
template <typename T>
__global__ void toy_curvature_data_kernel(const T* x, int samples, int inputs, double* data) {
  const int64_t entries = toy_curvature_data_size(samples, inputs);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < entries; e += stride) {
    if (samples < inputs) {
      data[e] = static_cast<double>(x[e]) / sqrt(static_cast<double>(samples));
      continue;
    }
    const int64_t i = e / inputs, j = e % inputs;
    double sum = 0.0;
    for (int64_t a = 0; a < samples; ++a)
      sum += static_cast<double>(x[a * inputs + i]) * static_cast<double>(x[a * inputs + j]);
    data[e] = sum / samples;
  }
}

// f(i) for i in [first, count), a lane each; ends with a warp barrier.
template <typename F>
__device__ void for_lanes(int first, int count, F f) {
  for (int i = first + static_cast<int>(threadIdx.x) % kWarpSize; i < count; i += kWarpSize) f(i);
  __syncwarp();
}

// In place of the symmetric positive semi-definite s (n, n): R, upper triangular with zeros below,
// R'R = s. A pivot that rounding made non-positive becomes a zero row.
__device__ inline void warp_cholesky(double* s, int n) {
  for (int k = 0; k < n; ++k) {
    for_lanes(k, n, [&](int j) {
      double sum = s[k * n + j];
      for (int p = 0; p < k; ++p) sum -= s[p * n + k] * s[p * n + j];
      s[k * n + j] = sum;
    });
    const double pivot = s[k * n + k];
    const double inverse = pivot > 0.0 ? 1.0 / sqrt(pivot) : 0.0;
    __syncwarp();
    for_lanes(0, n, [&](int j) { s[k * n + j] = j < k ? 0.0 : s[k * n + j] * inverse; });
  }
}

// out (rows, rows) = f m f' of f (rows, n) and the symmetric m (n, n); half holds n rows entries.
__device__ inline void warp_congruence(const double* f, int rows, const double* m, int n,
                                       double* half, double* out) {
  for_lanes(0, rows * n, [&](int e) {
    const int i = e / n, j = e % n;
    double sum = 0.0;
    for (int k = 0; k < n; ++k) sum += f[i * n + k] * m[k * n + j];
    half[j * rows + i] = sum;
  });
  for_lanes(0, rows * rows, [&](int e) {
    const int i = e / rows, j = e % rows;
    double sum = 0.0;
    for (int k = 0; k < n; ++k) sum += f[i * n + k] * half[k * rows + j];
    out[e] = sum;
  });
}

// As tridiagonalise() of toy/top_eigenvalue.hpp.
__device__ inline void warp_tridiagonalise(double* a, int n, double* d, double* e, double* work) {
  double *u = work, *p = work + n;
  for (int k = 0; k + 2 < n; ++k) {
    const double* row = a + k * n;
    double scale = 0.0, norm2 = 0.0;
    for_lanes(k + 1, n, [&](int i) { scale = fmax(scale, fabs(row[i])); });
    scale = warp_max(scale);
    const double inverse = scale > 0.0 ? 1.0 / scale : 0.0;
    for_lanes(k + 1, n, [&](int i) {
      const double x = row[i] * inverse;
      norm2 += x * x;
    });
    const double length = scale * sqrt(warp_sum(norm2));
    const double alpha = row[k + 1] > 0.0 ? -length : length, head = row[k + 1] - alpha;
    if (threadIdx.x % kWarpSize == 0) e[k] = alpha;
    if (alpha == 0.0 || head == 0.0) continue;
    const double beta = -1.0 / (alpha * head);
    for_lanes(k + 1, n, [&](int i) { u[i] = i == k + 1 ? head : row[i]; });
    double up = 0.0;
    for_lanes(k + 1, n, [&](int i) {
      double sum = 0.0;
      for (int j = k + 1; j < n; ++j) sum += a[j * n + i] * u[j];
      p[i] = beta * sum;
      up += p[i] * u[i];
    });
    const double half = 0.5 * beta * warp_sum(up);
    for_lanes(k + 1, n, [&](int i) { p[i] -= half * u[i]; });
    for_lanes(k + 1, n, [&](int j) {
      for (int i = k + 1; i < n; ++i) a[i * n + j] -= u[i] * p[j] + p[i] * u[j];
    });
  }
  for_lanes(0, n, [&](int i) {
    d[i] = a[i * n + i];
    if (i == n - 2) e[i] = a[(n - 1) * n + i];
  });
}

// As top_eigenvalue() of toy/top_eigenvalue.hpp, to every lane.
__device__ inline double warp_top_eigenvalue(double* a, int n, double* work) {
  double largest = 0.0;
  bool finite = true;
  for_lanes(0, n * n, [&](int e) {
    finite = finite && fabs(a[e]) <= DBL_MAX;
    largest = fmax(largest, fabs(a[e]));
  });
  if (!__all_sync(kFullMask, finite)) return NAN;
  largest = warp_max(largest);
  if (n == 1) return a[0];
  if (largest == 0.0) return 0.0;
  const double inverse = 1.0 / largest;
  for_lanes(0, n * n, [&](int e) { a[e] *= inverse; });
  double *d = work, *e = work + n;
  warp_tridiagonalise(a, n, d, e, work + 2 * n);
  return largest * top_of_tridiagonal(d, e, n);
}

template <typename T>
struct ToyCurvatureParams {
  const double* grams;  // (records, blocks, order^2 + 1)
  const double* data;
  double* scratch;  // per warp of the grid: ToyCurvatureSizes.each
  const int64_t* diverged_at;
  T* curvature;  // (replicas, curvatures)
  double width;
  int64_t records, curvatures, curvature_every;
  int inputs, samples, blocks;
  bool linear;
};

// kShared: the scratch is in shared memory. A record after divergence repeats the last one before
// it.
template <typename T, bool kShared>
__global__ void toy_curvature_kernel(const ToyCurvatureParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(double, smem);
  const int64_t warps = blockDim.x / kWarpSize, inside = threadIdx.x / kWarpSize;
  const int64_t warp = blockIdx.x * warps + inside;
  const ToyCurvatureSizes sizes(p.samples, p.inputs, p.linear);
  const int d = p.inputs, order = static_cast<int>(sizes.order), square = order * order;
  double* const gram = kShared ? smem + inside * sizes.each : p.scratch + warp * sizes.each;
  for (int64_t r = warp; r < p.records; r += gridDim.x * warps) {
    const int64_t at = p.diverged_at[r / p.curvatures], column = r % p.curvatures;
    const int64_t last = at < 0 ? column : (at - 1) / p.curvature_every;
    double top = NAN;
    if (at != 0) {
      const int64_t source = r - column + (column < last ? column : last);
      const double* const from = p.grams + source * p.blocks * sizes.stored();
      const auto total = [&](int e) {
        double sum = 0.0;
        for (int i = 0; i < p.blocks; ++i) sum += from[i * sizes.stored() + e];
        return sum;
      };
      const double q = total(square);
      const bool diagonal = p.linear;
      for_lanes(0, square,
                [&](int e) { gram[e] = total(e) + (diagonal && e % (order + 1) == 0 ? q : 0.0); });
      double* matrix = gram;  // with an activation N W times the kernel itself
      int rows = p.samples;
      double scale = p.width * p.samples;
      if (p.linear) {
        rows = static_cast<int>(toy_curvature_order(p.samples, d));
        scale = p.width;
        double* const half = gram + square;
        matrix = half + rows * d;
        if (p.samples < d) {
          warp_congruence(p.data, rows, gram, d, half, matrix);
        } else {
          warp_cholesky(gram, d);
          warp_congruence(gram, d, p.data, d, half, matrix);
        }
      }
      top = warp_top_eigenvalue(matrix, rows, matrix + rows * rows) / scale;
    }
    if (threadIdx.x % kWarpSize == 0) p.curvature[r] = static_cast<T>(top);
    __syncwarp();  // before the next record takes the scratch
  }
}

}  // namespace catapult::device
