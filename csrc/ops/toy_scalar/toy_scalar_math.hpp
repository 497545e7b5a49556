// What CPU and CUDA share of toy_scalar.
#pragma once

#include <cstdint>
#include <limits>

#include "core/host_device.hpp"

namespace catapult {

template <typename T>
constexpr T kToyScalarLargest = std::numeric_limits<T>::max();

// Below this k^2, h - h k^2 rounds to h.
template <typename T>
constexpr T kToyScalarStill = std::numeric_limits<T>::epsilon() / 8;

// 1000 times the largest a^2 that the curvature of the start allows: |a| <= v / 2 + |b|.
template <typename T>
CATAPULT_HOST_DEVICE inline T toy_scalar_cut(T h, T k, T b) {
  const T reach = T(0.5) * (h * h + k * k) + (b < T(0) ? -b : b);
  const T cut = T(1000) * reach * reach;
  return cut < kToyScalarLargest<T> ? cut : kToyScalarLargest<T>;
}

// Rounding has frozen h for good: k only shrinks, by the factor 1 - h^2 a step.
template <typename T>
CATAPULT_HOST_DEVICE inline bool toy_scalar_settled(T h, T k, T b) {
  const T a = h * k - b;
  return (b == T(0) && k * k <= kToyScalarStill<T> && h * h < T(2)) ||
         (h - a * k == h && k - a * h == k);
}

// k after `steps` more steps of a settled lane.
template <typename T>
CATAPULT_HOST_DEVICE inline T toy_scalar_decay(T h, T k, T b, int64_t steps) {
  if (b != T(0)) return k;
  T factor = T(1) - h * h;
  for (; steps > 0 && k != T(0); steps >>= 1) {
    if (steps & 1) k *= factor;
    factor *= factor;
  }
  return k;
}

}  // namespace catapult
