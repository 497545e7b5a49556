// One path and a few cases of it per thread, so that they share the draws; all in registers.
#pragma once

#include "core/cuda/runtime.cuh"
#include "ops/toy_lyapunov/toy_lyapunov_config.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_math.hpp"

namespace catapult::device {

struct ToyLyapunovParams {
  const double* mean;  // (cases,) each
  const double* deviation;
  const double* beta;
  double* growth;  // (cases, paths)
  int64_t cases, paths, steps, burn_in, first_path, seed;
  ToyLyapunovNoise noise;
};

struct ToyLyapunovState {
  double x = 1.0, y = 1.0, still = 1.0, deviation = 0.0, beta = 0.0;
  double start = 0.0;
  int64_t exponent = 0;

  __device__ void step(double z) {
    const double next = (still - deviation * z) * x - beta * y;
    y = x;
    x = next;
  }

  // By a power of two, so that no digit is lost; what is not finite or zero stays so.
  __device__ void rescale() {
    const double larger = fmax(fabs(x), fabs(y));
    if (!(larger > 0.0 && larger <= 1e308)) return;
    const int e = ilogb(larger);
    x = ldexp(x, -e);
    y = ldexp(y, -e);
    exponent += e;
  }

  __device__ double log_length() const {
    return toy_lyapunov_log(x, y) + 0.693147180559945309417 * static_cast<double>(exponent);
  }
};

__global__ void toy_lyapunov_kernel(const ToyLyapunovParams p) {
  constexpr int kGroup = kToyLyapunovGroup;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t path = index % p.paths, first = index / p.paths * kGroup;
  if (first >= p.cases) return;  // nothing to do; what guards the memory is below
  const int count = static_cast<int>(p.cases - first < kGroup ? p.cases - first : kGroup);
  ToyLyapunovState state[kGroup];
#pragma unroll
  for (int g = 0; g < kGroup; ++g)
    if (in_bounds(g < count)) {
      state[g].deviation = p.deviation[first + g];
      state[g].beta = p.beta[first + g];
      state[g].still = 1.0 + state[g].beta - p.mean[first + g];
    }
  double z[2] = {0.0, 0.0};
  for (int64_t t = 0;; ++t) {
    const bool starts = t == p.burn_in;
    if (starts || t == p.steps || t % kToyLyapunovRescale == 0)
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        state[g].rescale();
        if (starts) {
          state[g].exponent = 0;
          state[g].start = state[g].log_length();
        }
      }
    if (t == p.steps) break;
    if (t % 2 == 0) toy_lyapunov_draw(p.seed, p.first_path + path, t / 2, p.noise, z);
#pragma unroll
    for (int g = 0; g < kGroup; ++g) state[g].step(t % 2 == 0 ? z[0] : z[1]);
  }
#pragma unroll
  for (int g = 0; g < kGroup; ++g)
    if (in_bounds(g < count)) {
      const double end = state[g].log_length();
      p.growth[(first + g) * p.paths + path] = end == -INFINITY ? end : end - state[g].start;
    }
}

}  // namespace catapult::device
