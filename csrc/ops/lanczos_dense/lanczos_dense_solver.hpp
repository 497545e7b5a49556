// The algorithm of lanczos_dense, once: the solve of one matrix by a team, which is one thread of
// the CPU or the blocks of a GPU that share the columns of every vector. All threads of a team run
// the same code; decisions are the first thread's, which leaves them in the team's control words.
//
// A Team has
//   memory                          the LanczosDenseMemory of this solve
//   first()                         true on the thread that decides
//   sync()                          a barrier: what any thread wrote is seen by all
//   columns(f)                      f(j) for every column j, always by the same thread
//   sum(f)                          the sum of f(j) over the columns, on every thread
//   multiply(x), multiply_wide(x)   A x scaled to order one, with sums in T or in float64
//   products(), unscaled(value)     products so far; a number of the scaled matrix taken back
//   orthogonal_row(in, count)       row(count) = `in` made orthogonal to the rows before it
//   step(w, at)                     alpha, beta and row(at + 1) from w = A row(at)
//   combine(c, count, rows, out)    out = sum_i c_i rows_i, c of unit length and rows orthonormal
//   kProves                         true where the caller may ask for a bound from above
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/lanczos_dense/lanczos_dense_complement.hpp"
#include "ops/lanczos_dense/lanczos_dense_math.hpp"
#include "ops/lanczos_dense/lanczos_dense_problem.hpp"
#include "ops/lanczos_dense/lanczos_dense_ritz.hpp"

namespace catapult {

// Runs of Lanczos steps with full reorthogonalisation find the k largest pairs; for k > 1 further
// runs, in the complement of the pairs found, look for what one start vector cannot see (further
// copies of an eigenvalue) until there is nothing above the k-th.
template <typename T, typename Team>
class LanczosDenseSolver {
 public:
  CATAPULT_TEAM LanczosDenseSolver(const LanczosDenseProblem<T>& problem, Team& team,
                                   const RitzPairs& ritz, int64_t replica)
      : p_(problem),
        team_(team),
        memory_(team.memory),
        n_(memory_.at.n),
        k_(memory_.at.k),
        replica_(replica),
        ritz_(ritz) {}

  CATAPULT_TEAM void solve() {
    bool have_start = p_.v0 != nullptr;
    for (bool done = false; !done;) {
      LanczosRun run{};
      run.verify = found_ == k_;
      run.want = run.verify ? 1 : k_ - found_;
      run.single = k_ == 1;
      run.threshold = run.verify ? memory_.theta()[smallest()] : 0.0;
      run.tol = p_.tol;
      run.eps = p_.eps;
      run.confirm = p_.confirm;
      run.next = run.want + (run.single ? 2 : 1);
      begin_run(have_start);
      have_start = false;
      if (finite_) iterate(run);
      if (!finite_) return fill_nan();
      done = keep(run);
    }
    report();
  }

 private:
  // The control words, behind which the places of the pairs follow.
  enum Control { kStop, kNext, kCount, kFound, kDone, kPlaces };

  const LanczosDenseProblem<T>& p_;
  Team& team_;
  const LanczosDenseMemory<T> memory_;
  const int64_t n_, k_, replica_;
  int64_t found_ = 0;    // pairs
  int64_t m_ = 0;        // steps of this run
  int64_t randoms_ = 0;  // start vectors drawn
  bool finite_ = true, exact_ = false, restarted_ = false;
  // The first thread's:
  RitzPairs ritz_;
  double norm_ = 0.0;          // of A, from below
  double beyond_ = -HUGE_VAL;  // Ritz values not returned
  double bound_ = HUGE_VAL;    // of the eigenvalues, if asked for

  CATAPULT_TEAM T* row(int64_t i) const { return memory_.row(i); }
  CATAPULT_TEAM T* alpha() const { return memory_.alpha() + found_; }  // of this run
  CATAPULT_TEAM T* beta() const { return memory_.beta() + found_; }
  CATAPULT_TEAM bool out_of_products() const { return team_.products() >= p_.maxiter; }

  CATAPULT_TEAM int64_t smallest() const {
    const double* const theta = memory_.theta();
    int64_t least = 0;
    for (int64_t i = 1; i < k_; ++i) least = theta[i] < theta[least] ? i : least;
    return least;
  }

  // Locked vectors, then a unit vector orthogonal to them.
  CATAPULT_TEAM_CALL void begin_run(bool have_start) {
    for (int64_t i = 0; i < found_; ++i) {
      T *const to = row(i), *const from = memory_.locked(i);
      team_.columns([&](int64_t j) { to[j] = from[j]; });
      if (!team_.first()) continue;
      memory_.alpha()[i] = static_cast<T>(memory_.theta()[i]);
      memory_.beta()[i] = T(0);
    }
    const T* const v0 = p_.v0 + (have_start ? replica_ * n_ : 0);
    double given = 0.0;
    if (have_start) {
      const double squares = dot(v0, v0);
      given = squares > 0.0 && std::isfinite(squares) ? 1.0 / sqrt(squares) : 0.0;
    }
    T* const w = memory_.items(memory_.at.w);
    for (;;) {
      if (given == 0.0) ++randoms_;
      // A little noise: an exact eigenvector as start would never see the others.
      const double noise = given == 0.0 ? 1.0 : 0.01 / sqrt(static_cast<double>(n_));
      const int64_t stream = given == 0.0 ? randoms_ : -1;
      team_.columns([&](int64_t j) {
        const double start = given == 0.0 ? 0.0 : given * static_cast<double>(v0[j]);
        w[j] = static_cast<T>(start + noise * lanczos_random(p_.seed, stream, j));
      });
      const LanczosDenseSquares squares = team_.orthogonal_row(w, found_);
      given = 0.0;
      finite_ = std::isfinite(squares.left);  // else a pair found before was not
      if (!finite_) return;
      if (!(squares.left > 1e-12 * squares.before)) continue;
      T* const to = row(found_);
      const double length = sqrt(squares.left);
      team_.columns([&](int64_t j) { to[j] = static_cast<T>(to[j] / length); });
      break;
    }
    m_ = 0;
    exact_ = false;
  }

  CATAPULT_TEAM_CALL void step() {
    const int64_t at = found_ + m_;
    const LanczosDenseStep<T> s = team_.step(team_.multiply(row(at)), at);
    ++m_;
    finite_ = std::isfinite(s.alpha) && std::isfinite(s.beta);
    exact_ = s.beta == T(0) || found_ + m_ == n_;
  }

  // Steps until the run has what it wants, or may not go on.
  CATAPULT_TEAM_CALL void iterate(LanczosRun& run) {
    for (;;) {
      step();
      if (!finite_) return;
      const bool full = m_ == memory_.at.room && !exact_;
      const bool out = out_of_products() && m_ >= run.want;
      if (!exact_ && !full && !out && (m_ < run.next || !promising(run))) continue;
      if (team_.first()) look(run, full, out);
      team_.sync();
      if (memory_.control()[kStop]) break;
      run.next = memory_.control()[kNext];
      if (full) restart(run);
    }
    if constexpr (Team::kProves)
      if (p_.squares > 0.0 && !restarted_) prove(run);
  }

  // Whether a look at all Ritz values, at the price of several steps, may end the run: by the
  // largest one alone, and a gap that further steps only narrow. It delays a look by a quarter,
  // where the caller proves what it gets.
  CATAPULT_TEAM bool promising(const LanczosRun& run) {
    if constexpr (Team::kProves) {
      if (run.confirm || run.seen < 2 || m_ > run.next + run.next / 4 + 2) return true;
      const double second = ritz_.values[run.seen - 2];
      const RitzTop top = ritz_.find_top(alpha(), beta(), m_);
      const double goal = lanczos_max(run.tol * fabs(top.value), lanczos_floor(run, norm_));
      return !(lanczos_bound(top.last * beta()[m_ - 1], top.value - second) > goal);
    }
    return true;
  }

  // The first thread's: may the run stop?
  CATAPULT_TEAM_CALL void look(LanczosRun& run, bool full, bool out) {
    find_ritz_values();
    const bool stop =
        exact_ || lanczos_may_stop(run, ritz_.values, ritz_.residuals, m_, norm_) || out;
    if (!stop && full) prepare_restart();
    memory_.control()[kStop] = stop;
    memory_.control()[kNext] = run.next;
  }

  CATAPULT_TEAM void find_ritz_values() {
    ritz_.find_values(alpha(), beta(), m_, exact_ ? 0.0 : static_cast<double>(beta()[m_ - 1]));
    norm_ = lanczos_max(norm_, lanczos_max(fabs(ritz_.values[0]), fabs(ritz_.values[m_ - 1])));
  }

  // The first thread's: the Ritz vectors in terms of this run's rows, into vectors.
  CATAPULT_TEAM_CALL void find_ritz_vectors(int64_t count) {
    ritz_.find_vectors(alpha(), beta(), count, norm_ > 0.0 ? norm_ : 1.0);
  }

  // A bound from above, for which some steps more are cheaper than a factorisation of the matrix:
  // each takes a part off the Frobenius norm of what the basis leaves.
  CATAPULT_TEAM void prove(const LanczosRun& run) {
    const double squares = team_.scaled_squares(p_.squares);
    int64_t more = n_ / 40 > 2 ? n_ / 40 : 2;
    for (;; --more) {
      const LanczosComplement<T> complement{memory_.alpha(), memory_.beta(), m_, squares};
      const double value = ritz_.values[m_ - 1];
      bound_ = complement.bound(
          value, lanczos_max(3.0 * run.tol * fabs(value), lanczos_floor(run, norm_)));
      const double hoped = complement.left() - static_cast<double>(more) * complement.gain(m_ - 1);
      const bool hopeless = value <= 0.0 || hoped > value * value;
      if (std::isfinite(bound_) || hopeless || more == 0 || exact_ || m_ == memory_.at.room) return;
      if (out_of_products()) return;
      step();
      if (!finite_) return;
      find_ritz_values();
    }
  }

  // The first thread's part of a thick restart: the best Ritz vectors, in an order and a basis that
  // keep the projected matrix tridiagonal, in terms of this run's rows.
  CATAPULT_TEAM_CALL void prepare_restart() {
    const int64_t p = memory_.at.keep;
    double *g = memory_.start + memory_.at.small, *values = g + p * p, *s = values + p;
    double *diagonal = s + p, *side = diagonal + p;
    const double coupling = beta()[m_ - 1];
    find_ritz_vectors(p);
    for (int64_t i = 0; i < p; ++i) {
      values[i] = ritz_.values[m_ - 1 - i];
      s[i] = coupling * ritz_.vectors[i * m_ + m_ - 1];
    }
    lanczos_compress(values, s, p, norm_, g, diagonal, side);
    for (int64_t i = 0; i < p; ++i) {
      const int64_t to = p - 1 - i;
      double* const mix = memory_.start + memory_.at.mixes + to * m_;
      for (int64_t j = 0; j < m_; ++j) mix[j] = g[i * p] * ritz_.vectors[j];
      for (int64_t q = 1; q < p; ++q)
        for (int64_t j = 0; j < m_; ++j) mix[j] += g[i * p + q] * ritz_.vectors[q * m_ + j];
      alpha()[to] = static_cast<T>(diagonal[i]);
      beta()[to] = static_cast<T>(side[i]);
    }
  }

  // The rows that a restart keeps, and behind them the next Lanczos vector.
  CATAPULT_TEAM_CALL void restart(LanczosRun& run) {
    const int64_t p = memory_.at.keep;
    const double* const mixes = memory_.start + memory_.at.mixes;
    for (int64_t i = 0; i < p; ++i)
      team_.combine(mixes + i * m_, m_, row(found_), memory_.fresh(i));
    for (int64_t i = 0; i <= p; ++i) {
      T* const to = row(found_ + i);
      const T* const from = i < p ? memory_.fresh(i) : row(found_ + m_);
      team_.columns([&](int64_t j) { to[j] = from[j]; });
    }
    m_ = p;
    restarted_ = true;
    run.seen = 0;
    run.next = p + 1 + (memory_.at.room - p) / 8;
  }

  // Takes over the pairs a run has found; true when the solve is complete.
  CATAPULT_TEAM_CALL bool keep(const LanczosRun& run) {
    const int64_t* const words = memory_.control();
    if (team_.first()) choose(run);
    team_.sync();
    for (int64_t i = 0; i < words[kCount]; ++i)
      team_.combine(memory_.start + memory_.at.vectors + i * m_, m_, row(found_),
                    memory_.locked(words[kPlaces + i]));
    found_ = words[kFound];
    return words[kDone] != 0;
  }

  // The first thread's part: which pairs, and where they go.
  CATAPULT_TEAM_CALL void choose(const LanczosRun& run) {
    int64_t* const words = memory_.control();
    double *const theta = memory_.theta(), *const residual = memory_.residual();
    int64_t count = run.want < m_ ? run.want : m_, found = found_;
    if (run.verify) count = ritz_.values[m_ - 1] > run.threshold + 4.0 * run.eps * norm_ ? 1 : 0;
    for (int64_t i = 0; i < m_ - count; ++i)
      beyond_ = lanczos_max(beyond_, ritz_.values[i] + ritz_.residuals[i]);
    find_ritz_vectors(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = run.verify ? smallest() : found++;
      if (run.verify) beyond_ = lanczos_max(beyond_, theta[to] + residual[to]);
      theta[to] = ritz_.values[m_ - 1 - i];
      residual[to] = ritz_.residuals[m_ - 1 - i];
      words[kPlaces + i] = to;
    }
    const bool nothing_left = found == n_ || (k_ == 1 && !run.verify) || out_of_products();
    words[kCount] = count;
    words[kFound] = found;
    words[kDone] = found == k_ && (nothing_left || (run.verify && count == 0));
  }

  template <typename V>
  CATAPULT_TEAM_CALL double dot(const T* x, const V* y) {
    return team_.sum(
        [&](int64_t j) { return static_cast<double>(x[j]) * static_cast<double>(y[j]); });
  }

  // Pairs of different runs, and of a run that went on from rounding, overlap by some eps.
  CATAPULT_TEAM_CALL void orthogonalise_locked() {
    double* const w = memory_.start + memory_.at.w;
    for (int64_t i = 0; i < k_; ++i) {
      T* const x = memory_.locked(i);
      team_.columns([&](int64_t j) { w[j] = x[j]; });
      for (int64_t q = 0; q < i; ++q) {
        const T* const other = memory_.locked(q);
        const double overlap = dot(other, w);
        team_.columns([&](int64_t j) { w[j] -= overlap * other[j]; });
      }
      const double length = sqrt(team_.sum([&](int64_t j) { return w[j] * w[j]; }));
      team_.columns([&](int64_t j) { x[j] = static_cast<T>(w[j] / length); });
    }
  }

  // Rayleigh quotient and residual of pair i from a product in float64. Returns the squared
  // residual.
  CATAPULT_TEAM_CALL double measure(int64_t i) {
    const T* const x = memory_.locked(i);
    const double* const y = team_.multiply_wide(x);
    const double xx = dot(x, x), value = dot(x, y) / xx;
    const double squares = team_.sum([&](int64_t j) {
      const double rest = y[j] - value * x[j];
      return rest * rest;
    });
    if (team_.first()) {
      memory_.theta()[i] = value;
      memory_.residual()[i] = sqrt(squares / xx);
      norm_ = lanczos_max(norm_, fabs(value));
    }
    return squares / xx;
  }

  // Rayleigh quotients and residuals from a product in float64, sorted, with their bounds.
  CATAPULT_TEAM_CALL void report() {
    orthogonalise_locked();
    double block = 0.0;
    for (int64_t i = 0; i < k_; ++i) block += measure(i);
    if (team_.first()) write_pairs(sqrt(block));
    team_.sync();
    for (int64_t i = 0; i < k_; ++i) {
      T* const out = p_.eigenvectors + (replica_ * k_ + memory_.control()[kPlaces + i]) * n_;
      const T* const x = memory_.locked(i);
      team_.columns([&](int64_t j) { out[j] = x[j]; });
    }
    team_.sync();  // control words may be written again
  }

  CATAPULT_TEAM_CALL void write_pairs(double block) {
    const double *const theta = memory_.theta(), *const residual = memory_.residual();
    const double rounding = lanczos_rounding(p_.eps, n_) * norm_;
    for (int64_t i = 0; i < k_; ++i) {
      const double value = theta[i], r = residual[i];
      double gap = value - beyond_;
      int64_t place = 0;
      for (int64_t q = 0; q < k_; ++q) {
        if (q == i) continue;
        const double apart = fabs(value - theta[q]) - residual[q];
        gap = apart < gap ? apart : gap;
        place += theta[q] > value || (theta[q] == value && q < i);
      }
      const double alone = lanczos_bound(r, gap);
      const double error = (gap > r && alone < block ? alone : block) + rounding;
      const int64_t at = replica_ * k_ + place;
      p_.eigenvalues[at] = static_cast<T>(team_.unscaled(value));
      p_.errors[at] = static_cast<T>(team_.unscaled(error));
      memory_.control()[kPlaces + i] = place;
      if constexpr (Team::kProves) write_exact(at, value, r);
    }
    p_.steps[replica_] = team_.products();
  }

  CATAPULT_TEAM void write_exact(int64_t at, double value, double r) const {
    if (p_.exact == nullptr) return;
    const double numbers[] = {value, r, norm_, bound_};
    for (int i = 0; i < 4; ++i) p_.exact[4 * at + i] = team_.unscaled(numbers[i]);
  }

  CATAPULT_TEAM_CALL void fill_nan() {
    const T nan = static_cast<T>(NAN);
    for (int64_t i = 0; i < k_; ++i) {
      const int64_t at = replica_ * k_ + i;
      T* const out = p_.eigenvectors + at * n_;
      team_.columns([&](int64_t j) { out[j] = nan; });
      if (!team_.first()) continue;
      p_.eigenvalues[at] = p_.errors[at] = nan;
      for (int q = 0; Team::kProves && p_.exact != nullptr && q < 4; ++q)
        p_.exact[4 * at + q] = NAN;
    }
    if (team_.first()) p_.steps[replica_] = team_.products();
  }
};

}  // namespace catapult
