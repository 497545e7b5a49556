// The inner loops of certified_top, one table per instruction set.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// What one pass over a matrix shows, in float64 sums of squares that are themselves of type T.
struct MatrixNorms {
  double squares;  // of the symmetric matrix that the lower triangle gives: squared Frobenius norm
  double skew;     // the same of A - A'
};

template <typename T>
struct CertifiedTopLoops {
  void (*norms)(const T* a, int64_t n, MatrixNorms* out);
  // Whether shift I - scale A has a Cholesky factor, from the upper triangle of A; work holds
  // certified_top_rows(n) * certified_top_pitch(n) numbers.
  bool (*below_float32)(const T* a, int64_t n, double scale, double shift, float* work);
  bool (*below_float64)(const T* a, int64_t n, double scale, double shift, double* work);
};

struct CertifiedTopSimd {
  CertifiedTopLoops<float> f32;
  CertifiedTopLoops<double> f64;

  template <typename T>
  const CertifiedTopLoops<T>& loops() const;
};

template <>
inline const CertifiedTopLoops<float>& CertifiedTopSimd::loops<float>() const {
  return f32;
}
template <>
inline const CertifiedTopLoops<double>& CertifiedTopSimd::loops<double>() const {
  return f64;
}

// Rows and numbers a row of the work of a factorisation, for every instruction set: whole blocks,
// and room for the vectors that run over. An odd number of cache lines, so that columns spread.
constexpr int64_t certified_top_rows(int64_t n) { return n + 16; }
constexpr int64_t certified_top_pitch(int64_t n) { return (((n + 16 + 48) / 16) | 1) * 16; }

CATAPULT_DECLARE_ISA_TABLES(CertifiedTopSimd, certified_top_simd);

}  // namespace catapult
