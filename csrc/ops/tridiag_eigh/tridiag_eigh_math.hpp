// Implicit-shift QL for one symmetric tridiagonal matrix, shared by CPU and CUDA. Only two rows of
// the eigenvector matrix are carried along, so a problem of size m costs O(m^2) instead of O(m^3).
// Source: Golub and Van Loan, Matrix Computations, section 8.3 (as EISPACK's tql2).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"

namespace catapult {

CATAPULT_HOST_DEVICE inline double hypot_safe(double a, double b) {
  a = fabs(a);
  b = fabs(b);
  const double big = a > b ? a : b, small = a > b ? b : a;
  if (big == 0.0) return 0.0;
  const double ratio = small / big;
  return big * sqrt(1.0 + ratio * ratio);
}

// d (m): diagonal in, eigenvalues out (unsorted). e (m): off-diagonal in e[0..m-2], destroyed.
// first, last (m): the first and last row of the eigenvector matrix; without kFirst only the last.
// The caller scales the entries to magnitude about one. Returns false where 60 sweeps per
// eigenvalue do not converge.
template <bool kFirst = true>
CATAPULT_HOST_DEVICE inline bool tridiag_ql(double* d, double* e, double* first, double* last,
                                            int64_t m) {
  for (int64_t i = 0; i < m; ++i) {
    if (kFirst) first[i] = i == 0 ? 1.0 : 0.0;
    last[i] = i == m - 1 ? 1.0 : 0.0;
  }
  e[m - 1] = 0.0;
  constexpr double kEps = 2.220446049250313e-16;
  for (int64_t l = 0; l < m; ++l) {
    for (int sweep = 0;; ++sweep) {
      int64_t split = l;
      while (split < m - 1 && fabs(e[split]) > kEps * (fabs(d[split]) + fabs(d[split + 1])) &&
             fabs(e[split]) > 1e-290)
        ++split;
      if (split == l) break;
      if (sweep == 60) return false;
      double g = (d[l + 1] - d[l]) / (2.0 * e[l]);
      double r = hypot_safe(g, 1.0);
      g = d[split] - d[l] + e[l] / (g + (g >= 0.0 ? r : -r));
      double s = 1.0, c = 1.0, p = 0.0;
      int64_t i = split - 1;
      for (; i >= l; --i) {
        double f = s * e[i];
        const double b = c * e[i];
        r = hypot_safe(f, g);
        e[i + 1] = r;
        if (r == 0.0) {  // the matrix split in the middle of a sweep
          d[i + 1] -= p;
          e[split] = 0.0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        if (kFirst) {
          f = first[i + 1];
          first[i + 1] = s * first[i] + c * f;
          first[i] = c * first[i] - s * f;
        }
        f = last[i + 1];
        last[i + 1] = s * last[i] + c * f;
        last[i] = c * last[i] - s * f;
      }
      if (r == 0.0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[split] = 0.0;
    }
  }
  return true;
}

// LU factors with partial pivoting of T - theta I, in work (4 m); T has diagonal d, off-diagonal e.
CATAPULT_HOST_DEVICE inline void tridiag_factor(const double* d, const double* e, double theta,
                                                double tiny, int64_t m, double* work) {
  double *diagonal = work, *upper = work + m, *second = work + 2 * m, *factor = work + 3 * m;
  for (int64_t i = 0; i < m; ++i) {
    diagonal[i] = d[i] - theta;
    upper[i] = i < m - 1 ? e[i] : 0.0;
    second[i] = 0.0;
  }
  // factor[i] eliminates row i + 1; |factor| <= 1, and plus 4 where the two rows were swapped.
  for (int64_t i = 0; i < m - 1; ++i) {
    const double below = e[i];
    if (fabs(diagonal[i]) >= fabs(below)) {
      if (fabs(diagonal[i]) < tiny) diagonal[i] = tiny;
      factor[i] = below / diagonal[i];
      diagonal[i + 1] -= factor[i] * upper[i];
    } else {
      const double ratio = diagonal[i] / below, over = upper[i];
      diagonal[i] = below;
      upper[i] = diagonal[i + 1];
      second[i] = upper[i + 1];
      diagonal[i + 1] = over - ratio * upper[i];
      upper[i + 1] = -ratio * second[i];
      factor[i] = ratio + 4.0;
    }
  }
  if (fabs(diagonal[m - 1]) < tiny) diagonal[m - 1] = tiny;
}

// z <- (T - theta I)^-1 z, normalised against overflow.
CATAPULT_HOST_DEVICE inline void tridiag_solve(const double* work, int64_t m, double* z) {
  const double *diagonal = work, *upper = work + m, *second = work + 2 * m, *factor = work + 3 * m;
  for (int64_t i = 0; i < m - 1; ++i) {
    if (factor[i] > 2.0) {
      const double held = z[i];
      z[i] = z[i + 1];
      z[i + 1] = held - (factor[i] - 4.0) * z[i];
    } else {
      z[i + 1] -= factor[i] * z[i];
    }
  }
  double big = 0.0;
  for (int64_t i = m - 1; i >= 0; --i) {
    double sum = z[i];
    if (i + 1 < m) sum -= upper[i] * z[i + 1];
    if (i + 2 < m) sum -= second[i] * z[i + 2];
    z[i] = sum / diagonal[i];
    big = fabs(z[i]) > big ? fabs(z[i]) : big;
  }
  if (big > 0.0)
    for (int64_t i = 0; i < m; ++i) z[i] /= big;
}

// Unit eigenvector z (m) of the tridiagonal matrix (diagonal d, off-diagonal e) at an eigenvalue
// exact to rounding, by inverse iteration (as LAPACK's stein). norm: of the matrix, not zero.
// near (count, m): vectors of the same cluster found before, which z is kept orthogonal to; count
// also varies the start. work (4 m).
CATAPULT_HOST_DEVICE inline void tridiag_eigenvector(const double* d, const double* e, double theta,
                                                     double norm, int64_t m, const double* near,
                                                     int64_t count, double* z, double* work) {
  tridiag_factor(d, e, theta, 2.220446049250313e-16 * norm, m, work);
  uint32_t random = 12345u + 977u * static_cast<uint32_t>(count);
  for (int64_t i = 0; i < m; ++i) {
    random = random * 1664525u + 1013904223u;
    z[i] = 0.25 + static_cast<double>(random >> 8) / 16777216.0;
  }
  for (int pass = 0; pass < 3; ++pass) {
    tridiag_solve(work, m, z);
    for (int64_t q = 0; q < count; ++q) {
      const double* other = near + q * m;
      double dot = 0.0;
      for (int64_t i = 0; i < m; ++i) dot += z[i] * other[i];
      for (int64_t i = 0; i < m; ++i) z[i] -= dot * other[i];
    }
    double squares = 0.0;
    for (int64_t i = 0; i < m; ++i) squares += z[i] * z[i];
    const double scale = squares > 0.0 ? 1.0 / sqrt(squares) : 0.0;
    for (int64_t i = 0; i < m; ++i) z[i] *= scale;
  }
}

// Insertion sort, ascending: QL leaves the eigenvalues almost sorted.
CATAPULT_HOST_DEVICE inline void sort_eigenpairs(double* d, double* first, double* last,
                                                 int64_t m) {
  for (int64_t i = 1; i < m; ++i) {
    const double value = d[i], f = first[i], l = last[i];
    int64_t j = i - 1;
    for (; j >= 0 && d[j] > value; --j) {
      d[j + 1] = d[j];
      first[j + 1] = first[j];
      last[j + 1] = last[j];
    }
    d[j + 1] = value;
    first[j + 1] = f;
    last[j + 1] = l;
  }
}

}  // namespace catapult
