#include "ops/lanczos_step/lanczos_step_simd.hpp"

#include "core/simd.hpp"

namespace catapult {
namespace {

using VecD = Vec<double>;
constexpr int kD = kLanes<double>;
constexpr int64_t kBlock = 1024;  // columns whose float64 copy stays in the first-level cache

CATAPULT_INLINE VecD load_wide(const double* p) { return load(p); }

CATAPULT_INLINE VecD load_wide(const float* p) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  Half v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, VecD);
}

// h[i] += q_i . x for kRows rows at once, so that each load of x serves all of them.
template <int kRows, typename T>
CATAPULT_INLINE void dot_rows(const T* q, int64_t stride, const double* x, int64_t count,
                              double* h) {
  VecD sum[kRows] = {};
  int64_t j = 0;
  for (; j + kD <= count; j += kD) {
    const VecD v = load(x + j);
    for (int i = 0; i < kRows; ++i) sum[i] += load_wide(q + i * stride + j) * v;
  }
  for (int i = 0; i < kRows; ++i) {
    double tail = 0.0;
    for (int64_t t = j; t < count; ++t) tail += static_cast<double>(q[i * stride + t]) * x[t];
    h[i] += reduce_add<double>(sum[i]) + tail;
  }
}

template <typename T>
CATAPULT_INLINE void dot_all(const T* q, int64_t stride, int64_t rows, const double* x,
                             int64_t count, double* h) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) dot_rows<4>(q + i * stride, stride, x, count, h + i);
  for (; i < rows; ++i) dot_rows<1>(q + i * stride, stride, x, count, h + i);
}

template <int kRows, typename T>
CATAPULT_INLINE void subtract_rows(const T* q, int64_t stride, const double* c, double* x,
                                   int64_t count) {
  VecD factor[kRows];
  for (int i = 0; i < kRows; ++i) factor[i] = splat<double>(c[i]);
  int64_t j = 0;
  for (; j + kD <= count; j += kD) {
    VecD v = load(x + j);
    for (int i = 0; i < kRows; ++i) v -= factor[i] * load_wide(q + i * stride + j);
    store(x + j, v);
  }
  for (; j < count; ++j)
    for (int i = 0; i < kRows; ++i) x[j] -= c[i] * static_cast<double>(q[i * stride + j]);
}

template <typename T>
void project(const T* q, int64_t stride, int64_t rows, const T* w, int64_t count, double* h) {
  double x[kBlock];
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t width = count - start < kBlock ? count - start : kBlock;
    for (int64_t j = 0; j < width; ++j) x[j] = w[start + j];
    dot_all(q + start, stride, rows, x, width, h);
    dot_rows<1>(x, 0, x, width, h + rows);
  }
}

template <typename T>
void subtract(const T* q, int64_t stride, int64_t rows, const double* c, const T* in, T* out,
              int64_t count, bool measure, double* h) {
  double x[kBlock];
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t width = count - start < kBlock ? count - start : kBlock;
    const T* block = q + start;
    for (int64_t j = 0; j < width; ++j) x[j] = in[start + j];
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) subtract_rows<4>(block + i * stride, stride, c + i, x, width);
    for (; i < rows; ++i) subtract_rows<1>(block + i * stride, stride, c + i, x, width);
    for (int64_t j = 0; j < width; ++j) {
      out[start + j] = static_cast<T>(x[j]);
      x[j] = out[start + j];
    }
    if (measure) dot_all(block, stride, rows, x, width, h);
    dot_rows<1>(x, 0, x, width, h + rows);
  }
}

template <typename T>
void scale(T* x, int64_t count, double factor) {
  for (int64_t j = 0; j < count; ++j) x[j] = static_cast<T>(x[j] * factor);
}

}  // namespace

const LanczosStepSimd CATAPULT_ISA_SYMBOL(lanczos_step_simd) = {
    {project<float>, subtract<float>, scale<float>},
    {project<double>, subtract<double>, scale<double>},
};

}  // namespace catapult
