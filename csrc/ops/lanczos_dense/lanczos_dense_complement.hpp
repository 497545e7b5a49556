// Upper bounds of the largest eigenvalue of A from a run of Lanczos steps and its Frobenius norm.
#pragma once

#include <cmath>
#include <cstdint>

namespace catapult {

// In a basis that starts with the m Lanczos vectors A is (T, beta e_m b'; b beta e_m', C), b a unit
// vector, and |C|_F^2 = |A|_F^2 - |T|_F^2 - 2 beta^2 = c^2. So s I - A is positive definite where
// s > c and the Schur complement s I - T - beta^2 / (s - c) e_m e_m' is.
template <typename T>
struct LanczosComplement {
  const T* alpha;  // (m)
  const T* beta;   // (m), the last one couples to what follows
  int64_t m;
  double squares;  // |A|_F^2, an upper bound

  // c^2, at least 0.
  double left() const {
    double sum = squares;
    for (int64_t i = 0; i < m; ++i) sum -= gain(i);
    return sum > 0.0 ? sum : 0.0;
  }

  // What step i took off c^2.
  double gain(int64_t i) const {
    const double a = alpha[i], b = beta[i];
    return a * a + 2.0 * b * b;
  }

  bool below(double s) const {
    const double room = s - std::sqrt(left());
    if (!(room > 0.0)) return false;
    double pivot = 1.0, coupling = 0.0;
    for (int64_t i = 0; i < m; ++i) {
      const double b = beta[i];
      pivot = s - alpha[i] - coupling / pivot - (i == m - 1 ? b * b / room : 0.0);
      if (!(pivot > 0.0)) return false;
      coupling = b * b;
    }
    return true;
  }

  // The least of value + most / 2^j that is a bound; infinity where value + most is none.
  double bound(double value, double most) const {
    if (!below(value + most)) return HUGE_VAL;
    for (int halvings = 0; halvings < 40 && below(value + most / 2.0); ++halvings) most /= 2.0;
    return value + most;
  }
};

}  // namespace catapult
