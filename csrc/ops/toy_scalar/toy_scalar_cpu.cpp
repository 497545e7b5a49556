#include <algorithm>
#include <limits>
#include <vector>

#include "core/denormals.hpp"
#include "core/dispatch.hpp"
#include "core/interrupt.hpp"
#include "core/parallel.hpp"
#include "ops/toy_scalar/toy_scalar.hpp"
#include "ops/toy_scalar/toy_scalar_config.hpp"
#include "ops/toy_scalar/toy_scalar_math.hpp"
#include "ops/toy_scalar/toy_scalar_simd.hpp"

namespace catapult {
namespace {

template <typename T>
ToyScalarNews advance(const ToyScalarLanes<T>& lanes, int64_t count, int64_t steps, bool look) {
  const ToyScalarSimd& table = CATAPULT_SELECT_ISA(toy_scalar_simd);
  if constexpr (sizeof(T) == 4) {
    return table.f32(lanes, count, steps, look);
  } else {
    return table.f64(lanes, count, steps, look);
  }
}

// A chunk of lanes: finished ones are written out and the rest closes ranks, so that they cost
// nothing from then on.
template <typename T>
class Chunk {
 public:
  Chunk(const ToyScalarArgs& args, int64_t capacity)
      : args_(args),
        momentum_(args.beta.data != nullptr),
        records_(args.record_a.size[1]),
        memory_(static_cast<size_t>(kArrays * capacity)),
        lane_(static_cast<size_t>(capacity)),
        peak_step_(static_cast<size_t>(capacity)) {
    T** const arrays[kArrays] = {&s_.h,  &s_.k,    &s_.b,    &s_.cut,  &s_.beta,   &s_.mh,
                                 &s_.mk, &s_.peak, &s_.rise, &s_.stop, &s_.settled};
    for (int i = 0; i < kArrays; ++i) *arrays[i] = memory_.data() + i * capacity;
  }

  void run(int64_t begin, int64_t end, Interrupts& interrupts) {
    load(begin, end);
    InterruptWatch watch(interrupts, static_cast<double>(kToyScalarSegment * (end - begin)));
    const bool look = args_.early_exit && !momentum_ && records_ == 0;
    ToyScalarLanes<T> lanes = s_;
    if (!momentum_) lanes.beta = nullptr;
    record(0);
    for (int64_t t = 0; t < args_.steps && active_ > 0;) {
      const int64_t length = segment_length(t);
      const ToyScalarNews news = advance<T>(lanes, active_, length, look);
      if (news.rises) note_rises(t);
      t += length;
      if (news.stops || (look && news.settles)) retire_finished(t, t - length, look);
      if (records_ > 0 && t % args_.record_every == 0) record(t / args_.record_every);
      watch.step();
    }
    while (active_ > 0) write_out(--active_, -1);
  }

 private:
  static constexpr int kArrays = 11;

  template <typename V>
  static V* data(const TensorView& view) {
    return view.as<V>();
  }

  int64_t segment_length(int64_t t) const {
    int64_t length = std::min(kToyScalarSegment, args_.steps - t);
    if (records_ > 0) length = std::min(length, args_.record_every - t % args_.record_every);
    return length;
  }

  void load(int64_t begin, int64_t end) {
    active_ = 0;
    for (int64_t lane = begin; lane < end; ++lane) {
      const int64_t j = active_;
      const T h = data<T>(args_.h)[lane], k = data<T>(args_.k)[lane], b = data<T>(args_.b)[lane];
      const T a = h * k - b;
      s_.h[j] = h;
      s_.k[j] = k;
      s_.b[j] = b;
      s_.beta[j] = momentum_ ? data<T>(args_.beta)[lane] : T(0);
      s_.mh[j] = s_.mk[j] = s_.settled[j] = T(0);
      s_.cut[j] = toy_scalar_cut(h, k, b);
      s_.peak[j] = a * a;
      lane_[j] = lane;
      peak_step_[j] = 0;
      if (s_.peak[j] <= s_.cut[j]) {
        ++active_;
      } else {
        s_.peak[j] = std::numeric_limits<T>::quiet_NaN();
        write_out(j, 0);
      }
    }
    fill_up();
  }

  // The lanes between the last running one and the end of its group of vectors stand still.
  void fill_up() {
    const int64_t end = toy_scalar_round_up(active_);
    for (int64_t j = active_; j < end; ++j)
      s_.h[j] = s_.k[j] = s_.b[j] = s_.beta[j] = s_.mh[j] = s_.mk[j] = s_.peak[j] = s_.cut[j] =
          T(0);
  }

  void note_rises(int64_t before) {
    for (int64_t j = 0; j < active_; ++j)
      if (s_.rise[j] > T(0)) peak_step_[j] = before + static_cast<int64_t>(s_.rise[j]);
  }

  void retire_finished(int64_t now, int64_t before, bool look) {
    for (int64_t j = active_ - 1; j >= 0; --j) {
      const bool stopped = s_.stop[j] > T(0), settled = look && s_.settled[j] > T(0);
      if (!stopped && !settled) continue;
      if (!stopped) s_.k[j] = toy_scalar_decay(s_.h[j], s_.k[j], s_.b[j], args_.steps - now);
      write_out(j, stopped ? before + static_cast<int64_t>(s_.stop[j]) : -1);
      move(--active_, j);
    }
    fill_up();
  }

  void move(int64_t from, int64_t to) {
    T* const arrays[] = {s_.h,  s_.k,    s_.b,    s_.cut,  s_.beta,   s_.mh,
                         s_.mk, s_.peak, s_.rise, s_.stop, s_.settled};
    for (T* array : arrays) array[to] = array[from];
    lane_[to] = lane_[from];
    peak_step_[to] = peak_step_[from];
  }

  void write_out(int64_t j, int64_t diverged_at) {
    const int64_t lane = lane_[j];
    data<T>(args_.h)[lane] = s_.h[j];
    data<T>(args_.k)[lane] = s_.k[j];
    data<T>(args_.peak)[lane] = s_.peak[j];
    data<int64_t>(args_.peak_step)[lane] = peak_step_[j];
    data<int64_t>(args_.diverged_at)[lane] = diverged_at;
    if (diverged_at < 0 || records_ == 0) return;
    const int64_t first = diverged_at == 0 ? 0 : (diverged_at - 1) / args_.record_every + 1;
    for (int64_t i = first; i < records_; ++i) record_lane(j, i);
  }

  void record_lane(int64_t j, int64_t i) {
    const T h = s_.h[j], k = s_.k[j];
    data<T>(args_.record_a)[lane_[j] * records_ + i] = h * k - s_.b[j];
    data<T>(args_.record_v)[lane_[j] * records_ + i] = h * h + k * k;
  }

  void record(int64_t i) {
    if (records_ == 0) return;
    for (int64_t j = 0; j < active_; ++j) record_lane(j, i);
  }

  const ToyScalarArgs& args_;
  bool momentum_;
  int64_t records_;
  int64_t active_ = 0;
  std::vector<T> memory_;
  std::vector<int64_t> lane_, peak_step_;
  ToyScalarLanes<T> s_{};
};

}  // namespace

void toy_scalar_cpu(const ToyScalarArgs& args, const Exec& exec) {
  const int64_t lanes = args.h.size[0];
  const int64_t size = toy_scalar_chunk(lanes, exec.threads);
  Interrupts interrupts;
  dispatch_float(args.h.dtype, "toy_scalar", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for((lanes + size - 1) / size, exec.threads, [&](int64_t i) {
      const FlushDenormals scope;
      Chunk<T> chunk(args, size);
      chunk.run(i * size, std::min(lanes, (i + 1) * size), interrupts);
    });
  });
}

}  // namespace catapult
