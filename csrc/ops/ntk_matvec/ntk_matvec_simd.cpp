#include "ops/ntk_matvec/ntk_matvec_simd.hpp"

#include "core/gemm_tile.hpp"

namespace catapult {
namespace {

template <int kWidth, typename T, typename Matrix>
CATAPULT_INLINE void pack_matrix(const Matrix& m, bool by_free, int64_t first, int64_t count,
                                 int64_t k, int64_t depth, T* to) {
  if (by_free) {
    pack_rows<kWidth>(m, first, count, k, depth, to);
  } else {
    pack_cols<kWidth>(m, k, depth, first, count, to);
  }
}

template <int kWidth, typename T>
void pack(const Operand<T>& x, int64_t first, int64_t count, int64_t k, int64_t depth, T* to) {
  if (x.factor == T(1) && x.offset == T(0)) {
    pack_matrix<kWidth>(PlainMatrix<T>{x.data, x.ld}, x.by_free, first, count, k, depth, to);
  } else {
    pack_matrix<kWidth>(AffineMatrix<T>{x.data, x.ld, x.factor, x.offset}, x.by_free, first, count,
                        k, depth, to);
  }
}

// The bias and the mask of one register tile, before it is stored for the last time.
template <typename T>
CATAPULT_INLINE void finish_tile(TileSums<T>& sums, const T* row_bias, const T* mask, int64_t ld) {
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const Vec<T> bias = row_bias ? load(row_bias + v * lanes) : Vec<T>{};
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      if (row_bias) sums.v[r][v] += bias;
      if (mask) sums.v[r][v] *= load(mask + r * ld + v * lanes);
    }
  }
}

// The same for a tile that sticks out of the result: element by element through `spill`.
template <typename T>
void update_edge(const TileSums<T>& sums, int64_t rows, int64_t cols, bool first, bool last,
                 const T* row_bias, const T* mask, T* out, int64_t ld, T* spill) {
  store_tile(sums, spill, kTileCols<T>);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      T value = spill[r * kTileCols<T> + c];
      if (!first) value += out[r * ld + c];
      if (last && row_bias) value += row_bias[c];
      if (last && mask) value *= mask[r * ld + c];
      out[r * ld + c] = value;
    }
  }
}

template <typename T>
void compute_block(const Product<T>& product, const ProductConfig& config, int64_t row, int64_t col,
                   int64_t rows, int64_t cols, T* scratch) {
  rows = smaller(config.rows, rows - row);
  cols = smaller(config.cols, cols - col);
  T* right = scratch;
  T* left = right + config.cols * config.depth + kPackSlack<T>;
  T* spill = left + config.rows * config.depth + kPackSlack<T>;
  const int64_t ld = product.ld;
  for (int t = 0; t < product.term_count; ++t) {
    const ProductTerm<T>& term = product.terms[t];
    for (int64_t k = 0; k < term.depth || k == 0; k += config.depth) {
      const int64_t depth = smaller(config.depth, term.depth - k);
      pack<kTileRows>(term.left, row, rows, k, depth, left);
      pack<kTileCols<T>>(term.right, col, cols, k, depth, right);
      const bool first = t == 0 && k == 0;
      const bool last = t == product.term_count - 1 && k + config.depth >= term.depth;
      multiply_block<T>(
          rows, cols, depth, left, right, [](int64_t, int64_t) { return true; },
          [&](int64_t i, int64_t j, TileSums<T>& sums) __attribute__((always_inline)) {
            const int64_t at = (row + i) * ld + col + j;
            T* out = product.out + at;
            const T* mask = product.mask ? product.mask + at : nullptr;
            const T* row_bias = product.row_bias ? product.row_bias + col + j : nullptr;
            if (i + kTileRows > rows || j + kTileCols<T> > cols) {
              update_edge(sums, smaller(kTileRows, rows - i), smaller(kTileCols<T>, cols - j),
                          first, last, row_bias, mask, out, ld, spill);
              return;
            }
            if (!first) add_tile(sums, out, ld);
            if (last) finish_tile(sums, row_bias, mask, ld);
            store_tile(sums, out, ld);
          });
    }
  }
}

template <typename T>
void column_sums(const T* x, int64_t rows, int64_t cols, T factor, T* sums) {
  for (int64_t c = 0; c < cols; ++c) sums[c] = T(0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) sums[c] += x[r * cols + c];
  for (int64_t c = 0; c < cols; ++c) sums[c] *= factor;
}

template <typename T>
constexpr ProductKernels<T> kKernels = {kTileRows, kTileCols<T>, kPackSlack<T>, &compute_block<T>,
                                        &column_sums<T>};

}  // namespace

const ProductSimd CATAPULT_ISA_SYMBOL(ntk_matvec_simd) = {kKernels<float>, kKernels<double>};

}  // namespace catapult
