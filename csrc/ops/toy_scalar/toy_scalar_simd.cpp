#include "ops/toy_scalar/toy_scalar_simd.hpp"

#include "core/simd.hpp"
#include "ops/toy_scalar/toy_scalar_config.hpp"
#include "ops/toy_scalar/toy_scalar_math.hpp"

namespace catapult {
namespace {

// Vectors advanced together: a step is a chain of two FMAs, so several must be in flight.
constexpr int kGroup = 4;
static_assert(kToyScalarGranule % (kGroup * kVectorBytes / 4) == 0, "a group exceeds the granule");

template <typename T>
using Mask = decltype(Vec<T>{} < Vec<T>{});

template <typename T>
CATAPULT_INLINE bool any(Mask<T> mask) {
  auto bits = mask[0];
  for (int i = 1; i < kLanes<T>; ++i) bits |= mask[i];
  return bits != 0;
}

template <typename T, bool kMomentum>
struct State {
  Vec<T> h, k, a, beta, mh, mk;

  CATAPULT_INLINE void load_from(const ToyScalarLanes<T>& lanes, int64_t at, Vec<T> b) {
    h = load(lanes.h + at);
    k = load(lanes.k + at);
    a = h * k - b;
    if (kMomentum) {
      beta = load(lanes.beta + at);
      mh = load(lanes.mh + at);
      mk = load(lanes.mk + at);
    }
  }

  CATAPULT_INLINE void store_to(const ToyScalarLanes<T>& lanes, int64_t at) const {
    store(lanes.h + at, h);
    store(lanes.k + at, k);
    if (kMomentum) {
      store(lanes.mh + at, mh);
      store(lanes.mk + at, mk);
    }
  }

  CATAPULT_INLINE void step(Vec<T> b) {
    if (kMomentum) {
      mh = beta * mh - a * k;
      mk = beta * mk - a * h;
      h += mh;
      k += mk;
    } else {
      const Vec<T> before = h;
      h -= a * k;
      k -= a * before;
    }
    a = h * k - b;
  }

  CATAPULT_INLINE void keep_where(Mask<T> mask, const State& other) {
    h = mask ? h : other.h;
    k = mask ? k : other.k;
    a = mask ? a : other.a;
    if (kMomentum) {
      mh = mask ? mh : other.mh;
      mk = mask ? mk : other.mk;
    }
  }
};

// The same segment again for a vector with a lane that diverges in it: that lane halts at the step
// before, and its step is noted. Costs one segment per such vector.
template <typename T, bool kMomentum>
void careful_segment(const ToyScalarLanes<T>& lanes, int64_t at, int64_t steps) {
  const Vec<T> b = load(lanes.b + at), cut = load(lanes.cut + at);
  State<T, kMomentum> state;
  state.load_from(lanes, at, b);
  Vec<T> peak = load(lanes.peak + at), rise{}, stop{}, now{};
  Mask<T> alive = cut == cut;
  for (int64_t t = 1; t <= steps; ++t) {
    now += splat(T(1));
    const State<T, kMomentum> before = state;
    state.step(b);
    const Vec<T> u = state.a * state.a;
    const Mask<T> fine = u <= cut;
    stop = (alive & ~fine) ? now : stop;
    alive &= fine;
    state.keep_where(alive, before);
    const Mask<T> up = alive & (u > peak);
    peak = up ? u : peak;
    rise = up ? now : rise;
  }
  state.store_to(lanes, at);
  store(lanes.peak + at, peak);
  store(lanes.rise + at, rise);
  store(lanes.stop + at, stop);
}

template <typename T, bool kMomentum>
CATAPULT_INLINE void run_group(const ToyScalarLanes<T>& lanes, int64_t start, int64_t steps,
                               bool look, ToyScalarNews& news) {
  State<T, kMomentum> state[kGroup];
  Vec<T> b[kGroup], peak[kGroup], rise[kGroup] = {}, now{};
  for (int g = 0; g < kGroup; ++g) {
    const int64_t at = start + g * kLanes<T>;
    b[g] = load(lanes.b + at);
    state[g].load_from(lanes, at, b[g]);
    peak[g] = load(lanes.peak + at);
  }
  const Vec<T> one = splat(T(1));
  for (int64_t t = 0; t < steps; ++t) {
    now += one;
    for (int g = 0; g < kGroup; ++g) {
      state[g].step(b[g]);
      const Vec<T> u = state[g].a * state[g].a;
      const Mask<T> up = u > peak[g];
      peak[g] = up ? u : peak[g];
      rise[g] = up ? now : rise[g];
    }
  }
  for (int g = 0; g < kGroup; ++g) {
    const int64_t at = start + g * kLanes<T>;
    const Vec<T> cut = load(lanes.cut + at), u = state[g].a * state[g].a;
    if (any<T>(~((peak[g] <= cut) & (u <= cut)))) {
      careful_segment<T, kMomentum>(lanes, at, steps);
      news.stops = news.rises = true;
      state[g].load_from(lanes, at, b[g]);
    } else {
      state[g].store_to(lanes, at);
      store(lanes.peak + at, peak[g]);
      store(lanes.rise + at, rise[g]);
      store(lanes.stop + at, Vec<T>{});
      news.rises |= any<T>(rise[g] > Vec<T>{});
    }
    if (look && !kMomentum) {
      const Vec<T> h = state[g].h, k = state[g].k, a = state[g].a, zero{};
      const Mask<T> still = (h - a * k == h) & (k - a * h == k);
      const Mask<T> shrinks =
          (b[g] == zero) & (k * k <= splat(kToyScalarStill<T>)) & (h * h < splat(T(2)));
      const Mask<T> done = still | shrinks;
      store(lanes.settled + at, done ? one : zero);
      news.settles |= any<T>(done);
    }
  }
}

template <typename T>
ToyScalarNews segment(const ToyScalarLanes<T>& lanes, int64_t count, int64_t steps, bool look) {
  ToyScalarNews news;
  constexpr int64_t kStride = kGroup * kLanes<T>;
  for (int64_t at = 0; at < count; at += kStride) {
    if (lanes.beta != nullptr) {
      run_group<T, true>(lanes, at, steps, look, news);
    } else {
      run_group<T, false>(lanes, at, steps, look, news);
    }
  }
  return news;
}

}  // namespace

const ToyScalarSimd CATAPULT_ISA_SYMBOL(toy_scalar_simd) = {segment<float>, segment<double>};

}  // namespace catapult
