// A symmetric matrix given by its lower triangle, and its products, on the host; scaled to order
// one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/parallel.hpp"
#include "ops/lanczos_dense/lanczos_dense_config.hpp"
#include "ops/lanczos_dense/lanczos_dense_math.hpp"
#include "ops/lanczos_dense/lanczos_dense_simd.hpp"

namespace catapult {

template <typename T>
class SymmetricMatrix {
 public:
  SymmetricMatrix(const T* a, const LanczosDenseConfig& config, double* memory, int threads)
      : a_(a),
        config_(config),
        x_(memory + config.x),
        y_(memory + config.y),
        diagonal_(reinterpret_cast<T*>(memory + config.diagonal)),
        threads_(threads) {
    constexpr int64_t kB = kLanczosDenseBlock;
    std::fill(diagonal_, diagonal_ + config.padded * kB, T(0));
    for (int64_t i = 0; i < config.n; ++i) {
      const int64_t block = i / kB * kB;
      for (int64_t j = block; j <= i; ++j)
        diagonal_[i * kB + j - block] = diagonal_[j * kB + i - block] = a[i * config.n + j];
    }
    half_ = lanczos_half_scale<T>(sizeof(T) < 8 ? 0.0 : size());
  }

  // What takes a number of the scaled matrix back, in two factors: one could overflow.
  double unscaled(double value) const { return value / half_ / half_; }

  // A sum of squares of numbers of the matrix, of those of the scaled one.
  double scaled_squares(double sum) const { return sum * half_ * half_ * half_ * half_; }

  // A x (n), valid until the next product; sums in T.
  T* multiply(const T* x) { return run(loops().product, x); }
  // The same with float64 sums.
  double* multiply_wide(const T* x) { return run(loops().wide_product, x); }

  int64_t products() const { return products_; }

  static const LanczosDenseLoops<T>& loops() {
    return CATAPULT_SELECT_ISA(lanczos_dense_simd).template loops<T>();
  }

 private:
  const T* a_;
  const LanczosDenseConfig& config_;
  double *x_, *y_;
  T* diagonal_;
  int threads_;
  int64_t products_ = 0;
  double half_ = 1.0;

  // Sum of absolute values: the largest to a factor n^2, at the speed of the memory.
  double size() const {
    constexpr int kLanes = 8;
    double sums[kLanes] = {};
    for (int64_t i = 0; i < config_.n; ++i) {
      const T* row = a_ + i * config_.n;
      int64_t j = 0;
      for (; j + kLanes <= i + 1; j += kLanes)
        for (int l = 0; l < kLanes; ++l) sums[l] += std::fabs(static_cast<double>(row[j + l]));
      for (; j <= i; ++j) sums[0] += std::fabs(static_cast<double>(row[j]));
    }
    double sum = 0.0;
    for (const double part : sums) sum += part;
    return sum;
  }

  // Slabs of rows, whose partial results are added in order.
  template <typename Acc>
  Acc* run(const SymmetricProduct<T, Acc>& product, const T* x) {
    const int64_t n = config_.n, padded = config_.padded;
    Acc* in = reinterpret_cast<Acc*>(x_);
    Acc* out = reinterpret_cast<Acc*>(y_);
    const Acc half = static_cast<Acc>(half_);
    for (int64_t i = 0; i < n; ++i) in[i] = x[i] * half;
    std::fill(in + n, in + padded, Acc(0));
    parallel_for(config_.slabs, threads_, [&](int64_t s) {
      Acc* part = out + s * padded;
      std::fill(part, part + padded, Acc(0));
      product.run(a_, diagonal_, n, config_.slab_begin[s], config_.slab_begin[s + 1], in, part);
    });
    for (int s = 1; s < config_.slabs; ++s)
      for (int64_t i = 0; i < n; ++i) out[i] += out[s * padded + i];
    for (int64_t i = 0; i < n; ++i) out[i] *= half;
    ++products_;
    return out;
  }
};

}  // namespace catapult
