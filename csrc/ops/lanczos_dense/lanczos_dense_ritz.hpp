// Ritz values, residuals and the tridiagonal part of the Ritz vectors of one run, by one
// thread of the CPU or the device.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"
#include "ops/tridiag_eigh/tridiag_eigh_math.hpp"

namespace catapult {

// The largest Ritz value, and the last entry of its vector.
struct RitzTop {
  double value, last;
};

struct RitzPairs {
  double* values;     // (room) ascending
  double* residuals;  // (room)
  double* vectors;    // (count, m), filled by find_vectors
  double* work;       // (6 * room)
  int64_t m = 0;

  // alpha, beta (steps): the tridiagonal matrix; beta of the last step is `remainder`.
  template <typename T>
  CATAPULT_HOST_DEVICE void find_values(const T* alpha, const T* beta, int64_t steps,
                                        double remainder) {
    m = steps;
    double* e = load(alpha, beta);
    double scale = 0.0;
    for (int64_t i = 0; i < m; ++i) {
      scale = fabs(work[i]) > scale ? fabs(work[i]) : scale;
      scale = fabs(e[i]) > scale ? fabs(e[i]) : scale;
    }
    if (scale == 0.0) scale = 1.0;
    for (int64_t i = 0; i < m; ++i) {
      values[i] = work[i] / scale;
      e[i] /= scale;
    }
    tridiag_ql<false>(values, e, static_cast<double*>(nullptr), residuals, m);
    sort_eigenpairs(values, residuals, e, m);
    for (int64_t i = 0; i < m; ++i) {
      values[i] *= scale;
      residuals[i] = fabs(residuals[i]) * remainder;
    }
  }

  // By Laguerre's method from above on the pivots of x - T: an estimate, for the price of a few
  // divisions a step.
  template <typename T>
  CATAPULT_HOST_DEVICE RitzTop find_top(const T* alpha, const T* beta, int64_t steps) const {
    double x = alpha[0];  // above all eigenvalues (Gershgorin)
    for (int64_t i = 0; i < steps; ++i) {
      const double left = i > 0 ? fabs(beta[i - 1]) : 0.0;
      const double right = i + 1 < steps ? fabs(beta[i]) : 0.0;
      x = fmax(x, alpha[i] + left + right);
    }
    double last = 1.0;
    const double count = static_cast<double>(steps);
    for (int sweep = 0; sweep < 12; ++sweep) {
      // pivot q_i = x - alpha_i - beta^2 / q_{i-1}, and its first two derivatives over it
      double through = 0.0, slope = 0.0, bend = 0.0, sum = 0.0, squares = 0.0, first = 1.0;
      for (int64_t i = 0; i < steps; ++i) {
        const double inverse = 1.0 / (x - alpha[i] - through);
        first = 1.0 + through * slope;
        const double second = through * (bend - 2.0 * slope * slope);
        slope = first * inverse;
        bend = second * inverse;
        through = i + 1 < steps ? inverse * beta[i] * beta[i] : 0.0;
        sum += slope;
        squares += slope * slope - bend;
      }
      last = 1.0 / sqrt(first);
      const double spread = (count - 1.0) * (count * squares - sum * sum);
      const double move = count / (sum + sqrt(spread > 0.0 ? spread : 0.0));
      if (!(fabs(move) > 1e-10 * fabs(x))) break;
      x -= move;
    }
    return {x, last};
  }

  // Eigenvectors of the `count` largest values, one row each; norm > 0: of the matrix.
  template <typename T>
  CATAPULT_HOST_DEVICE void find_vectors(const T* alpha, const T* beta, int64_t count,
                                         double norm) {
    const double* e = load(alpha, beta);
    for (int64_t p = 0; p < count; ++p) {
      const double value = values[m - 1 - p];
      int64_t near = p;  // the first vector of this one's cluster
      while (near > 0 && values[m - near] - value <= 1e-3 * norm) --near;
      tridiag_eigenvector(work, e, value, norm, m, vectors + near * m, p - near, vectors + p * m,
                          work + 2 * m);
    }
  }

 private:
  // Diagonal into work, off-diagonal behind it.
  template <typename T>
  CATAPULT_HOST_DEVICE double* load(const T* alpha, const T* beta) {
    double* e = work + m;
    for (int64_t i = 0; i < m; ++i) {
      work[i] = alpha[i];
      e[i] = i < m - 1 ? beta[i] : 0.0;
    }
    return e;
  }
};

}  // namespace catapult
