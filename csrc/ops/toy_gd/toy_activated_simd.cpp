// One pass over U per step. Lanes are hidden units, in the tiles of toy_gd_simd.cpp; two tiles at a
// time, whose phi(z) and phi'(z) for all samples stay in the nearest cache between the products.
#include "ops/toy_gd/toy_activated_simd.hpp"

#include "core/simd_math.hpp"

namespace catapult {
namespace {

// phi and phi' of one vector each, by kind.
template <typename T>
struct Phi {
  using V = Vec<T>;
  V h, g;

  static CATAPULT_INLINE V one() { return splat(T(1)); }
  static CATAPULT_INLINE V zero() { return V{}; }
  static CATAPULT_INLINE V at_most(V x, T most) { return x > splat(most) ? splat(most) : x; }

  static CATAPULT_INLINE Phi leaky(V z, V slope) {
    const V steep = z > zero() ? one() : slope;
    return {z * steep, steep};
  }

  static CATAPULT_INLINE Phi abs(V z) {
    return {magnitude<T>(z), z > zero() ? one() : z < zero() ? -one() : zero() * z};
  }

  static CATAPULT_INLINE Phi tanh(V z) {
    const Exponential<T> e = exponential<T>(splat(T(-2)) * magnitude<T>(z));
    const V less = e.less_one(), inverse = one() / (less + splat(T(2))), value = -less * inverse;
    return {z < zero() ? -value : value, splat(T(4)) * e.value() * inverse * inverse};
  }

  static CATAPULT_INLINE Phi erf(V z) {
    const V x = at_most(magnitude<T>(z), T(30)), e = gaussian<T>(x, T(1)), square = x * x;
    const V inside = x * polynomial(ExpTable<T>::kErf, square);
    const V value = x < one() ? inside : one() - e * erfc_scaled<T>(x);
    return {z < zero() ? -value : value, splat(static_cast<T>(1.1283791670955126)) * e};
  }

  static CATAPULT_INLINE Phi gelu(V z) {
    const V x = at_most(magnitude<T>(z), T(40));
    const V scaled = erfc_scaled<T>(x * splat(static_cast<T>(0.7071067811865476)));
    const V e = gaussian<T>(x, T(0.5)), tail = splat(T(0.5)) * e * scaled;
    const V below = z > zero() ? one() - tail : tail;
    return {z * below, below + splat(static_cast<T>(0.3989422804014327)) * z * e};
  }

  static CATAPULT_INLINE Phi softplus(V z) {
    const V e = exponential<T>(-magnitude<T>(z)).value(), inverse = one() / (one() + e);
    return {(z < zero() ? zero() : z) + log_one_plus<T>(e), (z > zero() ? one() : e) * inverse};
  }

  static CATAPULT_INLINE Phi silu(V z) {
    const V e = exponential<T>(-magnitude<T>(z)).value(), inverse = one() / (one() + e);
    const V gate = (z > zero() ? one() : e) * inverse, rest = (z > zero() ? e : one()) * inverse;
    return {z * gate, gate + z * gate * rest};
  }
};

// z in h -> phi(z) in h, phi'(z) in g, for `count` vectors.
template <typename T, typename F>
CATAPULT_INLINE void each(T* h, T* g, int64_t count, F phi) {
  for (int64_t i = 0; i < count * kLanes<T>; i += kLanes<T>) {
    const Phi<T> out = phi(load(h + i));
    store(h + i, out.h);
    store(g + i, out.g);
  }
}

template <typename T>
void activate_all(Activation kind, T slope, T* h, T* g, int64_t count) {
  using V = Vec<T>;
  using P = Phi<T>;
  const V below = splat(slope);
  switch (kind) {
    case Activation::kLeaky:
      return each(h, g, count, [&](V z) { return P::leaky(z, below); });
    case Activation::kAbs:
      return each(h, g, count, [](V z) { return P::abs(z); });
    case Activation::kTanh:
      return each(h, g, count, [](V z) { return P::tanh(z); });
    case Activation::kErf:
      return each(h, g, count, [](V z) { return P::erf(z); });
    case Activation::kGelu:
      return each(h, g, count, [](V z) { return P::gelu(z); });
    case Activation::kSoftplus:
      return each(h, g, count, [](V z) { return P::softplus(z); });
    case Activation::kSilu:
      return each(h, g, count, [](V z) { return P::silu(z); });
    default:
      return each(h, g, count, [](V z) { return P{z, P::one()}; });
  }
}

// put(c, sums) for every column c of m (rows, pitch), sums[k] = sum_i in[k][i] m[i][c] for K tiles
// of `rows` vectors, one behind the other. m is padded to whole blocks of columns.
template <typename T, int K, typename Put>
CATAPULT_INLINE void product(const T* in, int64_t rows, const T* m, int64_t pitch, int64_t columns,
                             Put put) {
  constexpr int L = kLanes<T>, B = kVectorRegisters / 4;
  for (int64_t c = 0; c < columns; c += B) {
    Vec<T> sum[B][K] = {};
    for (int64_t i = 0; i < rows; ++i) {
      Vec<T> x[K];
      for (int k = 0; k < K; ++k) x[k] = load(in + (k * rows + i) * L);
      for (int b = 0; b < B; ++b) {
        const Vec<T> entry = splat(m[i * pitch + c + b]);
        for (int k = 0; k < K; ++k) sum[b][k] += x[k] * entry;
      }
    }
    for (int b = 0; b < B; ++b)
      if (c + b < columns) put(c + b, sum[b]);
  }
}

// K tiles from `tile` on: the old h and g move the weights (with Move), the new weights give h, g
// and their share of f.
template <typename T, int K, bool Move>
void visit(const ToyGdData<T>& data, ToyActivatedState<T>& s, int64_t tile, Activation kind,
           T slope, Vec<T>& q) {
  constexpr int L = kLanes<T>;
  const int64_t n = data.samples, d = data.inputs;
  T *u = s.u + tile * d * L, *v = s.v + tile * L;
  T *h = s.h + tile * n * L, *g = s.g + tile * n * L;
  Vec<T> fresh[K];
  for (int k = 0; k < K; ++k) fresh[k] = load(v + k * L);
  if (Move) {
    Vec<T> old[K], along[K] = {}, u2{};
    for (int64_t a = 0; a < n; ++a) {
      const Vec<T> pull = splat(s.pull[a]);
      for (int k = 0; k < K; ++k) {
        const int64_t at = (k * n + a) * L;
        along[k] += load(h + at) * pull;
        store(g + at, load(g + at) * pull);
      }
    }
    for (int k = 0; k < K; ++k) {
      old[k] = fresh[k];
      fresh[k] -= along[k] * load(s.live + (tile + k) * L);
      store(v + k * L, fresh[k]);
    }
    product<T, K>(g, n, data.by_sample, data.padded_inputs, d,
                  [&](int64_t j, const Vec<T>(&sum)[K]) {
                    for (int k = 0; k < K; ++k) {
                      T* p = u + (k * d + j) * L;
                      const Vec<T> row = load(p) - old[k] * sum[k];
                      store(p, row);
                      u2 += row * row;
                    }
                  });
    s.u2 += static_cast<double>(reduce_add<T>(u2));
  }
  product<T, K>(u, d, data.by_input, data.padded_samples, n, [&](int64_t a, const Vec<T>(&sum)[K]) {
    for (int k = 0; k < K; ++k) store(h + (k * n + a) * L, sum[k]);
  });
  activate_all<T>(kind, slope, h, g, K * n);
  for (int64_t a = 0; a < n; ++a) {
    Vec<T> sum = load(s.sums + a * L);
    for (int k = 0; k < K; ++k) sum += fresh[k] * load(h + (k * n + a) * L);
    store(s.sums + a * L, sum);
  }
  for (int k = 0; k < K; ++k) q += fresh[k] * fresh[k];
}

template <typename T, bool Move>
void pass(const ToyGdData<T>& data, ToyActivatedState<T>& s, Activation kind, T slope) {
  constexpr int L = kLanes<T>;
  for (int64_t a = 0; a < data.samples; ++a) store(s.sums + a * L, Vec<T>{});
  Vec<T> q{};
  s.u2 = 0.0;
  int64_t tile = 0;
  for (; tile + 2 <= s.tiles; tile += 2) visit<T, 2, Move>(data, s, tile, kind, slope, q);
  for (; tile < s.tiles; ++tile) visit<T, 1, Move>(data, s, tile, kind, slope, q);
  for (int64_t a = 0; a < data.samples; ++a) s.f[a] = reduce_add<T>(load(s.sums + a * L));
  s.q = reduce_add<T>(q);
}

template <typename T>
void kernel(const ToyGdData<T>& data, const ToyActivatedState<T>& s, const double* inner,
            double* out) {
  constexpr int L = kLanes<T>, B = 2;
  const int64_t n = data.samples;
  for (int64_t a = 0; a < n; a += B) {
    for (int64_t b = 0; b <= a; b += B) {
      // An index beyond the last sample repeats it.
      int64_t row[B], column[B];
      for (int i = 0; i < B; ++i) {
        row[i] = a + i < n ? a + i : n - 1;
        column[i] = b + i < n ? b + i : n - 1;
      }
      Vec<T> values[B][B] = {}, slopes[B][B] = {};
      for (int64_t t = 0; t < s.tiles; ++t) {
        const T *h = s.h + t * n * L, *g = s.g + t * n * L;
        const Vec<T> v = load(s.v + t * L), live = load(s.live + t * L);
        Vec<T> ha[B], ga[B];
        for (int i = 0; i < B; ++i) {
          ha[i] = load(h + row[i] * L) * live;
          ga[i] = load(g + row[i] * L) * (v * v);
        }
        for (int i = 0; i < B; ++i)
          for (int j = 0; j < B; ++j) {
            values[i][j] += ha[i] * load(h + column[j] * L);
            slopes[i][j] += ga[i] * load(g + column[j] * L);
          }
      }
      for (int i = 0; i < B; ++i)
        for (int j = 0; j < B; ++j) {
          const int64_t at = row[i] * n + column[j];
          out[at] = inner[at] * static_cast<double>(reduce_add<T>(slopes[i][j])) +
                    static_cast<double>(reduce_add<T>(values[i][j]));
          out[column[j] * n + row[i]] = out[at];
        }
    }
  }
}

template <typename T>
constexpr ToyActivatedTable<T> table() {
  return {kLanes<T>, &pass<T, false>, &pass<T, true>, &kernel<T>};
}

}  // namespace

extern const ToyActivatedTables CATAPULT_ISA_SYMBOL(toy_activated_simd) = {table<float>(),
                                                                           table<double>()};

}  // namespace catapult
