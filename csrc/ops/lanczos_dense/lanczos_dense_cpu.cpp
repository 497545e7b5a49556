#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/lanczos_dense/lanczos_dense.hpp"
#include "ops/lanczos_dense/lanczos_dense_complement.hpp"
#include "ops/lanczos_dense/lanczos_dense_config.hpp"
#include "ops/lanczos_dense/lanczos_dense_math.hpp"
#include "ops/lanczos_dense/lanczos_dense_matrix.hpp"
#include "ops/lanczos_dense/lanczos_dense_ritz.hpp"
#include "ops/lanczos_step/lanczos_step.hpp"

namespace catapult {
namespace {

template <typename T>
TensorView view_of(T* data, std::initializer_list<int64_t> sizes) {
  return dense_view(data, DtypeOf<T>::value, sizes);
}

// The solve of one matrix. Runs of Lanczos steps with full reorthogonalisation find the k largest
// pairs; for k > 1 further runs, in the complement of the pairs found, look for what one start
// vector cannot see (further copies of an eigenvalue) until there is nothing above the k-th.
template <typename T>
class DenseSolver {
 public:
  DenseSolver(const LanczosDenseArgs& args, const LanczosDenseConfig& c, double* memory,
              int64_t replica, int threads)
      : args_(args),
        c_(c),
        replica_(replica),
        threads_(threads),
        n_(c.n),
        k_(c.k),
        matrix_(args.a.as<T>() + replica * n_ * n_, c, memory, threads),
        basis_(reinterpret_cast<T*>(memory + c.basis)),
        alpha_(reinterpret_cast<T*>(memory + c.alpha)),
        beta_(reinterpret_cast<T*>(memory + c.beta)),
        locked_(reinterpret_cast<T*>(memory + c.locked)),
        fresh_(reinterpret_cast<T*>(memory + c.fresh)),
        start_(reinterpret_cast<T*>(memory + c.start)),
        x_(memory + c.x),
        ritz_{memory + c.ritz, memory + c.last, memory + c.vectors, memory + c.work},
        small_(memory + c.small),
        step_(view_of(memory + c.step, {c.total - c.step})) {
    theta_.resize(k_);
    residual_.resize(k_);
  }

  void solve() {
    bool complete = false, have_start = given_start();
    while (!complete) {
      LanczosRun run{};
      run.verify = found_ == k_;
      run.want = run.verify ? 1 : k_ - found_;
      run.single = k_ == 1;
      run.threshold = run.verify ? smallest_found() : 0.0;
      run.tol = args_.tol;
      run.eps = std::numeric_limits<T>::epsilon();
      run.confirm = args_.confirm;
      run.next = run.want + (run.single ? 2 : 1);
      begin_run(have_start);
      have_start = false;
      if (finite_) iterate(run);
      if (!finite_) return fill_nan();
      complete = keep(run);
    }
    report();
  }

 private:
  const LanczosDenseArgs& args_;
  const LanczosDenseConfig& c_;
  const int64_t replica_;
  const int threads_;
  const int64_t n_, k_;
  SymmetricMatrix<T> matrix_;
  T *basis_, *alpha_, *beta_, *locked_, *fresh_, *start_;
  double* x_;  // scratch, shared with products
  RitzPairs ritz_;
  double* small_;
  TensorView step_;

  std::vector<double> theta_, residual_;  // of the pairs found
  int64_t found_ = 0;
  int64_t m_ = 0;                                             // steps of this run
  int64_t randoms_ = 0;                                       // start vectors drawn
  double norm_ = 0.0;                                         // of A, from below
  double beyond_ = -std::numeric_limits<double>::infinity();  // Ritz values not returned
  double bound_ = std::numeric_limits<double>::infinity();    // of the eigenvalues, if asked for
  bool finite_ = true, exact_ = false, restarted_ = false;

  T* row(int64_t i) { return basis_ + i * n_; }
  bool out_of_products() const { return matrix_.products() >= args_.maxiter; }
  double smallest_found() const { return *std::min_element(theta_.begin(), theta_.end()); }

  bool given_start() {
    if (args_.v0.data == nullptr) return false;
    const T* v0 = args_.v0.as<T>() + replica_ * n_;
    double squares = 0.0;
    for (int64_t i = 0; i < n_; ++i) squares += static_cast<double>(v0[i]) * v0[i];
    if (!(squares > 0.0) || !std::isfinite(squares)) return false;
    // A little noise: an exact eigenvector as start would never see the others.
    const double scale = 1.0 / std::sqrt(squares);
    const double noise = 0.01 / std::sqrt(static_cast<double>(n_));
    for (int64_t i = 0; i < n_; ++i)
      start_[i] = static_cast<T>(v0[i] * scale + noise * lanczos_random(args_.seed, -1, i));
    return true;
  }

  // Locked vectors, then a unit vector orthogonal to them.
  void begin_run(bool have_start) {
    std::copy(locked_, locked_ + found_ * n_, basis_);
    for (int64_t i = 0; i < found_; ++i) {
      alpha_[i] = static_cast<T>(theta_[i]);
      beta_[i] = T(0);
    }
    double* v = x_;
    for (;;) {
      if (!have_start) ++randoms_;
      for (int64_t i = 0; i < n_; ++i)
        v[i] = have_start ? start_[i] : lanczos_random(args_.seed, randoms_, i);
      const double before = normalise(v);
      for (int pass = 0; pass < 2; ++pass)
        for (int64_t j = 0; j < found_; ++j) {
          double dot = 0.0;
          for (int64_t i = 0; i < n_; ++i) dot += v[i] * row(j)[i];
          for (int64_t i = 0; i < n_; ++i) v[i] -= dot * row(j)[i];
        }
      const double left = before > 0.0 ? normalise(v) : 0.0;
      finite_ = std::isfinite(left);  // else a pair found before was not
      if (!finite_) return;
      if (left > 1e-6) break;
      have_start = false;
    }
    for (int64_t i = 0; i < n_; ++i) row(found_)[i] = static_cast<T>(v[i]);
    m_ = 0;
    exact_ = false;
  }

  double normalise(double* v) const {
    double squares = 0.0;
    for (int64_t i = 0; i < n_; ++i) squares += v[i] * v[i];
    const double length = std::sqrt(squares);
    if (length > 0.0)
      for (int64_t i = 0; i < n_; ++i) v[i] /= length;
    return length;
  }

  void step() {
    const int64_t at = found_ + m_;
    T* w = matrix_.multiply(row(at));
    LanczosStepArgs s;
    s.basis = view_of(basis_, {1, at + 2, n_});
    s.alpha = view_of(alpha_, {1, at + 1});
    s.beta = view_of(beta_, {1, at + 1});
    s.w = view_of(w, {1, n_});
    s.workspace = step_;
    s.step = at;
    s.rows = at + 1;
    s.breakdown = 10.0 * std::numeric_limits<T>::epsilon();
    lanczos_step(s, {-1, 0, threads_});
    ++m_;
    finite_ = std::isfinite(alpha_[at]) && std::isfinite(beta_[at]);
    exact_ = beta_[at] == T(0) || found_ + m_ == n_;
  }

  // Steps until the run has what it wants, or may not go on.
  void iterate(LanczosRun& run) {
    for (;;) {
      step();
      if (!finite_) return;
      const bool full = m_ == c_.room && !exact_;
      const bool out = out_of_products() && m_ >= run.want;
      if (!exact_ && !full && !out && (m_ < run.next || !promising(run))) continue;
      find_ritz_values();
      if (exact_ || lanczos_may_stop(run, ritz_.values, ritz_.residuals, m_, norm_) || out) {
        if (args_.squares > 0.0 && !restarted_) prove(run);
        return;
      }
      if (full) restart(run);
    }
  }

  // A bound from above, for which some steps more are cheaper than a factorisation of the matrix:
  // each takes a part off the Frobenius norm of what the basis leaves.
  void prove(const LanczosRun& run) {
    const double squares = matrix_.scaled_squares(args_.squares);
    int64_t more = std::max<int64_t>(2, n_ / 40);
    for (;; --more) {
      const LanczosComplement<T> complement{alpha_, beta_, m_, squares};
      const double value = ritz_.values[m_ - 1];
      bound_ = complement.bound(
          value, std::max(3.0 * run.tol * std::fabs(value), lanczos_floor(run, norm_)));
      const double hoped = complement.left() - static_cast<double>(more) * complement.gain(m_ - 1);
      const bool hopeless = value <= 0.0 || hoped > value * value;
      if (std::isfinite(bound_) || hopeless || more == 0 || exact_ || m_ == c_.room) return;
      if (out_of_products()) return;
      step();
      if (!finite_) return;
      find_ritz_values();
    }
  }

  // Whether a look at all Ritz values, at the price of several steps, may end the run: by the
  // largest one alone, and a gap that further steps only narrow. It delays a look by a quarter,
  // where the caller proves what it gets.
  bool promising(const LanczosRun& run) {
    if (run.confirm || run.seen < 2 || m_ > run.next + run.next / 4 + 2) return true;
    const double second = ritz_.values[run.seen - 2];
    const RitzTop top = ritz_.find_top(alpha_ + found_, beta_ + found_, m_);
    const double goal = std::max(run.tol * std::fabs(top.value), lanczos_floor(run, norm_));
    return !(lanczos_bound(top.last * beta_[found_ + m_ - 1], top.value - second) > goal);
  }

  void find_ritz_values() {
    const double remainder = exact_ ? 0.0 : static_cast<double>(beta_[found_ + m_ - 1]);
    ritz_.find_values(alpha_ + found_, beta_ + found_, m_, remainder);
    norm_ = std::max({norm_, std::fabs(ritz_.values[0]), std::fabs(ritz_.values[m_ - 1])});
  }

  // Ritz vectors of the `count` largest Ritz values into `fresh_`, unit length.
  void find_ritz_vectors(int64_t count) {
    ritz_.find_vectors(alpha_ + found_, beta_ + found_, count, norm_ > 0.0 ? norm_ : 1.0);
    for (int64_t p = 0; p < count; ++p) combine(ritz_.vectors + p * m_, fresh_ + p * n_);
  }

  // out = the unit vector along sum_i c_i q_i over this run's rows.
  void combine(const double* c, T* out) {
    matrix_.loops().combine(row(found_), n_, m_, c, n_, x_);
    normalise(x_);
    for (int64_t i = 0; i < n_; ++i) out[i] = static_cast<T>(x_[i]);
  }

  // Thick restart: the best Ritz vectors and the next Lanczos vector become the first rows, in an
  // order and a basis that keep the projected matrix tridiagonal.
  void restart(LanczosRun& run) {
    restarted_ = true;
    const int64_t p = c_.keep;
    double *g = small_, *theta = g + p * p, *s = theta + p, *alpha = s + p, *beta = alpha + p;
    double* mix = beta + p;  // (m)
    const double coupling = beta_[found_ + m_ - 1];
    ritz_.find_vectors(alpha_ + found_, beta_ + found_, p, norm_);
    for (int64_t i = 0; i < p; ++i) {
      theta[i] = ritz_.values[m_ - 1 - i];
      s[i] = coupling * ritz_.vectors[i * m_ + m_ - 1];
    }
    lanczos_compress(theta, s, p, norm_, g, alpha, beta);
    for (int64_t i = 0; i < p; ++i) {
      std::fill(mix, mix + m_, 0.0);
      for (int64_t q = 0; q < p; ++q)
        for (int64_t j = 0; j < m_; ++j) mix[j] += g[i * p + q] * ritz_.vectors[q * m_ + j];
      combine(mix, fresh_ + i * n_);
    }
    for (int64_t i = 0; i < p; ++i) {
      const int64_t to = found_ + p - 1 - i;
      std::copy(fresh_ + i * n_, fresh_ + (i + 1) * n_, row(to));
      alpha_[to] = static_cast<T>(alpha[i]);
      beta_[to] = static_cast<T>(beta[i]);
    }
    std::copy(row(found_ + m_), row(found_ + m_ + 1), row(found_ + p));
    m_ = p;
    run.seen = 0;
    run.next = p + 1 + (c_.room - p) / 8;
  }

  // Takes over the pairs a run has found; true when the solve is complete.
  bool keep(const LanczosRun& run) {
    int64_t count = std::min(run.want, m_);
    const double margin = 4.0 * run.eps * norm_;
    if (run.verify) count = ritz_.values[m_ - 1] > run.threshold + margin ? 1 : 0;
    for (int64_t i = 0; i < m_ - count; ++i)
      beyond_ = std::max(beyond_, ritz_.values[i] + ritz_.residuals[i]);
    find_ritz_vectors(count);
    for (int64_t p = 0; p < count; ++p) {
      int64_t to = found_;
      if (run.verify) {
        to = std::min_element(theta_.begin(), theta_.end()) - theta_.begin();
        beyond_ = std::max(beyond_, theta_[to] + residual_[to]);
      } else {
        ++found_;
      }
      theta_[to] = ritz_.values[m_ - 1 - p];
      residual_[to] = ritz_.residuals[m_ - 1 - p];
      std::copy(fresh_ + p * n_, fresh_ + (p + 1) * n_, locked_ + to * n_);
    }
    if (found_ < k_) return false;
    const bool nothing_left = found_ == n_ || (k_ == 1 && !run.verify) || out_of_products();
    return nothing_left || (run.verify && count == 0);
  }

  // Pairs of different runs, and of a run that went on from rounding, overlap by some eps.
  void orthogonalise_locked() {
    for (int64_t p = 1; p < k_; ++p) {
      T* const at = locked_ + p * n_;
      std::copy(at, at + n_, x_);
      for (int64_t q = 0; q < p; ++q) {
        const T* const other = locked_ + q * n_;
        double dot = 0.0;
        for (int64_t i = 0; i < n_; ++i) dot += x_[i] * other[i];
        for (int64_t i = 0; i < n_; ++i) x_[i] -= dot * other[i];
      }
      normalise(x_);
      for (int64_t i = 0; i < n_; ++i) at[i] = static_cast<T>(x_[i]);
    }
  }

  // Rayleigh quotients and residuals from a product in float64, sorted, with their bounds.
  void report() {
    orthogonalise_locked();
    double block = 0.0;
    for (int64_t p = 0; p < k_; ++p) {
      const T* x = locked_ + p * n_;
      const double* y = matrix_.multiply_wide(x);
      double xx = 0.0, xy = 0.0, squares = 0.0;
      for (int64_t i = 0; i < n_; ++i) {
        xx += static_cast<double>(x[i]) * x[i];
        xy += x[i] * y[i];
      }
      const double theta = xy / xx;
      for (int64_t i = 0; i < n_; ++i) squares += (y[i] - theta * x[i]) * (y[i] - theta * x[i]);
      theta_[p] = theta;
      residual_[p] = std::sqrt(squares / xx);
      block += squares / xx;
      norm_ = std::max(norm_, std::fabs(theta));
    }
    block = std::sqrt(block);
    const double rounding = lanczos_rounding(std::numeric_limits<T>::epsilon(), n_) * norm_;
    std::vector<int64_t> order(k_);
    for (int64_t p = 0; p < k_; ++p) order[p] = p;
    std::sort(order.begin(), order.end(), [&](int64_t p, int64_t q) {
      return theta_[p] != theta_[q] ? theta_[p] > theta_[q] : p < q;
    });
    T* values = args_.eigenvalues.as<T>() + replica_ * k_;
    T* errors = args_.errors.as<T>() + replica_ * k_;
    T* vectors = args_.eigenvectors.as<T>() + replica_ * k_ * n_;
    for (int64_t out = 0; out < k_; ++out) {
      const int64_t p = order[out];
      double gap = theta_[p] - beyond_;
      for (int64_t q = 0; q < k_; ++q)
        if (q != p) gap = std::min(gap, std::fabs(theta_[p] - theta_[q]) - residual_[q]);
      const double alone = lanczos_bound(residual_[p], gap);
      const double error = (gap > residual_[p] ? std::min(block, alone) : block) + rounding;
      values[out] = static_cast<T>(matrix_.unscaled(theta_[p]));
      errors[out] = static_cast<T>(matrix_.unscaled(error));
      if (args_.exact.data != nullptr) {
        double* exact = args_.exact.as<double>() + 4 * (replica_ * k_ + out);
        exact[0] = matrix_.unscaled(theta_[p]);
        exact[1] = matrix_.unscaled(residual_[p]);
        exact[2] = matrix_.unscaled(norm_);
        exact[3] = matrix_.unscaled(bound_);
      }
      std::copy(locked_ + p * n_, locked_ + (p + 1) * n_, vectors + out * n_);
    }
    args_.steps.as<int64_t>()[replica_] = matrix_.products();
  }

  void fill_nan() {
    constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
    const auto fill = [&](const TensorView& t, int64_t count) {
      std::fill_n(t.as<T>() + replica_ * count, count, kNan);
    };
    fill(args_.eigenvalues, k_);
    fill(args_.errors, k_);
    fill(args_.eigenvectors, k_ * n_);
    if (args_.exact.data != nullptr)
      std::fill_n(args_.exact.as<double>() + 4 * replica_ * k_, 4 * k_,
                  std::numeric_limits<double>::quiet_NaN());
    args_.steps.as<int64_t>()[replica_] = matrix_.products();
  }
};

}  // namespace

void lanczos_dense_cpu(const LanczosDenseArgs& args, const Exec& exec) {
  const int64_t replicas = args.a.size[0];
  dispatch_float(args.a.dtype, "lanczos_dense", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const LanczosDenseConfig config =
        lanczos_dense_config(args.a.size[1], args.eigenvalues.size[1], sizeof(T));
    double* memory = args.workspace.as<double>();
    if (replicas >= exec.threads || config.slabs == 1) {
      parallel_for(replicas, exec.threads, [&](int64_t r) {
        double* const mine = memory + piece_index(exec.threads) * config.total;
        DenseSolver<T>(args, config, mine, r, 1).solve();
      });
    } else {
      for (int64_t r = 0; r < replicas; ++r)
        DenseSolver<T>(args, config, memory, r, exec.threads).solve();
    }
  });
}

}  // namespace catapult
