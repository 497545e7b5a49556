#include "ops/ntk_matvec/int16_product_simd.hpp"

#include <cmath>

#include "core/gemm_tile.hpp"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace catapult {
namespace {

constexpr int kLanesF = kLanes<float>;
constexpr int kRows = 12, kCols = 2 * kLanesF;
constexpr int64_t kTogether = 4096;  // squares that are added in float32 before a wider sum
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));

// The factor that makes integers of `depth` numbers with this largest magnitude and sum of squares.
// Their norm is below 2^15.5, so that by Cauchy and Schwarz no sum of products leaves 32 bits.
float factor_of(float largest, double squares, int64_t depth) {
  if (!(largest > 0.0f)) return 0.0f;
  const double by_norm = (0.99 * 46340.0 - 0.5 * std::sqrt(double(depth))) / std::sqrt(squares);
  const double by_largest = 32766.0 / double(largest);
  const double factor = by_norm < by_largest ? by_norm : by_largest;
  return factor < 1e37 ? float(factor) : 1e37f;
}

// Squares in float64, where those in float32 over- or underflow.
double exact_squares(const float* x, int64_t depth, int64_t stride) {
  double sum = 0.0;
  for (int64_t k = 0; k < depth; ++k) sum += double(x[k * stride]) * double(x[k * stride]);
  return sum;
}

// Factor and unit of one row or column; a number that is not finite makes all products with it NaN.
float scaled(const float* x, int64_t depth, int64_t stride, float largest, double squares,
             float* unit) {
  if (!(squares > 1e-25 && squares < 1e30)) squares = exact_squares(x, depth, stride);
  if (!(squares < 1e300)) {
    *unit = __builtin_nanf("");
    return 0.0f;
  }
  const float factor = factor_of(largest, squares, depth);
  *unit = factor > 0.0f ? 1.0f / factor : 0.0f;
  return factor;
}

// Rounded to the nearest integer: adding 1.5 * 2^23 leaves it in the low bits.
CATAPULT_INLINE VecI rounded(Vec<float> x) {
  const Vec<float> shifted = x + splat<float>(12582912.0f);
  VecI bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  return bits - 0x4B400000;
}

CATAPULT_INLINE int32_t rounded(float x) {
  const float shifted = x + 12582912.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  return bits - 0x4B400000;
}

CATAPULT_INLINE int32_t pair_of(int32_t low, int32_t high) {
  return int32_t(uint32_t(high) << 16 | (uint32_t(low) & 0xffffu));
}

// One row of numbers that lie side by side, as integers.
CATAPULT_INLINE void quantise_row(const float* x, int64_t depth, float* unit, int16_t* to) {
  Vec<float> largest[2] = {}, sum[2] = {};
  double squares = 0.0;
  int64_t k = 0;
  while (k + 2 * kLanesF <= depth) {
    const int64_t stop = k + smaller(kTogether, depth - k);
    for (; k + 2 * kLanesF <= stop; k += 2 * kLanesF) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const Vec<float> v = load(x + k + h * kLanesF);
        const Vec<float> size = v < 0.0f ? -v : v;
        sum[h] += v * v;
        largest[h] = size > largest[h] ? size : largest[h];
      }
    }
    squares += double(reduce_add<float>(sum[0] + sum[1]));
    sum[0] = sum[1] = Vec<float>{};
  }
  float most = 0.0f;
  for (int i = 0; i < kLanesF; ++i) {
    most = largest[0][i] > most ? largest[0][i] : most;
    most = largest[1][i] > most ? largest[1][i] : most;
  }
  for (; k < depth; ++k) {
    const float size = x[k] < 0.0f ? -x[k] : x[k];
    squares += double(size * size);
    most = size > most ? size : most;
  }
  const float factor = scaled(x, depth, 1, most, squares, unit);
  if (factor == 0.0f) {
    for (k = 0; k < depth + depth % 2; ++k) to[k] = 0;
    return;
  }
  typedef int16_t VecS __attribute__((vector_size(kVectorBytes / 2)));
  for (k = 0; k + kLanesF <= depth; k += kLanesF) {
    const VecS v = __builtin_convertvector(rounded(load(x + k) * factor), VecS);
    __builtin_memcpy(to + k, &v, sizeof(v));
  }
  for (; k < depth; ++k) to[k] = int16_t(rounded(x[k] * factor));
  if (depth % 2) to[depth] = 0;
}

// Numbers of one row or column side by side: integers first, then pairs change places.
template <int kWidth>
void pack_along_depth(const Int16Side& s, int64_t first, int64_t count, float* units,
                      int32_t* panels, int16_t* scratch) {
  const int64_t pairs = (s.depth + 1) / 2;
  for (int64_t at = 0; at < count; at += kWidth, panels += int16_panel(kWidth, s.depth)) {
    const int64_t here = smaller(kWidth, count - at);
    for (int64_t i = 0; i < here; ++i)
      quantise_row(s.data + (first + at + i) * s.free_stride, s.depth, units + at + i,
                   scratch + 2 * i * pairs);
    // moved as they are: a float is as good a name for 32 bits as any
    pack_rows<kWidth>(PlainMatrix<float>{reinterpret_cast<const float*>(scratch), pairs}, 0, here,
                      0, pairs, reinterpret_cast<float*>(panels));
  }
}

// Numbers of neighbouring rows or columns side by side.
template <int kWidth>
void pack_across_depth(const Int16Side& s, int64_t first, int64_t count, float* units,
                       int32_t* panels) {
  constexpr int kMost = 64;  // the callers' largest count
  const int64_t pairs = (s.depth + 1) / 2, ld = s.depth_stride;
  const float* x = s.data + first;
  float largest[kMost] = {}, factor[kMost + kLanesF] = {};
  double squares[kMost] = {};
  for (int64_t start = 0; start < s.depth; start += kTogether) {
    float sum[kMost] = {};
    for (int64_t k = start; k < smaller(start + kTogether, s.depth); ++k) {
      const float* row = x + k * ld;
      for (int64_t i = 0; i < count; ++i) {
        const float size = row[i] < 0.0f ? -row[i] : row[i];
        sum[i] += size * size;
        largest[i] = size > largest[i] ? size : largest[i];
      }
    }
    for (int64_t i = 0; i < count; ++i) squares[i] += double(sum[i]);
  }
  for (int64_t i = 0; i < count; ++i)
    factor[i] = scaled(x + i, s.depth, ld, largest[i], squares[i], units + i);
  for (int64_t at = 0; at < count; at += kWidth, panels += int16_panel(kWidth, s.depth)) {
    const int64_t here = smaller(kWidth, count - at);
    constexpr int64_t whole = (kWidth + kLanesF - 1) / kLanesF * kLanesF;
    // spare lanes of a pair run into the next one's place, which is written later
    const bool inside = here == kWidth && first + at + whole <= s.free;
    for (int64_t k = 0; k < pairs; ++k) {
      const float* low = x + 2 * k * ld + at;
      const bool two = 2 * k + 1 < s.depth;
      int32_t* to = panels + k * kWidth;
      if (inside && two) {
#pragma GCC unroll 4
        for (int i = 0; i < kWidth; i += kLanesF) {
          const Vec<float> f = load(factor + at + i);
          const VecI lower = rounded(load(low + i) * f), upper = rounded(load(low + ld + i) * f);
          const VecI both = (upper << 16) | (lower & 0xffff);
          __builtin_memcpy(to + i, &both, sizeof(both));
        }
        continue;
      }
      for (int i = 0; i < kWidth; ++i) {
        const float f = i < here ? factor[at + i] : 0.0f;
        to[i] = f == 0.0f ? 0 : pair_of(rounded(low[i] * f), two ? rounded(low[ld + i] * f) : 0);
      }
    }
  }
}

template <int kWidth>
void pack(const Int16Side& side, int64_t first, int64_t count, float* units, int32_t* panels,
          int16_t* scratch) {
  if (side.depth_stride == 1) {
    pack_along_depth<kWidth>(side, first, count, units, panels, scratch);
  } else {
    pack_across_depth<kWidth>(side, first, count, units, panels);
  }
}

struct Sums {
  VecI v[kRows][2];
};

CATAPULT_INLINE void store_sums(const Sums& sums, const Int16Tile& t) {
  if (t.cols == kCols) {
    const Vec<float> one = load(t.right_units), two = load(t.right_units + kLanesF);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      if (r >= t.rows) break;
      float* to = t.out + r * t.ld;
      Vec<float> a = __builtin_convertvector(sums.v[r][0], Vec<float>) * one * t.left_units[r];
      Vec<float> b = __builtin_convertvector(sums.v[r][1], Vec<float>) * two * t.left_units[r];
      if (t.add) {
        a += load(to);
        b += load(to + kLanesF);
      }
      if (t.mask) {
        a *= load(t.mask + r * t.ld);
        b *= load(t.mask + r * t.ld + kLanesF);
      }
      store(to, a);
      store(to + kLanesF, b);
    }
    return;
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) {
      const int32_t sum = sums.v[r][c / kLanesF][c % kLanesF];
      float value = float(sum) * t.right_units[c] * t.left_units[r];
      if (t.add) value += t.out[r * t.ld + c];
      if (t.mask) value *= t.mask[r * t.ld + c];
      t.out[r * t.ld + c] = value;
    }
  }
}

void tile(const Int16Tile& t) {
  Sums sums = {};
  const int32_t *left = t.left, *right = t.right;
  for (int64_t k = 0; k < (t.depth + 1) / 2; ++k, left += kRows, right += kCols) {
    VecI b[2];
    __builtin_memcpy(b, right, sizeof(b));
    for (int r = 0; r < kRows; ++r) {
      const int32_t low = int16_t(left[r] & 0xffff), high = left[r] >> 16;
      for (int h = 0; h < 2; ++h) sums.v[r][h] += ((b[h] << 16) >> 16) * low + (b[h] >> 16) * high;
    }
  }
  store_sums(sums, t);
}

#ifdef __AVX512F__
__attribute__((target("avx512vnni"))) void tile_by_dot_products(const Int16Tile& t) {
  __m512i acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
  const int32_t *left = t.left, *right = t.right;
  for (int64_t k = 0; k < (t.depth + 1) / 2; ++k, left += kRows, right += kCols) {
    const __m512i b0 = _mm512_loadu_si512(right), b1 = _mm512_loadu_si512(right + 16);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(left[r]);
      acc[r][0] = _mm512_dpwssd_epi32(acc[r][0], a, b0);
      acc[r][1] = _mm512_dpwssd_epi32(acc[r][1], a, b1);
    }
  }
  Sums sums;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    __builtin_memcpy(&sums.v[r][0], &acc[r][0], sizeof(VecI));
    __builtin_memcpy(&sums.v[r][1], &acc[r][1], sizeof(VecI));
  }
  store_sums(sums, t);
}
#else
constexpr decltype(&tile) tile_by_dot_products = nullptr;
#endif

}  // namespace

const Int16Loops CATAPULT_ISA_SYMBOL(int16_product_simd) = {
    kRows, kCols, &pack<kRows>, &pack<kCols>, &tile, tile_by_dot_products};

}  // namespace catapult
