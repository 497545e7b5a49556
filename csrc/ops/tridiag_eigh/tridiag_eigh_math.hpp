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
// first, last (m): the first and last row of the eigenvector matrix. The caller scales the entries
// to magnitude about one. Returns false where 60 sweeps per eigenvalue do not converge.
CATAPULT_HOST_DEVICE inline bool tridiag_ql(double* d, double* e, double* first, double* last,
                                            int64_t m) {
  for (int64_t i = 0; i < m; ++i) {
    first[i] = i == 0 ? 1.0 : 0.0;
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
        f = first[i + 1];
        first[i + 1] = s * first[i] + c * f;
        first[i] = c * first[i] - s * f;
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
