// A team of blocks per replica: one block for short vectors, several that share the columns of long
// ones. alpha and beta are never read by the host.
#pragma once

#include "core/cuda/gram_schmidt.cuh"
#include "core/cuda/runtime.cuh"
#include "ops/lanczos_step/lanczos_step_config.hpp"

namespace catapult::device {

constexpr int kLanczosStepThreads = 256;

template <typename T>
struct LanczosStepParams {
  T* basis;         // (replicas, vectors, n)
  T* alpha;         // (replicas, alpha_columns)
  T* beta;          // (replicas, beta_columns)
  const T* w;       // (replicas, n)
  T* coefficients;  // (replicas, rows) or null
  double* parts;    // gram_schmidt_parts(team, rows) for each team
  int* arrived;     // one per team, zero
  int64_t replicas, vectors, n, alpha_columns, beta_columns;
  int64_t chunk;  // columns of a block
  int team, rows, step;
  double breakdown, enough;
};

// Dynamic shared memory: GramSchmidtShared::entries(rows) doubles.
template <typename T>
__global__ void __launch_bounds__(kLanczosStepThreads, 2)
    lanczos_step_kernel(const LanczosStepParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(double, smem);
  const GramSchmidtShared s(smem, p.rows);
  const int index = blockIdx.x / p.team, teams = gridDim.x / p.team;
  Team team{static_cast<int>(blockIdx.x % p.team), p.team, p.arrived + index};
  for (int64_t r = index; r < p.replicas; r += teams) {
    T* const basis = p.basis + r * p.vectors * p.n;
    T* const next = basis + p.rows * p.n;
    T* const alpha = p.alpha + r * p.alpha_columns;
    T* const beta = p.beta + r * p.beta_columns;
    const int64_t begin = min(p.n, team.rank * p.chunk), end = min(p.n, begin + p.chunk);
    GramSchmidt<T> g{basis,         p.n,      p.rows,
                     p.w + r * p.n, next,     begin,
                     end,           p.enough, p.parts + index * gram_schmidt_parts(p.team, p.rows)};
    double length = sqrt(orthogonalise(g, s, team));
    const double squared = s.h[p.rows];
    if (sizeof(T) == sizeof(double) &&
        !(squared > kLanczosStepTiny && squared < kLanczosStepHuge)) {
      __syncthreads();  // all have read s.h
      g.scaling = squared < 1.0 ? kLanczosStepUp : kLanczosStepDown;
      length = sqrt(orthogonalise(g, s, team));
    }

    // ||A|| from below: the largest entry known of it.
    const double diagonal = (s.h[p.step] + s.left[p.step]) / g.scaling;
    double norm = max(sqrt(s.h[p.rows]) / g.scaling, fabs(diagonal));
    for (int i = threadIdx.x; i < p.step; i += blockDim.x)
      norm = max(norm, max(fabs(double(alpha[i])), fabs(double(beta[i]))));
    norm = block_max(norm, s.scratch);
    const bool broke_down = length <= p.breakdown * norm * g.scaling;
    const double factor = 1.0 / length;
    for (int64_t j = begin + threadIdx.x; j < end; j += blockDim.x)
      next[j] = broke_down ? T(0) : static_cast<T>(next[j] * factor);
    if (team.rank != 0) continue;
    if (threadIdx.x == 0) {
      alpha[p.step] = static_cast<T>(diagonal);
      beta[p.step] = broke_down ? T(0) : static_cast<T>(length / g.scaling);
    }
    if (p.coefficients != nullptr)
      for (int i = threadIdx.x; i < p.rows; i += blockDim.x)
        p.coefficients[r * p.rows + i] = static_cast<T>((s.h[i] + s.left[i]) / g.scaling);
  }
}

}  // namespace catapult::device
