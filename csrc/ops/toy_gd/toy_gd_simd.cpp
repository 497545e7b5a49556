// One pass over U per step. Lanes are hidden units; U is stored in tiles of `lanes` units, so that
// every load is one full vector whatever D is.
#include "ops/toy_gd/toy_gd_simd.hpp"

#include "core/simd.hpp"

namespace catapult {
namespace {

// K tiles between the two sweeps that a step makes over each: the first gives U zeta, the second
// updates U and adds v' U' to the sums of w.
template <typename T, int K>
struct Group {
  T* u;
  Vec<T> fresh[K], pull[K];  // v of the new step, and -rate * v of the old one
};

// Turns U zeta of the K tiles at v into the new v.
template <typename T, int K>
CATAPULT_INLINE void update_v(Group<T, K>& group, T* v, const Vec<T> (&uz)[K], Vec<T> rate,
                              Vec<T>& q, Vec<T>& uz2) {
  constexpr int L = kLanes<T>;
  for (int k = 0; k < K; ++k) {
    const Vec<T> old = load(v + k * L);
    group.fresh[k] = old - rate * uz[k];
    group.pull[k] = -rate * old;
    store(v + k * L, group.fresh[k]);
    q += group.fresh[k] * group.fresh[k];
    uz2 += uz[k] * uz[k];
  }
}

// The second sweep over `group` and, with Next, the first over the tiles at `next` in one loop: the
// two hide each other's latency and share the loads of zeta.
template <typename T, int K, bool Next>
CATAPULT_INLINE void sweep(const Group<T, K>& group, const T* next, Vec<T> (&uz)[K], const T* zeta,
                           int64_t d, T* sums) {
  constexpr int L = kLanes<T>;
  const int64_t tile = d * L;
  for (int k = 0; k < K; ++k) uz[k] = Vec<T>{};
  for (int64_t j = 0; j < d; ++j) {
    const Vec<T> z = splat<T>(zeta[j]);
    Vec<T> sum = load(sums + j * L);
    for (int k = 0; k < K; ++k) {
      T* p = group.u + k * tile + j * L;
      const Vec<T> row = load(p) + group.pull[k] * z;
      store(p, row);
      sum += group.fresh[k] * row;
      if (Next) uz[k] += load(next + k * tile + j * L) * z;
    }
    store(sums + j * L, sum);
  }
}

// `groups` groups of K tiles; the first at u and v, each next one `stride` tiles further.
template <typename T, int K>
CATAPULT_INLINE void step_groups(T* u, T* v, int64_t groups, int64_t stride, const T* zeta,
                                 int64_t d, Vec<T> rate, T* sums, Vec<T>& q, Vec<T>& uz2) {
  constexpr int L = kLanes<T>;
  if (groups <= 0) return;
  const int64_t tile = d * L;
  Vec<T> uz[K] = {};
  for (int64_t j = 0; j < d; ++j) {
    const Vec<T> z = splat<T>(zeta[j]);
    for (int k = 0; k < K; ++k) uz[k] += load(u + k * tile + j * L) * z;
  }
  for (int64_t g = 0; g < groups; ++g) {
    Group<T, K> group;
    group.u = u + g * stride * tile;
    update_v(group, v + g * stride * L, uz, rate, q, uz2);
    if (g + 1 < groups) {
      sweep<T, K, true>(group, group.u + stride * tile, uz, zeta, d, sums);
    } else {
      sweep<T, K, false>(group, nullptr, uz, zeta, d, sums);
    }
  }
}

template <typename T>
CATAPULT_INLINE void clear_sums(ToyGdState<T>& s) {
  for (int64_t j = 0; j < s.inputs; ++j) store(s.sums + j * kLanes<T>, Vec<T>{});
}

template <typename T>
CATAPULT_INLINE void fold_sums(ToyGdState<T>& s) {
  for (int64_t j = 0; j < s.inputs; ++j) s.w[j] = reduce_add<T>(load(s.sums + j * kLanes<T>));
}

template <typename T, int K>
void step_tiles(ToyGdState<T>& s, T rate, bool backward) {
  constexpr int L = kLanes<T>;
  const Vec<T> e = splat<T>(rate);
  const int64_t d = s.inputs, tile = d * L, groups = s.tiles / K, rest = groups * K;
  Vec<T> q{}, uz2{};
  clear_sums(s);
  T *rest_u = s.u + rest * tile, *rest_v = s.v + rest * L;
  if (backward) {
    step_groups<T, 1>(rest_u + (s.tiles - rest - 1) * tile, rest_v + (s.tiles - rest - 1) * L,
                      s.tiles - rest, -1, s.zeta, d, e, s.sums, q, uz2);
    step_groups<T, K>(rest_u - K * tile, rest_v - K * L, groups, -K, s.zeta, d, e, s.sums, q, uz2);
  } else {
    step_groups<T, K>(s.u, s.v, groups, K, s.zeta, d, e, s.sums, q, uz2);
    step_groups<T, 1>(rest_u, rest_v, s.tiles - rest, 1, s.zeta, d, e, s.sums, q, uz2);
  }
  fold_sums(s);
  s.q = reduce_add<T>(q);
  s.uz2 = reduce_add<T>(uz2);
}

template <typename T>
void step(ToyGdState<T>& state, T rate, int group, bool backward) {
  if (group == 4) {
    step_tiles<T, 4>(state, rate, backward);
  } else if (group == 2) {
    step_tiles<T, 2>(state, rate, backward);
  } else {
    step_tiles<T, 1>(state, rate, backward);
  }
}

template <typename T>
void measure(ToyGdState<T>& s) {
  constexpr int L = kLanes<T>;
  clear_sums(s);
  Vec<T> q{};
  for (int64_t i = 0; i < s.tiles; ++i) {
    const Vec<T> v = load(s.v + i * L);
    q += v * v;
    for (int64_t j = 0; j < s.inputs; ++j) {
      T* sum = s.sums + j * L;
      store(sum, load(sum) + v * load(s.u + (i * s.inputs + j) * L));
    }
  }
  fold_sums(s);
  s.q = reduce_add<T>(q);
}

template <typename T>
void gram(const ToyGdState<T>& s, double* out) {
  constexpr int L = kLanes<T>;
  const int64_t d = s.inputs;
  for (int64_t i = 0; i < d; i += 2) {
    const bool pair = i + 1 < d;
    for (int64_t j = 0; j <= i + (pair ? 1 : 0); j += 2) {
      // A 2 x 2 block of S; an index beyond the last input repeats the first of its pair.
      const int64_t i1 = pair ? i + 1 : i, j1 = j + 1 < d ? j + 1 : j;
      Vec<T> sum[4] = {};
      for (int64_t t = 0; t < s.tiles; ++t) {
        const T* u = s.u + t * d * L;
        const Vec<T> a0 = load(u + i * L), a1 = load(u + i1 * L);
        const Vec<T> b0 = load(u + j * L), b1 = load(u + j1 * L);
        sum[0] += a0 * b0;
        sum[1] += a0 * b1;
        sum[2] += a1 * b0;
        sum[3] += a1 * b1;
      }
      const int64_t rows[2] = {i, i1}, columns[2] = {j, j1};
      for (int k = 0; k < 4; ++k) {
        const double value = static_cast<double>(reduce_add<T>(sum[k]));
        out[rows[k / 2] * d + columns[k % 2]] = value;
        out[columns[k % 2] * d + rows[k / 2]] = value;
      }
    }
  }
}

// residual = X w / sqrt(W) - y with samples in the lanes.
template <typename T, int B>
CATAPULT_INLINE void residual_block(const ToyGdData<T>& data, const T* w, T* residual, int64_t at,
                                    Vec<T>& squares) {
  constexpr int L = kLanes<T>;
  Vec<T> f[B] = {};
  for (int64_t j = 0; j < data.inputs; ++j) {
    const Vec<T> wj = splat<T>(w[j]);
    const T* x = data.by_input + j * data.padded_samples + at;
    for (int b = 0; b < B; ++b) f[b] += load(x + b * L) * wj;
  }
  const Vec<T> scale = splat<T>(data.inverse_root_width);
  for (int b = 0; b < B; ++b) {
    const Vec<T> r = f[b] * scale - load(data.y + at + b * L);
    store(residual + at + b * L, r);
    squares += r * r;
  }
}

template <typename T>
T residuals(const ToyGdData<T>& data, ToyGdState<T>& s) {
  constexpr int L = kLanes<T>;
  Vec<T> squares{};
  int64_t at = 0;
  for (; at + 4 * L <= data.padded_samples; at += 4 * L)
    residual_block<T, 4>(data, s.w, s.residual, at, squares);
  for (; at < data.padded_samples; at += L)
    residual_block<T, 1>(data, s.w, s.residual, at, squares);
  const T samples = static_cast<T>(data.samples);
  for (int64_t j = 0; j < data.padded_inputs; j += L) {
    Vec<T> part[4] = {};
    int64_t a = 0;
    for (; a + 4 <= data.samples; a += 4) {
      for (int c = 0; c < 4; ++c)
        part[c] +=
            load(data.by_sample + (a + c) * data.padded_inputs + j) * splat<T>(s.residual[a + c]);
    }
    for (; a < data.samples; ++a)
      part[0] += load(data.by_sample + a * data.padded_inputs + j) * splat<T>(s.residual[a]);
    store(s.zeta + j, ((part[0] + part[1]) + (part[2] + part[3])) / splat<T>(samples));
  }
  return reduce_add<T>(squares) / (2 * samples);
}

template <typename T>
constexpr ToyGdTable<T> table() {
  return {kLanes<T>, &residuals<T>, &step<T>, &measure<T>, &gram<T>};
}

}  // namespace

extern const ToyGdTables CATAPULT_ISA_SYMBOL(toy_gd_simd) = {table<float>(), table<double>()};

}  // namespace catapult
