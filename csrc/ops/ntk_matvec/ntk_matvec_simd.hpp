// What the CPU driver of ntk_matvec asks of its SIMD code: one fused product.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"
#include "ops/ntk_matvec/ntk_matvec_config.hpp"

namespace catapult {

// (data * factor + offset) as one side of a product. `free` indexes the side's own rows or columns
// of the result, k the contraction.
template <typename T>
struct Operand {
  const T* data;
  int64_t ld;
  bool by_free;  // element (free, k) at data[free * ld + k], otherwise at data[k * ld + free]
  T factor = T(1), offset = T(0);
};

template <typename T>
struct ProductTerm {
  Operand<T> left, right;
  int64_t depth;
};

// out = (sum over terms of left right + 1 row_bias') o mask.
template <typename T>
struct Product {
  ProductTerm<T> terms[2];
  int term_count;
  T* out;
  int64_t ld;                   // of out and mask
  const T* row_bias = nullptr;  // null: none
  const T* mask = nullptr;      // null: none
};

template <typename T>
struct ProductKernels {
  int tile_rows, tile_cols, slack;
  // The block of the result at (row, col); it ends at rows, cols.
  void (*block)(const Product<T>&, const ProductConfig&, int64_t row, int64_t col, int64_t rows,
                int64_t cols, T* scratch);
  // sums[c] = factor * sum_r x[r][c]
  void (*column_sums)(const T* x, int64_t rows, int64_t cols, T factor, T* sums);
};

struct ProductSimd {
  ProductKernels<float> f32;
  ProductKernels<double> f64;

  template <typename T>
  const ProductKernels<T>& of() const {
    if constexpr (sizeof(T) == 4) {
      return f32;
    } else {
      return f64;
    }
  }
};

CATAPULT_DECLARE_ISA_TABLES(ProductSimd, ntk_matvec_simd);

}  // namespace catapult
