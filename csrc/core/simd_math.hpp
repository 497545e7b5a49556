// exp, log1p and the error function of a vector, to a few units in the last place. Polynomials are
// minimax (Remez); no denormal results: what would be one is zero. NaN stays NaN.
#pragma once

#include <cfloat>

#include "core/simd.hpp"

namespace catapult {
namespace {

template <typename T>
struct ExpTable;
template <>
struct ExpTable<float> {
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kHalf = 12;  // bits; those that halve a product's factors
  static constexpr float kRound = 0x1.8p23f, kLeast = -87.0f;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  // (e^r - 1 - r) / r^2 on |r| <= 0.39
  static constexpr float kExp[] = {0.5000000027f,   0.1666666685f,   0.04166634301f,
                                   0.008333257434f, 0.001394558941f, 0.000199252624f};
  // (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2 <= 1/9
  static constexpr float kLog[] = {0.6666666735f, 0.3999969638f, 0.2859280883f, 0.2170005422f,
                                   0.2325377184f};
  // erf(x) / x in x^2 <= 1
  static constexpr float kErf[] = {1.128379166f,    -0.3761262714f,  0.1128360021f,
                                   -0.02685444558f, 0.005189536462f, -0.0008020845698f,
                                   7.889119157e-5f};
  // (1 + 2 x) e^(x^2) erfc(x) in (x - 3.75) / (x + 3.75), 0 <= x <= 30 (Shepherd and Laframboise)
  static constexpr float kErfc[] = {1.23751263f,     -0.1402405822f,   0.003585487534f,
                                    0.08227602614f,  -0.108805874f,    0.0923123586f,
                                    -0.05867303094f, 0.02833165176f,   -0.009839093288f,
                                    0.001774189136f, 0.0004556078492f, -0.0002179170567f};
};
template <>
struct ExpTable<double> {
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kHalf = 27;
  static constexpr double kRound = 0x1.8p52, kLeast = -708.0;
  static constexpr double kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kExp[] = {0.500000000000000103,   0.166666666666666746,
                                    0.0416666666666240287,  0.0083333333333221837,
                                    0.00138888889172625062, 0.000198412698866630685,
                                    2.48015212209974822e-5, 2.75572422551766561e-6,
                                    2.7620123792669524e-7,  2.51100806091804451e-8};
  static constexpr double kLog[] = {
      0.666666666666666669, 0.399999999999995003,  0.285714285716067272, 0.222222221974705615,
      0.181818199429190968, 0.153845424504686075,  0.133352096763749461, 0.117338852884400863,
      0.108481959375210745, 0.0747934404873198916, 0.156536489486905295};
  static constexpr double kErf[] = {
      1.12837916709551257,     -0.376126389031837482,   0.112837916709548845,
      -0.0268661706450778751,  0.00522397762482843067,  -0.000854832698142554209,
      0.000120553311329558196, -1.49255957721809531e-5, 1.64610084778027013e-6,
      -1.63503962228646163e-7, 1.46603287227422595e-8,  -1.13749557360701496e-9,
      5.96068533852097103e-11};
  static constexpr double kErfc[] = {
      1.23751263083782758,      -0.140240598585546644,   0.00358541548546332737,
      0.0822767384901080752,    -0.108803930141693155,   0.0923043211616576138,
      -0.0586933985906013563,   0.0283622773986322109,   -0.0097465795515151151,
      0.00175562603130084207,   0.000293713661975816623, -0.000290155028822683911,
      5.16489016264230127e-5,   2.23874280429272799e-5,  -1.14428977534687633e-5,
      -9.8041975169476122e-7,   1.74789516300831996e-6,  -4.79768148977477836e-8,
      -2.52367242014685892e-7,  1.59808172741230768e-8,  3.27443237059772715e-8,
      -9.12755001588764682e-10, -2.41070674761741165e-9};
};

template <typename T>
using VecBits = typename ExpTable<T>::Bits;

// c[0] + c[1] x + ..., by Horner's rule.
template <typename T, int N>
CATAPULT_INLINE Vec<T> polynomial(const T (&c)[N], Vec<T> x) {
  Vec<T> sum = splat(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) sum = sum * x + splat(c[i]);
  return sum;
}

template <typename T>
CATAPULT_INLINE Vec<T> magnitude(Vec<T> x) {
  return x < Vec<T>{} ? -x : x;
}

// e^x = scale (1 + excess), so that e^x - 1 = scale excess + (scale - 1) keeps its digits.
template <typename T>
struct Exponential {
  Vec<T> scale, excess;
  CATAPULT_INLINE Vec<T> value() const { return scale + scale * excess; }
  CATAPULT_INLINE Vec<T> less_one() const { return scale * excess + (scale - splat(T(1))); }
};

// Of x + rest, |rest| much below 1; x <= 0, or at least far from overflow.
template <typename T>
CATAPULT_INLINE Exponential<T> exponential(Vec<T> x, Vec<T> rest = Vec<T>{}) {
  using Table = ExpTable<T>;
  const auto vanishes = x < splat(Table::kLeast);
  x = vanishes ? splat(Table::kLeast) : x;
  const Vec<T> shifted = x * splat(static_cast<T>(1.4426950408889634)) + splat(Table::kRound);
  const Vec<T> n = shifted - splat(Table::kRound);
  const Vec<T> r = (x - n * splat(Table::kLn2High)) - n * splat(Table::kLn2Low) + rest;
  const VecBits<T> exponent = (reinterpret_cast<VecBits<T>>(shifted) << Table::kMantissa) +
                              reinterpret_cast<VecBits<T>>(splat(T(1)));
  const Vec<T> scale = reinterpret_cast<Vec<T>>(exponent);
  return {vanishes ? Vec<T>{} : scale, r + r * r * polynomial(Table::kExp, r)};
}

// log(1 + x) for 0 <= x <= 1.
template <typename T>
CATAPULT_INLINE Vec<T> log_one_plus(Vec<T> x) {
  const Vec<T> s = x / (x + splat(T(2))), square = s * s;
  return splat(T(2)) * s + s * square * polynomial(ExpTable<T>::kLog, square);
}

// e^(-factor x^2), factor a power of two, relative to itself: the square is split into one without
// rounding and a small rest.
template <typename T>
CATAPULT_INLINE Vec<T> gaussian(Vec<T> x, T factor) {
  const VecBits<T> mask = ~VecBits<T>{} << ExpTable<T>::kHalf;
  const Vec<T> high = reinterpret_cast<Vec<T>>(reinterpret_cast<VecBits<T>>(x) & mask);
  const Vec<T> f = splat(factor);
  return exponential<T>(-(f * high * high), f * (high - x) * (high + x)).value();
}

// erfc(x) / e^(-x^2) for 0 <= x <= 30.
template <typename T>
CATAPULT_INLINE Vec<T> erfc_scaled(Vec<T> x) {
  const Vec<T> near = x + splat(T(3.75)), far = splat(T(1)) + splat(T(2)) * x;
  const Vec<T> inverse = splat(T(1)) / (near * far);
  const Vec<T> y = (x - splat(T(3.75))) * far * inverse;
  return polynomial(ExpTable<T>::kErfc, y) * near * inverse;
}

}  // namespace
}  // namespace catapult
