// The inner loops of lanczos_dense, one table per instruction set.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// T: the matrix, Acc: vectors and sums.
template <typename T, typename Acc>
struct SymmetricProduct {
  // y += the part of A x that stems from rows [begin, end) of the lower triangle. begin is a
  // multiple of the block; diagonal holds the dense diagonal blocks; x and y are padded.
  void (*run)(const T* a, const T* diagonal, int64_t n, int64_t begin, int64_t end, const Acc* x,
              Acc* y);
};

template <typename T>
struct LanczosDenseLoops {
  SymmetricProduct<T, T> product;
  SymmetricProduct<T, double> wide_product;
  // out = sum_i c_i q_i, row i of q at q + i * stride.
  void (*combine)(const T* q, int64_t stride, int64_t rows, const double* c, int64_t count,
                  double* out);
};

struct LanczosDenseSimd {
  LanczosDenseLoops<float> f32;
  LanczosDenseLoops<double> f64;

  template <typename T>
  const LanczosDenseLoops<T>& loops() const;
};

template <>
inline const LanczosDenseLoops<float>& LanczosDenseSimd::loops<float>() const {
  return f32;
}
template <>
inline const LanczosDenseLoops<double>& LanczosDenseSimd::loops<double>() const {
  return f64;
}

CATAPULT_DECLARE_ISA_TABLES(LanczosDenseSimd, lanczos_dense_simd);

}  // namespace catapult
