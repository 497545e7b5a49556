// The curvature records of the toy models, from the Gram matrices that a run has left behind.
#pragma once

#include "core/cuda/runtime.cuh"
#include "ops/toy_gd/toy_gd_math.hpp"

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

template <typename T>
struct ToyCurvatureParams {
  const double* grams;  // (records, blocks, order^2 + 1)
  const double* data;
  double* scratch;  // per thread of the grid: ToyCurvatureSizes.each
  const int64_t* diverged_at;
  T* curvature;  // (replicas, curvatures)
  double width;
  int64_t records, curvatures, curvature_every;
  int inputs, samples, blocks;
  bool linear;
};

// One thread per record. A record after divergence repeats the last one before it.
template <typename T>
__global__ void toy_curvature_kernel(const ToyCurvatureParams<T> p) {
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  const ToyCurvatureSizes sizes(p.samples, p.inputs, p.linear);
  const int64_t square = sizes.order * sizes.order;
  double* const gram = p.scratch + thread * sizes.each;
  for (int64_t r = thread; r < p.records; r += threads) {
    const int64_t at = p.diverged_at[r / p.curvatures], column = r % p.curvatures;
    const int64_t last = at < 0 ? column : (at - 1) / p.curvature_every;
    if (at == 0) {
      p.curvature[r] = static_cast<T>(NAN);
      continue;
    }
    const int64_t source = r - column + (column < last ? column : last);
    const double* const from = p.grams + source * p.blocks * (square + 1);
    double q = 0.0;
    for (int64_t e = 0; e <= square; ++e) {
      double sum = 0.0;
      for (int i = 0; i < p.blocks; ++i) sum += from[i * (square + 1) + e];
      if (e < square) {
        gram[e] = sum;
      } else {
        q = sum;
      }
    }
    double* matrix = gram;  // with an activation N W times the kernel itself
    int64_t order = p.samples;
    double scale = p.width * p.samples;
    if (p.linear) {
      matrix = toy_curvature_matrix(gram, q, p.data, p.samples, p.inputs, gram + square);
      order = toy_curvature_order(p.samples, p.inputs);
      scale = p.width;
    }
    p.curvature[r] = static_cast<T>(top_eigenvalue(matrix, order, matrix + order * order) / scale);
  }
}

}  // namespace catapult::device
