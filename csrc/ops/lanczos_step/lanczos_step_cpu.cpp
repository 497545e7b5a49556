#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/lanczos_step/lanczos_step.hpp"
#include "ops/lanczos_step/lanczos_step_config.hpp"
#include "ops/lanczos_step/lanczos_step_simd.hpp"

namespace catapult {
namespace {

// One replica's step. Classical Gram-Schmidt reads the basis once for the projections h, once to
// subtract them, and in that same read measures what is left of them; a third read subtracts the
// leftover, only where it exceeds a few eps (Daniel, Gragg, Kaufman, Stewart 1976: twice is
// enough).
template <typename T>
struct Replica {
  const LanczosStepLoops<T>& loops;
  const LanczosStepConfig& config;
  const T* basis;
  const T* w;
  T* next;
  T* alpha;
  T* beta;
  T* coefficients;
  double* h;     // rows projections, then w . w
  double* left;  // what the first pass left of them, then the squared norm of the remainder
  double* parts;
  int64_t n, rows, step;
  double breakdown;
  bool again = false;
  double scaling = 1.0;  // of w

  int64_t width(int64_t chunk) const { return std::min(config.chunk, n - chunk * config.chunk); }

  double* part(int64_t chunk) {
    double* p = parts + chunk * (rows + 1);
    std::fill(p, p + rows + 1, 0.0);
    return p;
  }

  void project(int64_t chunk) {
    const int64_t at = chunk * config.chunk;
    loops.project(basis + at, n, rows, w + at, width(chunk), part(chunk));
  }

  void subtract(int64_t chunk) {
    const int64_t at = chunk * config.chunk;
    loops.subtract(basis + at, n, rows, h, w + at, next + at, width(chunk), true, part(chunk));
  }

  void subtract_left(int64_t chunk) {
    const int64_t at = chunk * config.chunk;
    loops.subtract(basis + at, n, rows, left, next + at, next + at, width(chunk), false,
                   part(chunk));
  }

  void sum_parts(double* total) const {
    std::copy(parts, parts + rows + 1, total);
    for (int64_t chunk = 1; chunk < config.chunks; ++chunk)
      for (int64_t i = 0; i <= rows; ++i) total[i] += parts[chunk * (rows + 1) + i];
  }

  void decide() {
    sum_parts(left);
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) sum += left[i] * left[i];
    constexpr double kEnough = 4.0 * std::numeric_limits<T>::epsilon();
    again = sum > kEnough * kEnough * left[rows];
  }

  // After the projections: w of a magnitude whose square is not exact is used scaled, in `next`.
  bool rescales() {
    if (sizeof(T) == sizeof(float) || scaling != 1.0) return false;
    const double squared = h[rows];
    if (squared > kLanczosStepTiny && squared < kLanczosStepHuge) return false;
    scaling = squared < 1.0 ? kLanczosStepUp : kLanczosStepDown;
    for (int64_t j = 0; j < n; ++j) next[j] = static_cast<T>(w[j] * scaling);
    w = next;
    return true;
  }

  // Writes alpha and beta; returns the factor that normalises the remainder, 0 on breakdown.
  double finish() {
    double squared = left[rows];
    if (again) {
      squared = 0.0;
      for (int64_t chunk = 0; chunk < config.chunks; ++chunk)
        squared += parts[chunk * (rows + 1) + rows];
    }
    alpha[step] = static_cast<T>((h[step] + left[step]) / scaling);
    if (coefficients != nullptr)
      for (int64_t i = 0; i < rows; ++i)
        coefficients[i] = static_cast<T>((h[i] + left[i]) / scaling);
    double norm = std::sqrt(h[rows]) / scaling;  // of A: the largest entry of what is known of it
    for (int64_t i = 0; i <= step; ++i) norm = std::max<double>(norm, std::fabs(alpha[i]));
    for (int64_t i = 0; i < step; ++i) norm = std::max<double>(norm, std::fabs(beta[i]));
    const double length = std::sqrt(squared);
    const bool broke_down = length <= breakdown * norm * scaling;
    beta[step] = broke_down ? T(0) : static_cast<T>(length / scaling);
    return broke_down ? 0.0 : 1.0 / length;
  }

  void normalise(int64_t chunk, double factor) {
    T* out = next + chunk * config.chunk;
    if (factor == 0.0) {
      std::fill(out, out + width(chunk), T(0));
    } else {
      loops.scale(out, width(chunk), factor);
    }
  }

  void run() {
    for (int64_t c = 0; c < config.chunks; ++c) project(c);
    sum_parts(h);
    if (rescales()) {
      for (int64_t c = 0; c < config.chunks; ++c) project(c);
      sum_parts(h);
    }
    for (int64_t c = 0; c < config.chunks; ++c) subtract(c);
    decide();
    if (again)
      for (int64_t c = 0; c < config.chunks; ++c) subtract_left(c);
    const double factor = finish();
    for (int64_t c = 0; c < config.chunks; ++c) normalise(c, factor);
  }
};

template <typename T>
Replica<T> replica_of(const LanczosStepArgs& a, const LanczosStepConfig& config, int64_t r) {
  const int64_t n = a.basis.size[2], vectors = a.basis.size[1], rows = a.rows;
  T* basis = a.basis.as<T>() + r * vectors * n;
  double* work = a.workspace.as<double>() + r * config.per_replica;
  return {CATAPULT_SELECT_ISA(lanczos_step_simd).template loops<T>(),
          config,
          basis,
          a.w.as<T>() + r * n,
          basis + rows * n,
          a.alpha.as<T>() + r * a.alpha.size[1],
          a.beta.as<T>() + r * a.beta.size[1],
          a.coefficients.data != nullptr ? a.coefficients.as<T>() + r * rows : nullptr,
          work,
          work + (rows + 1),
          work + 2 * (rows + 1),
          n,
          rows,
          a.step,
          a.breakdown};
}

// Few long vectors: threads share each replica's chunks, in the same order of sums as run().
template <typename T>
void run_shared(Replica<T> replica, int threads) {
  const int64_t chunks = replica.config.chunks;
  parallel_for(chunks, threads, [&](int64_t c) { replica.project(c); });
  replica.sum_parts(replica.h);
  if (replica.rescales()) {
    parallel_for(chunks, threads, [&](int64_t c) { replica.project(c); });
    replica.sum_parts(replica.h);
  }
  parallel_for(chunks, threads, [&](int64_t c) { replica.subtract(c); });
  replica.decide();
  if (replica.again) parallel_for(chunks, threads, [&](int64_t c) { replica.subtract_left(c); });
  const double factor = replica.finish();
  parallel_for(chunks, threads, [&](int64_t c) { replica.normalise(c, factor); });
}

}  // namespace

void lanczos_step_cpu(const LanczosStepArgs& args, const Exec& exec) {
  const int64_t replicas = args.basis.size[0];
  const LanczosStepConfig config = lanczos_step_config(args.basis.size[2], args.rows);
  dispatch_float(args.basis.dtype, "lanczos_step", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (replicas >= exec.threads || config.chunks == 1) {
      parallel_for(replicas, exec.threads,
                   [&](int64_t r) { replica_of<T>(args, config, r).run(); });
    } else {
      for (int64_t r = 0; r < replicas; ++r)
        run_shared(replica_of<T>(args, config, r), exec.threads);
    }
  });
}

}  // namespace catapult
