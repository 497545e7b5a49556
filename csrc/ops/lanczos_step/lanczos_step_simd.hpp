// The inner loops of lanczos_step, one table per instruction set. Sums run in float64.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

template <typename T>
struct LanczosStepLoops {
  // h[i] += q_i . w for i < rows, h[rows] += w . w; row i of q starts at q + i * stride.
  void (*project)(const T* q, int64_t stride, int64_t rows, const T* w, int64_t count, double* h);
  // out = in - sum_i c_i q_i, rounded once. With `measure` also h[i] += q_i . out, while the block
  // of q is in cache; h[rows] += out . out always.
  void (*subtract)(const T* q, int64_t stride, int64_t rows, const double* c, const T* in, T* out,
                   int64_t count, bool measure, double* h);
  void (*scale)(T* x, int64_t count, double factor);
};

struct LanczosStepSimd {
  LanczosStepLoops<float> f32;
  LanczosStepLoops<double> f64;

  template <typename T>
  const LanczosStepLoops<T>& loops() const;
};

template <>
inline const LanczosStepLoops<float>& LanczosStepSimd::loops<float>() const {
  return f32;
}
template <>
inline const LanczosStepLoops<double>& LanczosStepSimd::loops<double>() const {
  return f64;
}

CATAPULT_DECLARE_ISA_TABLES(LanczosStepSimd, lanczos_step_simd);

}  // namespace catapult
