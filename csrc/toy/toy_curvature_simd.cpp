// toy/top_eigenvalue.hpp with a matrix per lane: Householder tridiagonalisation, then Laguerre's
// iteration from above. Only the lower triangle of the matrix is read and written.
#include "toy/toy_curvature_simd.hpp"

#include <cfloat>
#include <cmath>

#include "core/simd.hpp"

namespace catapult {
namespace {

constexpr int L = kLanes<double>;
using V = Vec<double>;

CATAPULT_INLINE V at(const double* a, int64_t k) { return load(a + k * L); }
CATAPULT_INLINE void put(double* a, int64_t k, V value) { store(a + k * L, value); }
CATAPULT_INLINE V larger(V a, V b) { return a > b ? a : b; }
CATAPULT_INLINE V magnitude(V a) { return larger(a, -a); }

CATAPULT_INLINE V root(V a) {
  for (int l = 0; l < L; ++l) a[l] = std::sqrt(a[l]);
  return a;
}

// half (rows, inputs) = F S, then matrix = half F', lower triangle.
void project(const ToyCurvatureFactor& g, const double* gram, double* half, double* matrix) {
  const int64_t d = g.inputs;
  for (int64_t a = 0; a < g.rows; ++a) {
    const double* f = g.f + a * d;
    int64_t i = 0;
    for (; i + 4 <= d; i += 4) {
      V sum[4] = {};
      for (int64_t k = g.first[a]; k < d; ++k)
        for (int c = 0; c < 4; ++c) sum[c] += splat(f[k]) * at(gram, k * d + i + c);
      for (int c = 0; c < 4; ++c) put(half, a * d + i + c, sum[c]);
    }
    for (; i < d; ++i) {
      V sum{};
      for (int64_t k = g.first[a]; k < d; ++k) sum += splat(f[k]) * at(gram, k * d + i);
      put(half, a * d + i, sum);
    }
  }
  for (int64_t a = 0; a < g.rows; ++a)
    for (int64_t b = 0; b <= a; ++b) {
      V even{}, odd{};
      int64_t i = g.first[a];
      for (; i + 2 <= d; i += 2) {
        even += splat(g.f[a * d + i]) * at(half, b * d + i);
        odd += splat(g.f[a * d + i + 1]) * at(half, b * d + i + 1);
      }
      if (i < d) even += splat(g.f[a * d + i]) * at(half, b * d + i);
      put(matrix, a * g.rows + b, even + odd);
    }
}

// To diagonal d and off-diagonal e; u and p hold n entries each.
void tridiagonalise(double* a, int64_t n, double* d, double* e, double* u, double* p) {
  for (int64_t k = 0; k + 2 < n; ++k) {
    V norm2{};
    for (int64_t i = k + 1; i < n; ++i) {
      const V x = at(a, i * n + k);
      norm2 += x * x;
      put(u, i, x);
    }
    const V head = at(u, k + 1), length = root(norm2);
    const V alpha = head > V{} ? -length : length;
    put(e, k, alpha);
    put(u, k + 1, head - alpha);
    const V product = alpha * (head - alpha);  // -|u|^2 / 2; a column of zeros is left as it is
    const V beta = product < splat(-DBL_MIN) ? splat(-1.0) / product : V{};
    for (int64_t i = k + 1; i < n; ++i) {
      const V ui = at(u, i);
      V sum = at(a, i * n + i) * ui;
      for (int64_t j = k + 1; j < i; ++j) {
        const V x = at(a, i * n + j);
        sum += x * at(u, j);
        put(p, j, at(p, j) + x * ui);
      }
      put(p, i, sum);
    }
    V up{};
    for (int64_t i = k + 1; i < n; ++i) up += at(p, i) * at(u, i);
    const V half = splat(0.5) * beta * up;
    for (int64_t i = k + 1; i < n; ++i) put(p, i, beta * (at(p, i) - half * at(u, i)));
    for (int64_t i = k + 1; i < n; ++i) {
      const V ui = at(u, i), pi = at(p, i);
      for (int64_t j = k + 1; j <= i; ++j)
        put(a, i * n + j, at(a, i * n + j) - (ui * at(p, j) + pi * at(u, j)));
    }
  }
  for (int64_t i = 0; i < n; ++i) put(d, i, at(a, i * n + i));
  if (n >= 2) put(e, n - 2, at(a, (n - 1) * n + n - 2));
}

// See laguerre_step in toy/top_eigenvalue.hpp; 0 in a lane that has arrived. e2 holds e squared.
V step_down(const double* d, const double* e2, int64_t n, V x) {
  V pivot = at(d, 0) - x, first = splat(-1.0), second{}, sum1{}, sum2{};
  auto above = pivot < splat(-DBL_MIN);
  for (int64_t i = 1;; ++i) {
    const V inverse = splat(1.0) / pivot, ratio = first * inverse;
    sum1 += ratio;
    sum2 += ratio * ratio - second * inverse;
    if (i == n) break;
    const V coupling = at(e2, i - 1) * inverse;
    pivot = at(d, i) - x - coupling;
    above &= pivot < splat(-DBL_MIN);
    second = coupling * inverse * (second - splat(2.0) * first * ratio);
    first = coupling * ratio - splat(1.0);
  }
  const V count = splat(static_cast<double>(n));
  const V spread = (count - splat(1.0)) * (count * sum2 - sum1 * sum1);
  const V down = count / (sum1 + root(larger(spread, V{})));
  return above ? down : V{};
}

// From Gershgorin's bound downwards; a lane that has arrived no longer moves.
V top_of_tridiagonal(const double* d, double* e, int64_t n) {
  V x = splat(-DBL_MAX);
  for (int64_t i = 0; i < n; ++i) {
    V radius = i > 0 ? magnitude(at(e, i - 1)) : V{};
    if (i < n - 1) radius += magnitude(at(e, i));
    x = larger(x, at(d, i) + radius);
  }
  x += splat(4.0 * DBL_EPSILON) * magnitude(x);
  for (int64_t i = 0; i + 1 < n; ++i) put(e, i, at(e, i) * at(e, i));
  auto moving = x == x;
  for (int step = 0; step < 200; ++step) {
    const V down = step_down(d, e, n, x);
    moving &= down > splat(0.5 * DBL_EPSILON) * magnitude(x);
    bool any = false;
    for (int l = 0; l < L; ++l) any = any || moving[l] != 0;
    if (!any) break;
    x = moving ? x - down : x;
  }
  return x;
}

void tops(const ToyCurvatureFactor& g, double* gram, const double* q, double* work, double* out) {
  const int64_t n = g.rows;
  double *half = work, *matrix = half + n * g.inputs * L, *d = matrix + n * n * L;
  double *e = d + n * L, *u = e + n * L, *p = u + n * L;
  for (int64_t i = 0; i < g.inputs; ++i)
    put(gram, i * g.inputs + i, at(gram, i * g.inputs + i) + load(q));
  project(g, gram, half, matrix);
  V largest{};
  auto finite = V{} == V{};
  for (int64_t a = 0; a < n; ++a)
    for (int64_t b = 0; b <= a; ++b) {
      const V x = magnitude(at(matrix, a * n + b));
      finite &= x <= splat(DBL_MAX);
      largest = larger(largest, x);
    }
  const V scale = largest > V{} ? splat(1.0) / largest : V{};  // squares stay far from overflow
  for (int64_t a = 0; a < n; ++a)
    for (int64_t b = 0; b <= a; ++b) put(matrix, a * n + b, at(matrix, a * n + b) * scale);
  tridiagonalise(matrix, n, d, e, u, p);
  const V top = largest * top_of_tridiagonal(d, e, n);
  store(out, finite ? top : splat(static_cast<double>(NAN)));
}

}  // namespace

extern const ToyCurvatureTable CATAPULT_ISA_SYMBOL(toy_curvature_simd) = {L, &tops};

}  // namespace catapult
