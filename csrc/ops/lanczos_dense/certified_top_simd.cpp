#include "ops/lanczos_dense/certified_top_simd.hpp"

#include "core/gemm_tile.hpp"

namespace catapult {
namespace {

// Squares of entries below the diagonal count twice, and so do those of A - A'.
template <typename T>
struct Sums {
  double squares = 0.0, skew = 0.0;

  CATAPULT_INLINE void add(double lower, double upper, double times) {
    squares += times * lower * lower;
    skew += times * (lower - upper) * (lower - upper);
  }
};

// Entries [row, row_end) x [col, col_end) one by one, those above the diagonal left out.
template <typename T>
CATAPULT_INLINE void add_entries(const T* a, int64_t n, int64_t row, int64_t row_end, int64_t col,
                                 int64_t col_end, Sums<T>& sums) {
  for (int64_t i = row; i < row_end; ++i)
    for (int64_t j = col; j < smaller(col_end, i + 1); ++j)
      sums.add(a[i * n + j], a[j * n + i], i == j ? 1.0 : 2.0);
}

// One square of kLanes below the diagonal, against its mirror image.
template <typename T>
CATAPULT_INLINE void add_square(const T* a, int64_t n, int64_t row, int64_t col, Sums<T>& sums) {
  constexpr int lanes = kLanes<T>;
  Vec<T> mirror[lanes];
#pragma GCC unroll 16
  for (int r = 0; r < lanes; ++r) mirror[r] = load(a + (col + r) * n + row);
  transpose_lanes<T>(mirror);
  Vec<T> squares{}, skew{};
#pragma GCC unroll 16
  for (int r = 0; r < lanes; ++r) {
    const Vec<T> v = load(a + (row + r) * n + col);
    const Vec<T> apart = v - mirror[r];
    squares += v * v;
    skew += apart * apart;
  }
  sums.squares += 2.0 * static_cast<double>(reduce_add<T>(squares));
  sums.skew += 2.0 * static_cast<double>(reduce_add<T>(skew));
}

template <typename T>
void norms(const T* a, int64_t n, MatrixNorms* out) {
  constexpr int lanes = kLanes<T>;
  Sums<T> sums;
  for (int64_t row = 0; row < n; row += lanes) {
    const int64_t end = smaller(row + lanes, n);
    if (end - row < lanes) {
      add_entries(a, n, row, end, 0, end, sums);
      break;
    }
    for (int64_t col = 0; col < row; col += lanes) add_square(a, n, row, col, sums);
    add_entries(a, n, row, end, row, end, sums);
  }
  *out = {sums.squares, sums.skew};
}

// The upper triangle of shift I - scale A, filled up to `rows` rows by the identity. What lies left
// of the diagonal stays as it is and is never used.
template <typename From, typename T>
void fill(const From* a, int64_t n, int64_t rows, int64_t pitch, double scale, double shift, T* w) {
  for (int64_t i = 0; i < n; ++i) {
    const From* from = a + i * n;
    T* to = w + i * pitch;
    for (int64_t j = i; j < n; ++j) to[j] = static_cast<T>(-scale * static_cast<double>(from[j]));
    to[i] = static_cast<T>(shift - scale * static_cast<double>(from[i]));
    for (int64_t j = n; j < pitch; ++j) to[j] = T(0);
  }
  for (int64_t i = n; i < rows; ++i) {
    for (int64_t j = n; j < pitch; ++j) w[i * pitch + j] = i == j ? T(1) : T(0);
  }
}

// to[i][0, kTileCols) -= sum over p < count of u[p][i] v[p][0, kTileCols), rows `pitch` apart.
template <typename T>
CATAPULT_INLINE void subtract_products(const T* u, const T* v, int64_t count, int64_t pitch,
                                       const T* from, TileSums<T>& out) {
  Vec<T> acc[kTileRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    acc[i][0] = load(from + i * pitch);
    acc[i][1] = load(from + i * pitch + kLanes<T>);
  }
  for (int64_t p = 0; p < count; ++p) {
    const Vec<T> v0 = load(v), v1 = load(v + kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Vec<T> x = splat(u[i]);
      acc[i][0] -= x * v0;
      acc[i][1] -= x * v1;
    }
    u += pitch;
    v += pitch;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    out.v[i][0] = acc[i][0];
    out.v[i][1] = acc[i][1];
  }
}

// The factor of the diagonal block and what its rows hold up to `width` columns; false where a
// pivot is not positive.
template <typename T>
CATAPULT_INLINE bool factor_block(T* block, int64_t width, int64_t pitch, T* inverse) {
  constexpr T kHuge = T(1e30);
  for (int p = 0; p < kTileRows; ++p) {
    T* row = block + p * pitch;
    const T pivot = row[p];
    if (!(pivot > T(0)) || !(pivot < kHuge)) return false;
    inverse[p] = T(1) / static_cast<T>(__builtin_sqrt(pivot));
    const Vec<T> factor = splat(inverse[p]);
    for (int64_t j = 0; j < width; j += kLanes<T>) store(row + j, load(row + j) * factor);
    for (int q = p + 1; q < kTileRows; ++q) {
      const Vec<T> x = splat(row[q]);
      T* other = block + q * pitch;
      for (int64_t j = 0; j < width; j += kLanes<T>)
        store(other + j, load(other + j) - x * load(row + j));
    }
  }
  return true;
}

// The rows of a block right of it: U^-T times what is left of them.
template <typename T>
CATAPULT_INLINE void solve_tile(const T* block, int64_t pitch, const T* inverse,
                                TileSums<T>& tile) {
#pragma GCC unroll 16
  for (int p = 0; p < kTileRows; ++p) {
    const Vec<T> factor = splat(inverse[p]);
    tile.v[p][0] *= factor;
    tile.v[p][1] *= factor;
#pragma GCC unroll 16
    for (int q = p + 1; q < kTileRows; ++q) {
      const Vec<T> x = splat(block[p * pitch + q]);
      tile.v[q][0] -= x * tile.v[p][0];
      tile.v[q][1] -= x * tile.v[p][1];
    }
  }
}

// Whether w (rows, pitch), given by its upper triangle, has a Cholesky factor U'U; rows is a
// multiple of kTileRows. A block of rows takes all earlier rows at once, tile by tile in registers.
template <typename T>
bool factorise(T* w, int64_t rows, int64_t pitch) {
  constexpr int64_t cols = kTileCols<T>;
  constexpr int64_t width = round_up(kTileRows, cols);
  T inverse[kTileRows];
  for (int64_t s = 0; s < rows; s += kTileRows) {
    T* block = w + s * pitch + s;
    TileSums<T> tile;
    for (int64_t j = 0; j < width; j += cols) {
      subtract_products(w + s, w + s + j, s, pitch, block + j, tile);
      store_tile(tile, block + j, pitch);
    }
    if (!factor_block(block, width, pitch, inverse)) return false;
    for (int64_t j = width; s + j < rows; j += cols) {
      subtract_products(w + s, w + s + j, s, pitch, block + j, tile);
      solve_tile(block, pitch, inverse, tile);
      store_tile(tile, block + j, pitch);
    }
  }
  return true;
}

template <typename From, typename T>
bool below(const From* a, int64_t n, double scale, double shift, T* work) {
  const int64_t rows = round_up(n, kTileRows), pitch = certified_top_pitch(n);
  fill(a, n, rows, pitch, scale, shift, work);
  return factorise(work, rows, pitch);
}

}  // namespace

const CertifiedTopSimd CATAPULT_ISA_SYMBOL(certified_top_simd) = {
    {norms<float>, below<float, float>, below<float, double>},
    {norms<double>, below<double, float>, below<double, double>},
};

}  // namespace catapult
