// Largest eigenvalue of one small symmetric matrix, shared by CPU and CUDA: Householder
// tridiagonalisation, then Laguerre's iteration from above, which converges monotonically.
// Sources: Golub and Van Loan, Matrix Computations, section 8.3.1; Wilkinson, The Algebraic
// Eigenvalue Problem, section 7.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"

namespace catapult {

// Reduces the symmetric a (n, n; destroyed) to diagonal d (n) and off-diagonal e (n; e[0..n-2]
// set). work holds 2 n entries. Both triangles are kept up to date, so that every loop runs along a
// row.
CATAPULT_HOST_DEVICE inline void tridiagonalise(double* a, int64_t n, double* d, double* e,
                                                double* work) {
  double *u = work, *p = work + n;
  for (int64_t k = 0; k + 2 < n; ++k) {
    const double* row = a + k * n;  // row k is column k
    double scale = 0.0, norm2 = 0.0;
    for (int64_t i = k + 1; i < n; ++i) scale = fmax(scale, fabs(row[i]));
    for (int64_t i = k + 1; i < n; ++i) {
      const double x = scale > 0.0 ? row[i] / scale : 0.0;
      norm2 += x * x;
    }
    const double alpha = row[k + 1] > 0.0 ? -scale * sqrt(norm2) : scale * sqrt(norm2);
    e[k] = alpha;
    const double head = row[k + 1] - alpha;
    if (alpha == 0.0 || head == 0.0) continue;
    const double beta = -1.0 / (alpha * head);  // 2 / |u|^2 for u = x - alpha e_1
    u[k + 1] = head;
    for (int64_t i = k + 2; i < n; ++i) u[i] = row[i];
    double up = 0.0;
    for (int64_t i = k + 1; i < n; ++i) {  // p = beta A u
      double sum = 0.0;
      for (int64_t j = k + 1; j < n; ++j) sum += a[i * n + j] * u[j];
      p[i] = beta * sum;
      up += p[i] * u[i];
    }
    const double half = 0.5 * beta * up;
    for (int64_t i = k + 1; i < n; ++i) p[i] -= half * u[i];
    for (int64_t i = k + 1; i < n; ++i)
      for (int64_t j = k + 1; j < n; ++j) a[i * n + j] -= u[i] * p[j] + p[i] * u[j];
  }
  for (int64_t i = 0; i < n; ++i) d[i] = a[i * n + i];
  if (n >= 2) e[n - 2] = a[(n - 1) * n + n - 2];
}

// Distance that Laguerre's iteration goes down from x towards the largest eigenvalue of the
// tridiagonal matrix. It never passes the root; 0 where x is no longer above all eigenvalues (up to
// rounding). Written with the pivots of T - x and their derivatives: their sums of ratios are
// sum 1/(x - lambda_i) and sum 1/(x - lambda_i)^2.
CATAPULT_HOST_DEVICE inline double laguerre_step(const double* d, const double* e, int64_t n,
                                                 double x) {
  double pivot = d[0] - x, first = -1.0, second = 0.0;  // the pivot and its derivatives
  double sum1 = 0.0, sum2 = 0.0;
  for (int64_t i = 1;; ++i) {
    if (!(pivot < -DBL_MIN)) return 0.0;
    const double inverse = 1.0 / pivot, ratio = first * inverse;
    sum1 += ratio;
    sum2 += ratio * ratio - second * inverse;
    if (i == n) break;
    const double coupling = e[i - 1] * e[i - 1] * inverse;
    pivot = d[i] - x - coupling;
    second = coupling * inverse * (second - 2.0 * first * ratio);
    first = -1.0 + coupling * ratio;
  }
  const double count = static_cast<double>(n);
  const double spread = fmax((count - 1.0) * (count * sum2 - sum1 * sum1), 0.0);
  return count / (sum1 + sqrt(spread));
}

// Largest eigenvalue of one unreduced piece of a tridiagonal matrix, or `least` if that is larger.
CATAPULT_HOST_DEVICE inline double top_of_piece(const double* d, const double* e, int64_t n,
                                                double least) {
  double x = -DBL_MAX;
  for (int64_t i = 0; i < n; ++i) {  // Gershgorin's bound lies above every eigenvalue
    const double radius = (i > 0 ? fabs(e[i - 1]) : 0.0) + (i < n - 1 ? fabs(e[i]) : 0.0);
    x = fmax(x, d[i] + radius);
  }
  if (x <= least) return least;
  x += 4.0 * DBL_EPSILON * fabs(x);
  // Cubic: about six steps. Less than half a unit in the last place would not move x.
  for (int step = 0; step < 200; ++step) {
    const double down = laguerre_step(d, e, n, x);
    if (!(down > 0.5 * DBL_EPSILON * fabs(x))) break;
    x -= down;
  }
  return fmax(x, least);
}

// Largest eigenvalue of the tridiagonal matrix with diagonal d and off-diagonal e, n >= 2. Apart
// from its couplings that vanish it has no repeated eigenvalues, at which the iteration would be
// slow.
CATAPULT_HOST_DEVICE inline double top_of_tridiagonal(const double* d, const double* e, int64_t n) {
  double top = -DBL_MAX;
  for (int64_t start = 0, i = 0; i < n; ++i) {
    if (i < n - 1 && fabs(e[i]) > DBL_EPSILON * (fabs(d[i]) + fabs(d[i + 1]))) continue;
    top = top_of_piece(d + start, e + start, i + 1 - start, top);
    start = i + 1;
  }
  return top;
}

// a (n, n) is destroyed; work holds 4 n entries. NaN where a is not finite.
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
  const double inverse = 1.0 / largest;
  for (int64_t i = 0; i < n * n; ++i) a[i] *= inverse;  // squares stay far from overflow
  double *d = work, *e = work + n;
  tridiagonalise(a, n, d, e, work + 2 * n);
  return largest * top_of_tridiagonal(d, e, n);
}

}  // namespace catapult
