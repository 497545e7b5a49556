// The decisions of one solve, shared by CPU and CUDA: start vectors, when a run of Lanczos steps
// may stop, and the error bounds.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"

namespace catapult {

// Entry `index` of random vector `vector`, uniform in (-1, 1) (splitmix64). It does not depend on
// the replica, so that a batch may be split without changing a result.
CATAPULT_HOST_DEVICE inline double lanczos_random(int64_t seed, int64_t vector, int64_t index) {
  uint64_t z = static_cast<uint64_t>(seed) * 0x9E3779B97F4A7C15ull +
               static_cast<uint64_t>(vector) * 0xD1342543DE82EF95ull +
               static_cast<uint64_t>(index + 1) * 0x2545F4914F6CDD1Dull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return (static_cast<double>(z >> 11) + 0.5) * (2.0 / 9007199254740992.0) - 1.0;
}

// The square root of a power of two that brings a float64 matrix to order one: squares of its
// products would over- or underflow at the ends of the range. float32 is squared in float64.
template <typename T>
CATAPULT_HOST_DEVICE double lanczos_half_scale(double size) {
  if (sizeof(T) < 8 || !(size > 0.0) || size > 1.7976931348623157e308) return 1.0;
  return ldexp(1.0, -ilogb(size) / 2);
}

// One run: Lanczos steps in the orthogonal complement of the pairs found so far.
struct LanczosRun {
  int64_t want;  // Ritz pairs that must converge
  bool verify;   // k pairs are known: is there anything above the smallest, `threshold`?
  bool single;   // k = 1: the quadratic bound decides
  double threshold;
  double tol;
  double eps;           // of the dtype of the matrix
  bool confirm = true;  // some steps more after the first success
  int64_t next = 1;     // steps at the next look
  int64_t first = 0;    // steps at which the goal was first met
  int64_t seen = 0;     // steps and worst ratio at the last look
  double ratio = 0.0;
};

CATAPULT_HOST_DEVICE inline double lanczos_max(double a, double b) { return a > b ? a : b; }

// Least error worth asking for: a few roundings of the dtype.
CATAPULT_HOST_DEVICE inline double lanczos_floor(const LanczosRun& run, double norm) {
  return 4.0 * run.eps * norm;
}

// min(r, 2 r^2 / gap), the gap from the other Ritz values plus their own residuals. The bound
// proper is r^2 / gap; the factor covers a neighbour that is still on its way up.
CATAPULT_HOST_DEVICE inline double lanczos_bound(double r, double gap) {
  return gap > 2.0 * r ? 2.0 * r * r / gap : r;
}

// Worst error over goal of the wanted pairs; at most 1 when the run has what it wants.
// ritz (m) ascending, residual (m).
CATAPULT_HOST_DEVICE inline double lanczos_ratio(const LanczosRun& run, const double* ritz,
                                                 const double* residual, int64_t m, double norm) {
  if (m < run.want) return HUGE_VAL;
  double worst = 0.0;
  for (int64_t i = m - run.want; i < m; ++i) {
    double goal = lanczos_max(run.tol * fabs(ritz[i]), lanczos_floor(run, norm));
    double error = residual[i];
    if (run.single) {
      double others = -HUGE_VAL;
      for (int64_t j = 0; j < m - 1; ++j) others = lanczos_max(others, ritz[j] + residual[j]);
      error = m > 1 ? lanczos_bound(error, ritz[i] - others) : error;
    } else if (run.verify) {
      goal = lanczos_max(goal, 0.1 * (run.threshold - ritz[i]));
    }
    // Where norm is zero so is every error.
    worst = lanczos_max(worst, error > 0.0 ? error / goal : 0.0);
  }
  return worst;
}

// Look at the Ritz values after m steps: true when the run may stop. Some steps more confirm the
// first success, as a cluster looks like one eigenvalue until the basis resolves it. Otherwise
// run.next says when the next look is worth its price.
CATAPULT_HOST_DEVICE inline bool lanczos_may_stop(LanczosRun& run, const double* ritz,
                                                  const double* residual, int64_t m, double norm) {
  const double ratio = lanczos_ratio(run, ritz, residual, m, norm);
  const int64_t before = run.seen;
  const double last = run.ratio;
  run.seen = m;
  run.ratio = ratio;
  if (ratio <= 1.0) {
    if (run.first == 0) run.first = m;
    const int64_t more = run.first / 4 > 2 ? run.first / 4 : 2;
    const int64_t confirmed = run.first + (run.confirm ? more : 0);
    run.next = confirmed;
    return m >= confirmed;
  }
  run.first = 0;
  double wait = 1.0 + static_cast<double>(m) / 8.0;
  if (before > 0 && ratio < last && last < HUGE_VAL) {
    const double rate = (log(last) - log(ratio)) / static_cast<double>(m - before);
    const double needed = 0.8 * log(ratio) / rate;
    wait = needed < wait ? needed : wait;
  }
  run.next = m + (wait < 1.0 ? 1 : static_cast<int64_t>(wait));
  return false;
}

// Thick restart. The kept Ritz values theta (p), each coupled to the next Lanczos vector by s (p),
// are an arrowhead; Lanczos on diag(theta) from s makes it tridiagonal again: column i of g (p rows
// of p: g[i] is the i-th new vector in terms of the Ritz vectors), alpha (p), beta (p) with beta[0]
// the coupling of g[0] to the next Lanczos vector. Returns nothing that can fail: where s is
// exhausted (converged pairs), beta is zero and a unit vector takes its place.
CATAPULT_HOST_DEVICE inline void lanczos_compress(const double* theta, const double* s, int64_t p,
                                                  double norm, double* g, double* alpha,
                                                  double* beta) {
  for (int64_t i = 0; i < p; ++i) {
    double* v = g + i * p;
    for (int64_t c = 0; c < p; ++c) v[c] = i == 0 ? s[c] : theta[c] * v[c - p];
    int64_t unit = 0;
    for (;;) {
      for (int pass = 0; pass < 2; ++pass)
        for (int64_t j = 0; j < i; ++j) {
          double dot = 0.0;
          for (int64_t c = 0; c < p; ++c) dot += v[c] * g[j * p + c];
          for (int64_t c = 0; c < p; ++c) v[c] -= dot * g[j * p + c];
        }
      double squares = 0.0;
      for (int64_t c = 0; c < p; ++c) squares += v[c] * v[c];
      const double length = sqrt(squares);
      const double least = unit == 0 ? 1e-14 * norm : 0.5 / sqrt(static_cast<double>(p));
      if (unit == 0) beta[i] = length > least ? length : 0.0;
      if (length > least) {
        for (int64_t c = 0; c < p; ++c) v[c] /= length;
        break;
      }
      for (int64_t c = 0; c < p; ++c) v[c] = c == unit ? 1.0 : 0.0;
      ++unit;
    }
    alpha[i] = 0.0;
    for (int64_t c = 0; c < p; ++c) alpha[i] += v[c] * v[c] * theta[c];
  }
}

// Rounding of a reported eigenvalue: the Ritz vectors are orthonormal to a few eps of the dtype,
// the last product and its dots run in float64.
CATAPULT_HOST_DEVICE inline double lanczos_rounding(double eps, int64_t n) {
  return 4.0 * eps + 2.0 * 2.220446049250313e-16 * sqrt(static_cast<double>(n));
}

}  // namespace catapult
