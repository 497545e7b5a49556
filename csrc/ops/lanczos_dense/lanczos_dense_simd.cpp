#include "ops/lanczos_dense/lanczos_dense_simd.hpp"

#include "core/simd.hpp"

namespace catapult {
namespace {

constexpr int64_t kBlock = 16;  // kLanczosDenseBlock: a whole number of vectors for every width

template <typename Acc, typename T>
CATAPULT_INLINE Vec<Acc> load_as(const T* p) {
  if constexpr (sizeof(Acc) == sizeof(T)) {
    return load(p);
  } else {
    typedef T Narrow __attribute__((vector_size(kVectorBytes / 2)));
    Narrow v;
    __builtin_memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(v, Vec<Acc>);
  }
}

// Rows [row, row + kRows) times the columns before `columns`: every entry is loaded once and used
// for both triangles.
template <int kRows, typename T, typename Acc>
CATAPULT_INLINE void product_rows(const T* a, int64_t n, int64_t row, int64_t columns, const Acc* x,
                                  Acc* y) {
  Vec<Acc> sum[kRows] = {};
  Vec<Acc> x_row[kRows];
  for (int i = 0; i < kRows; ++i) x_row[i] = splat<Acc>(x[row + i]);
  for (int64_t j = 0; j < columns; j += kLanes<Acc>) {
    const Vec<Acc> xj = load(x + j);
    Vec<Acc> yj = load(y + j);
    for (int i = 0; i < kRows; ++i) {
      const Vec<Acc> entry = load_as<Acc>(a + (row + i) * n + j);
      sum[i] += entry * xj;
      yj += entry * x_row[i];
    }
    store(y + j, yj);
  }
  for (int i = 0; i < kRows; ++i) y[row + i] += reduce_add<Acc>(sum[i]);
}

template <typename T, typename Acc>
void product(const T* a, const T* diagonal, int64_t n, int64_t begin, int64_t end, const Acc* x,
             Acc* y) {
  for (int64_t block = begin; block < end; block += kBlock) {
    int64_t row = block;
    const int64_t last = block + kBlock < n ? block + kBlock : n;
    for (; row + 4 <= last; row += 4) product_rows<4>(a, n, row, block, x, y);
    for (; row < last; ++row) product_rows<1>(a, n, row, block, x, y);
    for (int64_t j = 0; j < kBlock; j += kLanes<Acc>) {
      Vec<Acc> yj = load(y + block + j);
      for (int64_t i = 0; i < kBlock; ++i)
        yj += load_as<Acc>(diagonal + (block + i) * kBlock + j) * splat<Acc>(x[block + i]);
      store(y + block + j, yj);
    }
  }
}

template <typename T>
void combine(const T* q, int64_t stride, int64_t rows, const double* c, int64_t count,
             double* out) {
  constexpr int64_t kColumns = 256;
  for (int64_t start = 0; start < count; start += kColumns) {
    const int64_t width = count - start < kColumns ? count - start : kColumns;
    double* sum = out + start;
    for (int64_t j = 0; j < width; ++j) sum[j] = 0.0;
    for (int64_t i = 0; i < rows; ++i) {
      const T* row = q + i * stride + start;
      const double factor = c[i];
      for (int64_t j = 0; j < width; ++j) sum[j] += factor * static_cast<double>(row[j]);
    }
  }
}

}  // namespace

const LanczosDenseSimd CATAPULT_ISA_SYMBOL(lanczos_dense_simd) = {
    {{product<float, float>}, {product<float, double>}, combine<float>},
    {{product<double, double>}, {product<double, double>}, combine<double>},
};

}  // namespace catapult
