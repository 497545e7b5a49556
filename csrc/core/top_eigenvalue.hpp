// Largest eigenvalue of one small symmetric matrix, shared by CPU and CUDA: Householder
// tridiagonalisation, then bisection on the Sturm count, which cannot fail to converge.
// Source: Golub and Van Loan, Matrix Computations, sections 8.3.1 and 8.4.1.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"

namespace catapult {

// Reduces the symmetric a (n, n; lower triangle read, destroyed) to diagonal d (n) and
// off-diagonal e (n; e[0..n-2] set). work holds n entries.
CATAPULT_HOST_DEVICE inline void tridiagonalise(double* a, int64_t n, double* d, double* e,
                                                double* work) {
  for (int64_t k = 0; k + 2 < n; ++k) {
    double* column = a + (k + 1) * n + k;  // a[k+1.., k]: the Householder vector lives here
    double scale = 0.0;
    for (int64_t i = k + 1; i < n; ++i) scale = fmax(scale, fabs(a[i * n + k]));
    double norm2 = 0.0;
    for (int64_t i = k + 1; i < n; ++i) {
      const double x = scale > 0.0 ? a[i * n + k] / scale : 0.0;
      norm2 += x * x;
    }
    const double alpha = column[0] > 0.0 ? -scale * sqrt(norm2) : scale * sqrt(norm2);
    e[k] = alpha;
    const double head = column[0] - alpha;
    if (alpha == 0.0 || head == 0.0) continue;
    const double beta = -1.0 / (alpha * head);  // 2 / |u|^2 for u = x - alpha e_1
    column[0] = head;
    double up = 0.0;
    for (int64_t i = k + 1; i < n; ++i) {  // p = beta A u
      double sum = 0.0;
      for (int64_t j = k + 1; j < n; ++j)
        sum += (i >= j ? a[i * n + j] : a[j * n + i]) * a[j * n + k];
      work[i] = beta * sum;
      up += work[i] * a[i * n + k];
    }
    const double half = 0.5 * beta * up;
    for (int64_t i = k + 1; i < n; ++i) work[i] -= half * a[i * n + k];
    for (int64_t i = k + 1; i < n; ++i)
      for (int64_t j = k + 1; j <= i; ++j)
        a[i * n + j] -= a[i * n + k] * work[j] + work[i] * a[j * n + k];
  }
  for (int64_t i = 0; i < n; ++i) d[i] = a[i * n + i];
  if (n >= 2) e[n - 2] = a[(n - 1) * n + n - 2];
}

// True where the tridiagonal matrix has an eigenvalue above x.
CATAPULT_HOST_DEVICE inline bool any_eigenvalue_above(const double* d, const double* e, int64_t n,
                                                      double x) {
  double pivot = d[0] - x;
  for (int64_t i = 1;; ++i) {
    if (pivot > 0.0) return true;
    if (i == n) return false;
    if (pivot > -DBL_MIN) pivot = -DBL_MIN;
    pivot = d[i] - x - e[i - 1] * e[i - 1] / pivot;
  }
}

// a (n, n) is destroyed; work holds 3 n entries. NaN where a is not finite.
CATAPULT_HOST_DEVICE inline double top_eigenvalue(double* a, int64_t n, double* work) {
  if (n == 1) return a[0];
  double largest = 0.0;
  bool finite = true;
  for (int64_t i = 0; i < n * n; ++i) {
    finite = finite && fabs(a[i]) <= DBL_MAX;
    largest = fmax(largest, fabs(a[i]));
  }
  if (!finite) return NAN;
  if (largest == 0.0) return 0.0;
  for (int64_t i = 0; i < n * n; ++i) a[i] /= largest;  // squares stay far from overflow
  double *d = work, *e = work + n;
  tridiagonalise(a, n, d, e, work + 2 * n);
  double low = -DBL_MAX, high = -DBL_MAX;
  for (int64_t i = 0; i < n; ++i) {  // the largest diagonal entry and Gershgorin's bound
    const double radius = (i > 0 ? fabs(e[i - 1]) : 0.0) + (i < n - 1 ? fabs(e[i]) : 0.0);
    low = fmax(low, d[i]);
    high = fmax(high, d[i] + radius);
  }
  for (int step = 0; step < 100; ++step) {
    const double middle = 0.5 * (low + high);
    if (middle <= low || middle >= high) break;
    if (any_eigenvalue_above(d, e, n, middle)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return largest * 0.5 * (low + high);
}

}  // namespace catapult
