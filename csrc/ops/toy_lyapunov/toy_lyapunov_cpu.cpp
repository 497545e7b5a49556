#include <algorithm>
#include <vector>

#include "core/denormals.hpp"
#include "core/interrupt.hpp"
#include "core/parallel.hpp"
#include "ops/toy_lyapunov/toy_lyapunov.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_config.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_math.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_simd.hpp"

namespace catapult {
namespace {

constexpr double kLogTwo = 0.693147180559945309417;

// Cases [begin, end) on one vector of paths from `path` (counted from the first of the call) on.
class Chunk {
 public:
  Chunk(const ToyLyapunovArgs& args, const ToyLyapunovSimd& simd, int64_t begin, int64_t end)
      : args_(args),
        simd_(simd),
        begin_(begin),
        count_(end - begin),
        padded_((count_ + kToyLyapunovGroup - 1) / kToyLyapunovGroup * kToyLyapunovGroup),
        parameters_(static_cast<size_t>(3 * padded_)),
        state_(static_cast<size_t>(2 * padded_ * simd.lanes), 1.0),  // from rest: x = y
        exponent_(static_cast<size_t>(padded_ * simd.lanes)),
        start_(static_cast<size_t>(count_ * simd.lanes)),
        draws_(static_cast<size_t>(kToyLyapunovSegment * simd.lanes)) {
    const TensorView* inputs[] = {&args.mean, &args.deviation, &args.beta};
    for (int i = 0; i < 3; ++i)
      std::copy_n(inputs[i]->as<double>() + begin, count_, parameters_.data() + i * padded_);
  }

  void run(int64_t path, Interrupts& interrupts) {
    InterruptWatch watch(interrupts,
                         static_cast<double>(kToyLyapunovSegment * padded_ * simd_.lanes));
    double* const p = parameters_.data();
    const ToyLyapunovCases cases{padded_,         p,
                                 p + padded_,     p + 2 * padded_,
                                 state_.data(),   state_.data() + padded_ * simd_.lanes,
                                 exponent_.data()};
    if (args_.burn_in == 0) note_start();
    for (int64_t t = 0; t < args_.steps; t += kToyLyapunovSegment) {
      simd_.draw(draws_.data(), t / 2, args_.first_path + path, args_.seed, args_.noise);
      const int64_t end = std::min(args_.steps, t + kToyLyapunovSegment);
      const int64_t middle = std::clamp(args_.burn_in, t, end);
      simd_.advance(cases, draws_.data(), middle - t);
      if (middle > t && middle == args_.burn_in) note_start();
      simd_.advance(cases, draws_.data() + (middle - t) * simd_.lanes, end - middle);
      watch.step();
    }
    write_out(path);
  }

 private:
  double log_length(int64_t at) const {
    const double length = toy_lyapunov_log(state_[at], state_[padded_ * simd_.lanes + at]);
    return length + kLogTwo * static_cast<double>(exponent_[at]);
  }

  // The exponent restarts at zero, so that a long run loses no digit of the difference.
  void note_start() {
    std::fill(exponent_.begin(), exponent_.end(), 0);
    for (int64_t at = 0; at < count_ * simd_.lanes; ++at) start_[at] = log_length(at);
  }

  void write_out(int64_t path) const {
    const int64_t paths = args_.growth.size[1], live = std::min(simd_.lanes, paths - path);
    for (int64_t r = 0; r < count_; ++r)
      for (int64_t i = 0; i < live; ++i) {
        const int64_t at = r * simd_.lanes + i;
        const double end = log_length(at);
        args_.growth.as<double>()[(begin_ + r) * paths + path + i] =
            end == -INFINITY ? end : end - start_[at];
      }
  }

  const ToyLyapunovArgs& args_;
  const ToyLyapunovSimd& simd_;
  int64_t begin_, count_, padded_;
  std::vector<double> parameters_, state_;
  std::vector<int64_t> exponent_;
  std::vector<double> start_, draws_;
};

}  // namespace

void toy_lyapunov_cpu(const ToyLyapunovArgs& args, const Exec& exec) {
  const ToyLyapunovSimd& simd = CATAPULT_SELECT_ISA(toy_lyapunov_simd);
  const int64_t cases = args.growth.size[0], paths = args.growth.size[1];
  const int64_t chunks = (cases + kToyLyapunovChunk - 1) / kToyLyapunovChunk;
  const int64_t vectors = (paths + simd.lanes - 1) / simd.lanes;
  const double operations = 4.0 * static_cast<double>(cases * paths) *
                            static_cast<double>(std::max<int64_t>(args.steps, 1));
  Interrupts interrupts;
  parallel_for(chunks * vectors, threads_for(operations, exec.threads), [&](int64_t i) {
    const FlushDenormals scope;
    const int64_t begin = i % chunks * kToyLyapunovChunk;
    Chunk chunk(args, simd, begin, std::min(cases, begin + kToyLyapunovChunk));
    chunk.run(i / chunks * simd.lanes, interrupts);
  });
}

}  // namespace catapult
