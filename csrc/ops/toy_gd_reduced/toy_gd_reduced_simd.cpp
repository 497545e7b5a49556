// Equations of the closed state: w' = w - e (S z + q z) + e^2 (w.z) z,
// S' = S - e (w z' + z w') + e^2 q z z', q' = q - 2 e w.z + e^2 z'S z, e = eta / sqrt(W).
#include "ops/toy_gd_reduced/toy_gd_reduced_simd.hpp"

#include <cfloat>

#include "core/simd.hpp"

namespace catapult {
namespace {

// B rows of the data at once, so that one load of w and of zeta serves B products.
template <typename T, int B>
CATAPULT_INLINE void row_block(const ToyReducedData<T>& data, const ToyReducedLanes<T>& s,
                               const ToyReducedBlock& block, Vec<T>& squares) {
  constexpr int L = kLanes<T>;
  const T* data_x = data.x + block.row * s.inputs;
  Vec<T> r[B] = {};
  for (int64_t j = block.first; j < block.last; ++j) {
    const T* x = data_x + j * B;
    const Vec<T> w = load(s.w + j * L);
    for (int b = 0; b < B; ++b) r[b] += w * splat<T>(x[b]);
  }
  const Vec<T> scale = splat<T>(data.inverse_root_width);
  Vec<T> sums[2] = {};  // two chains, for latency
  for (int b = 0; b < B; ++b) {
    r[b] = r[b] * scale - splat<T>(data.y[block.row + b]);
    sums[b % 2] += r[b] * r[b];
  }
  squares += sums[0] + sums[1];
  for (int64_t j = block.first; j < block.last; ++j) {
    const T* x = data_x + j * B;
    Vec<T> even = load(s.zeta + j * L), odd{};
    for (int b = 0; b + 1 < B; b += 2) {
      even += r[b] * splat<T>(x[b]);
      odd += r[b + 1] * splat<T>(x[b + 1]);
    }
    if (B % 2 == 1) even += r[B - 1] * splat<T>(x[B - 1]);
    store(s.zeta + j * L, even + odd);
  }
}

// Not std::sqrt: an inline function of the library would leave this file with this ISA's code.
CATAPULT_INLINE float root(float x) { return __builtin_sqrtf(x); }
CATAPULT_INLINE double root(double x) { return __builtin_sqrt(x); }

// The same verdict as ToyReplicaRecord::acceptable, for all lanes in one.
template <typename T>
CATAPULT_INLINE bool observe(const ToyReducedLanes<T>& s) {
  constexpr T largest = sizeof(T) == 4 ? static_cast<T>(FLT_MAX) : static_cast<T>(DBL_MAX);
  int refused = 0;
  for (int l = 0; l < kLanes<T>; ++l) {
    const T norm = s.trace[l] + s.q[l];
    s.norm[l] = root(norm < T(0) ? T(0) : norm);
    refused |= !(s.loss[l] <= s.cut[l]) | !(norm <= largest);
  }
  return refused == 0;
}

template <typename T>
bool residuals(const ToyReducedData<T>& problem, const ToyReducedLanes<T>& state) {
  constexpr int L = kLanes<T>;
  const ToyReducedData<T> data = problem;  // copies: no store can change their pointers
  const ToyReducedLanes<T> s = state;
  for (int64_t j = 0; j < s.inputs; ++j) store(s.zeta + j * L, Vec<T>{});
  Vec<T> squares{};
  for (int64_t i = 0; i < data.block_count; ++i) {
    const ToyReducedBlock& block = data.blocks[i];
    if (block.count == 8) {
      row_block<T, 8>(data, s, block, squares);
    } else if (block.count == 4) {
      row_block<T, 4>(data, s, block, squares);
    } else {
      row_block<T, 1>(data, s, block, squares);
    }
  }
  const Vec<T> inverse = splat<T>(data.inverse_samples);
  for (int64_t j = 0; j < s.inputs; ++j) store(s.zeta + j * L, load(s.zeta + j * L) * inverse);
  store(s.loss, squares * (inverse * splat<T>(T(0.5))));
  return observe(s);
}

// The last update of S is added and S zeta is formed in one sweep, two rows at a time.
template <typename T>
CATAPULT_INLINE void sweep_gram(const ToyReducedLanes<T>& s) {
  constexpr int L = kLanes<T>;
  for (int64_t j = 0; j < s.inputs; ++j) store(s.s_zeta + j * L, Vec<T>{});
  T* p = s.s;
  for (int64_t i = 0; i < s.inputs; i += 2) {
    const Vec<T> hz0 = load(s.held_zeta + i * L), hz1 = load(s.held_zeta + (i + 1) * L);
    const Vec<T> hp0 = load(s.held_p + i * L), hp1 = load(s.held_p + (i + 1) * L);
    const Vec<T> z0 = load(s.zeta + i * L), z1 = load(s.zeta + (i + 1) * L);
    const Vec<T> s00 = load(p) + (hz0 * hp0 + hp0 * hz0);
    const Vec<T> s01 = load(p + L) + hz0 * hp1 + hp0 * hz1;
    const Vec<T> s11 = load(p + 2 * L) + (hz1 * hp1 + hp1 * hz1);
    store(p, s00);
    store(p + L, s01);
    store(p + 2 * L, s11);
    p += 3 * L;
    Vec<T> sz0 = load(s.s_zeta + i * L) + s00 * z0 + s01 * z1;
    Vec<T> sz1 = load(s.s_zeta + (i + 1) * L) + s01 * z0 + s11 * z1;
    for (int64_t j = i + 2; j < s.inputs; ++j, p += 2 * L) {
      const Vec<T> hz = load(s.held_zeta + j * L), hp = load(s.held_p + j * L);
      const Vec<T> a = load(p) + hz0 * hp + hp0 * hz, b = load(p + L) + hz1 * hp + hp1 * hz;
      store(p, a);
      store(p + L, b);
      const Vec<T> z = load(s.zeta + j * L);
      sz0 += a * z;
      sz1 += b * z;
      store(s.s_zeta + j * L, load(s.s_zeta + j * L) + a * z0 + b * z1);
    }
    store(s.s_zeta + i * L, sz0);
    store(s.s_zeta + (i + 1) * L, sz1);
  }
}

template <typename T>
void advance(const ToyReducedLanes<T>& state) {
  constexpr int L = kLanes<T>;
  const ToyReducedLanes<T> s = state;
  sweep_gram(s);
  Vec<T> wz{}, zz{}, zsz{};
  for (int64_t j = 0; j < s.inputs; ++j) {
    const Vec<T> z = load(s.zeta + j * L);
    wz += load(s.w + j * L) * z;
    zz += z * z;
    zsz += load(s.s_zeta + j * L) * z;
  }
  const Vec<T> e = load(s.rate), q = load(s.q);
  const Vec<T> half = splat<T>(T(0.5)) * e * (e * q), along = e * (e * wz - q);
  for (int64_t j = 0; j < s.inputs; ++j) {
    const Vec<T> z = load(s.zeta + j * L), w = load(s.w + j * L);
    store(s.held_zeta + j * L, z);
    store(s.held_p + j * L, half * z - e * w);
    store(s.w + j * L, w - e * load(s.s_zeta + j * L) + along * z);
  }
  const Vec<T> two = splat<T>(T(2));
  store(s.q, q + e * (e * zsz - two * wz));
  store(s.trace, load(s.trace) + e * (e * (q * zz) - two * wz));
}

template <typename T>
constexpr ToyReducedTable<T> table() {
  return {kLanes<T>, &residuals<T>, &advance<T>};
}

}  // namespace

extern const ToyReducedTables CATAPULT_ISA_SYMBOL(toy_gd_reduced_simd) = {table<float>(),
                                                                          table<double>()};

}  // namespace catapult
