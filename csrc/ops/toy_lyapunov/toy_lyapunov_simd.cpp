#include "ops/toy_lyapunov/toy_lyapunov_simd.hpp"

#include "core/simd_math.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_config.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_math.hpp"

namespace catapult {
namespace {

typedef Vec<double> Real;
typedef uint64_t Word __attribute__((vector_size(kVectorBytes)));

constexpr int64_t kPaths = kLanes<double>;

CATAPULT_INLINE Word word(uint64_t x) { return x - Word{}; }
CATAPULT_INLINE Word bits_of(Real x) { return reinterpret_cast<Word>(x); }
CATAPULT_INLINE Real real_of(Word x) { return reinterpret_cast<Real>(x); }

// As toy_lyapunov_uniform: 52 bits become the mantissa of a number in [1, 2).
CATAPULT_INLINE Real uniform(Word bits) {
  return real_of((bits >> 12) | word(0x3FF0000000000000u)) - splat(1.0) + splat(0x1p-53);
}

// log x for a normal x > 0: x = m 2^e with m in [2/3, 4/3).
CATAPULT_INLINE Real logarithm(Real x) {
  constexpr uint64_t kTwoThirds = 0x3FE5555555555555u, kOne = 0x3FF0000000000000u;
  const Word shifted = bits_of(x) - word(kTwoThirds) + word(kOne);
  const Word e = shifted >> 52;
  const Word m = bits_of(x) - ((e - word(1023)) << 52);
  const Real exponent = real_of(e + word(0x4330000000000000u)) - splat(0x1p52 + 1023.0);
  return exponent * splat(0.693147180559945309417) + log_one_plus<double>(real_of(m) - splat(1.0));
}

CATAPULT_INLINE Real root(Real x) {
  for (int i = 0; i < kPaths; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

// Taylor series of sin(r) / r and cos(r) in r^2, to rounding for |r| <= pi / 4.
constexpr double kSine[] = {1.0,
                            -1.0 / 6,
                            1.0 / 120,
                            -1.0 / 5040,
                            1.0 / 362880,
                            -1.0 / 39916800,
                            1.0 / 6227020800,
                            -1.0 / 1307674368000,
                            1.0 / 355687428096000};
constexpr double kCosine[] = {1.0,
                              -1.0 / 2,
                              1.0 / 24,
                              -1.0 / 720,
                              1.0 / 40320,
                              -1.0 / 3628800,
                              1.0 / 479001600,
                              -1.0 / 87178291200,
                              1.0 / 20922789888000};

// Box and Muller, as toy_lyapunov_draw.
CATAPULT_INLINE void normal_pair(Real u, Real v, Real& z0, Real& z1) {
  const Real radius = root(splat(-2.0) * logarithm(u));
  const Real turns = splat(4.0) * v, shifted = turns + splat(0x1.8p52);
  const Real r = (turns - (shifted - splat(0x1.8p52))) * splat(1.57079632679489661923);
  const Real square = r * r;
  const Real s = radius * r * polynomial<double>(kSine, square);
  const Real c = radius * polynomial<double>(kCosine, square);
  const Word quarter = bits_of(shifted);
  const auto odd = (quarter & word(1)) != Word{};
  const Word sine_sign = (quarter & word(2)) << 62;
  const Word cosine_sign = ((quarter + word(1)) & word(2)) << 62;
  z0 = real_of(bits_of(odd ? s : c) ^ cosine_sign);
  z1 = real_of(bits_of(odd ? c : s) ^ sine_sign);
}

void draw(double* z, int64_t first_pair, int64_t first_path, int64_t seed, int64_t noise) {
  const auto kind = static_cast<ToyLyapunovNoise>(noise);
  Word paths;
  for (int i = 0; i < kPaths; ++i) paths[i] = static_cast<uint64_t>(first_path + i);
  for (int64_t j = 0; j < kToyLyapunovSegment / 2; ++j) {
    Word x0 = word(static_cast<uint64_t>(first_pair + j)), x1 = paths;
    threefry(x0, x1, static_cast<uint64_t>(seed), 0);
    Real z0 = uniform(x0), z1 = uniform(x1);
    const Real half = splat(0.5);
    if (kind == ToyLyapunovNoise::kUniform) {
      z0 = splat(3.46410161513775458705) * (z0 - half);
      z1 = splat(3.46410161513775458705) * (z1 - half);
    } else if (kind == ToyLyapunovNoise::kTwoPoint) {
      z0 = z0 < half ? splat(-1.0) : splat(1.0);
      z1 = z1 < half ? splat(-1.0) : splat(1.0);
    } else {
      const Real u = z0, v = z1;
      normal_pair(u, v, z0, z1);
    }
    store(z + 2 * j * kPaths, z0);
    store(z + (2 * j + 1) * kPaths, z1);
  }
}

// By a power of two, so that no digit is lost; what is not finite stays so.
CATAPULT_INLINE void rescale(Real& x, Real& y, Word& exponent) {
  const Real a = magnitude<double>(x), b = magnitude<double>(y);
  const Word biased = bits_of(a > b ? a : b) >> 52;
  const Real scale = real_of((word(2046) - biased) << 52);
  x *= scale;
  y *= scale;
  exponent += biased - word(1023);
}

void advance(const ToyLyapunovCases& c, const double* z, int64_t steps) {
  constexpr int kGroup = kToyLyapunovGroup;
  for (int64_t first = 0; first < c.cases; first += kGroup) {
    Real x[kGroup], y[kGroup], still[kGroup], deviation[kGroup], beta[kGroup];
    Word exponent[kGroup];
    for (int g = 0; g < kGroup; ++g) {
      const int64_t r = first + g, at = r * kPaths;
      x[g] = load(c.x + at);
      y[g] = load(c.y + at);
      __builtin_memcpy(&exponent[g], c.exponent + at, sizeof(Word));
      deviation[g] = splat(c.deviation[r]);
      beta[g] = splat(c.beta[r]);
      still[g] = splat(1.0 + c.beta[r] - c.mean[r]);
    }
    for (int64_t t = 0; t < steps;) {
      const int64_t end = t + kToyLyapunovRescale < steps ? t + kToyLyapunovRescale : steps;
      for (; t < end; ++t) {
        const Real drawn = load(z + t * kPaths);
        for (int g = 0; g < kGroup; ++g) {
          const Real factor = still[g] - deviation[g] * drawn;
          const Real next = factor * x[g] - beta[g] * y[g];
          y[g] = x[g];
          x[g] = next;
        }
      }
      for (int g = 0; g < kGroup; ++g) rescale(x[g], y[g], exponent[g]);
    }
    for (int g = 0; g < kGroup; ++g) {
      const int64_t at = (first + g) * kPaths;
      store(c.x + at, x[g]);
      store(c.y + at, y[g]);
      __builtin_memcpy(c.exponent + at, &exponent[g], sizeof(Word));
    }
  }
}

}  // namespace

const ToyLyapunovSimd CATAPULT_ISA_SYMBOL(toy_lyapunov_simd) = {kPaths, draw, advance};

}  // namespace catapult
