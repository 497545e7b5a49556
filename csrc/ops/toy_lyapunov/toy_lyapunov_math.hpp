// Counter-based draws: z(path, step) depends on the seed and on nothing else.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"
#include "ops/toy_lyapunov/toy_lyapunov.hpp"

namespace catapult {

// Threefry-2x64-20 of Salmon et al. 2011 (Random123), of a number or of a vector of them.
template <typename U>
CATAPULT_HOST_DEVICE inline void threefry(U& x0, U& x1, uint64_t key0, uint64_t key1) {
  constexpr int kRotations[8] = {16, 42, 12, 31, 16, 32, 24, 21};
  const uint64_t keys[3] = {key0, key1, 0x1BD11BDAA9FC1A22u ^ key0 ^ key1};
  x0 += keys[0];
  x1 += keys[1];
  for (int round = 0; round < 20; ++round) {
    const int r = kRotations[round % 8];
    x0 += x1;
    x1 = (x1 << r) | (x1 >> (64 - r));
    x1 ^= x0;
    if (round % 4 == 3) {
      const int injection = round / 4 + 1;
      x0 += keys[injection % 3];
      x1 += keys[(injection + 1) % 3] + static_cast<uint64_t>(injection);
    }
  }
}

// 52 bits, in the middle of their cell: never 0 nor 1.
CATAPULT_HOST_DEVICE inline double toy_lyapunov_uniform(uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

// The draws of steps 2 pair and 2 pair + 1, of mean 0 and variance 1.
CATAPULT_HOST_DEVICE inline void toy_lyapunov_draw(int64_t seed, int64_t path, int64_t pair,
                                                   ToyLyapunovNoise noise, double z[2]) {
  uint64_t x0 = static_cast<uint64_t>(pair), x1 = static_cast<uint64_t>(path);
  threefry(x0, x1, static_cast<uint64_t>(seed), 0);
  const double u = toy_lyapunov_uniform(x0), v = toy_lyapunov_uniform(x1);
  if (noise == ToyLyapunovNoise::kUniform) {
    z[0] = 3.46410161513775458705 * (u - 0.5);  // sqrt(12)
    z[1] = 3.46410161513775458705 * (v - 0.5);
  } else if (noise == ToyLyapunovNoise::kTwoPoint) {
    z[0] = u < 0.5 ? -1.0 : 1.0;
    z[1] = v < 0.5 ? -1.0 : 1.0;
  } else {  // Box and Muller, the angle reduced to an eighth of a turn without rounding
    const double radius = sqrt(-2.0 * log(u)), turns = 4.0 * v, quarter = floor(turns + 0.5);
    const double angle = (turns - quarter) * 1.57079632679489661923;
    const double c = radius * cos(angle), s = radius * sin(angle);
    const int q = static_cast<int>(quarter) & 3;
    z[0] = q == 0 ? c : q == 1 ? -s : q == 2 ? -c : s;
    z[1] = q == 0 ? s : q == 1 ? c : q == 2 ? -s : -c;
  }
}

// log of the length of (x, y) 2^exponent; -inf at the origin, NaN where a value is not finite.
CATAPULT_HOST_DEVICE inline double toy_lyapunov_log(double x, double y) {
  const double square = x * x + y * y;
  return square <= 1e300 ? 0.5 * log(square) : NAN;
}

}  // namespace catapult
