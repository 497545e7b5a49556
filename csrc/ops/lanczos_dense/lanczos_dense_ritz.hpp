// Ritz values, residuals and the tridiagonal part of the Ritz vectors of one run, by one
// thread of the CPU or the device.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"
#include "ops/tridiag_eigh/tridiag_eigh_math.hpp"

namespace catapult {

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
