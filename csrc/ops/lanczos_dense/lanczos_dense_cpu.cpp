// One thread as the team of a solve. Where matrices are few, other threads share the rows of its
// products and the columns of its steps.
#include <algorithm>
#include <initializer_list>
#include <limits>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/lanczos_dense/lanczos_dense_matrix.hpp"
#include "ops/lanczos_dense/lanczos_dense_solver.hpp"
#include "ops/lanczos_step/lanczos_step.hpp"

namespace catapult {
namespace {

template <typename T>
TensorView view_of(T* data, std::initializer_list<int64_t> sizes) {
  return dense_view(data, DtypeOf<T>::value, sizes);
}

// The Team of lanczos_dense_solver.hpp.
template <typename T>
class OneThread {
 public:
  static constexpr bool kProves = true;
  const LanczosDenseMemory<T> memory;

  OneThread(const T* a, const LanczosDenseConfig& c, double* start, int threads)
      : memory{c, start},
        n_(c.n),
        threads_(threads),
        matrix_(a, c, start, threads),
        wide_(start + c.x),
        step_(view_of(start + c.step, {c.total - c.step})) {}

  bool first() const { return true; }
  void sync() const {}

  template <typename F>
  void columns(F f) const {
    for (int64_t j = 0; j < n_; ++j) f(j);
  }

  template <typename F>
  double sum(F f) const {
    double total = 0.0;
    for (int64_t j = 0; j < n_; ++j) total += f(j);
    return total;
  }

  T* multiply(const T* x) { return matrix_.multiply(x); }
  const double* multiply_wide(const T* x) { return matrix_.multiply_wide(x); }
  int64_t products() const { return matrix_.products(); }
  double unscaled(double value) const { return matrix_.unscaled(value); }
  double scaled_squares(double squares) const { return matrix_.scaled_squares(squares); }

  LanczosDenseSquares orthogonal_row(const T* in, int64_t count) {
    double* const v = wide_;
    std::copy(in, in + n_, v);
    const double before = sum([&](int64_t j) { return v[j] * v[j]; });
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t i = 0; i < count; ++i) {
        const T* const row = memory.row(i);
        const double dot = sum([&](int64_t j) { return v[j] * row[j]; });
        for (int64_t j = 0; j < n_; ++j) v[j] -= dot * row[j];
      }
    T* const out = memory.row(count);
    for (int64_t j = 0; j < n_; ++j) out[j] = static_cast<T>(v[j]);
    return {before, sum([&](int64_t j) { return v[j] * v[j]; })};
  }

  LanczosDenseStep<T> step(T* w, int64_t at) {
    LanczosStepArgs s;
    s.basis = view_of(memory.row(0), {1, at + 2, n_});
    s.alpha = view_of(memory.alpha(), {1, at + 1});
    s.beta = view_of(memory.beta(), {1, at + 1});
    s.w = view_of(w, {1, n_});
    s.workspace = step_;
    s.step = at;
    s.rows = at + 1;
    s.breakdown = 10.0 * std::numeric_limits<T>::epsilon();
    lanczos_step(s, {-1, 0, threads_});
    return {memory.alpha()[at], memory.beta()[at]};
  }

  // What rounding takes from the length is given back.
  void combine(const double* c, int64_t count, const T* rows, T* out) {
    matrix_.loops().combine(rows, n_, count, c, n_, wide_);
    const double length = std::sqrt(sum([&](int64_t j) { return wide_[j] * wide_[j]; }));
    for (int64_t j = 0; j < n_; ++j) out[j] = static_cast<T>(wide_[j] / length);
  }

 private:
  const int64_t n_;
  const int threads_;
  SymmetricMatrix<T> matrix_;
  double* wide_;  // scratch, shared with products
  TensorView step_;
};

}  // namespace

void lanczos_dense_cpu(const LanczosDenseArgs& args, const Exec& exec) {
  const int64_t replicas = args.a.size[0];
  dispatch_float(args.a.dtype, "lanczos_dense", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const LanczosDenseConfig c =
        lanczos_dense_config(args.a.size[1], args.eigenvalues.size[1], sizeof(T));
    const auto problem = lanczos_dense_problem<T>(args, std::numeric_limits<T>::epsilon());
    const auto solve = [&](int64_t replica, double* memory, int threads) {
      OneThread<T> team(problem.a + replica * c.n * c.n, c, memory, threads);
      const RitzPairs ritz{memory + c.ritz, memory + c.last, memory + c.vectors, memory + c.work};
      LanczosDenseSolver<T, OneThread<T>>(problem, team, ritz, replica).solve();
    };
    double* const memory = args.workspace.as<double>();
    if (replicas >= exec.threads || c.slabs == 1) {
      parallel_for(replicas, exec.threads,
                   [&](int64_t r) { solve(r, memory + piece_index(exec.threads) * c.total, 1); });
    } else {
      for (int64_t r = 0; r < replicas; ++r) solve(r, memory, exec.threads);
    }
  });
}

}  // namespace catapult
