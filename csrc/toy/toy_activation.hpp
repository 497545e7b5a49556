// The activations of the direct form: one element at a time, and what bounds the network's outputs.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"

namespace catapult {

// The order of ops/toy_gd.py.
enum class Activation : int64_t {
  kLinear,
  kLeaky,
  kAbs,
  kTanh,
  kErf,
  kGelu,
  kSoftplus,
  kSilu,
  kCount
};

struct ToyActivation {
  Activation kind = Activation::kLinear;
  double slope = 1.0;  // of a leaky one below zero

  CATAPULT_HOST_DEVICE bool linear() const { return kind == Activation::kLinear; }

  // Bound on |phi'|.
  CATAPULT_HOST_DEVICE double steepest() const {
    switch (kind) {
      case Activation::kLeaky:
        return fmax(1.0, fabs(slope));
      case Activation::kErf:
        return 1.1283791670955126;  // 2 / sqrt(pi)
      case Activation::kGelu:
        return 1.13;
      case Activation::kSilu:
        return 1.1;
      default:
        return 1.0;
    }
  }

  // |phi(0)|.
  CATAPULT_HOST_DEVICE double at_zero() const {
    return kind == Activation::kSoftplus ? 0.6931471805599453 : 0.0;
  }
};

template <typename T>
struct ValueAndSlope {
  T value, slope;
};

// e^(-factor z^2), factor a power of two, relative to itself: with what rounding took from z^2.
template <typename T>
CATAPULT_HOST_DEVICE T gaussian(T z, T factor) {
  const T square = z * z, e = std::exp(-factor * square);
  return e == T(0) ? e : e - e * factor * std::fma(z, z, -square);
}

// Phi of the normal distribution; density is that at z. The argument of erfc is rounded, which its
// slope makes up for.
template <typename T>
CATAPULT_HOST_DEVICE T normal_below(T z, T density) {
  const T root_half = static_cast<T>(0.70710678118654752440);
  const T rest = static_cast<T>(sizeof(T) == 4 ? 1.2101617e-8 : -4.8336466567264567e-17);
  const T x = -z * root_half, error = -std::fma(z, root_half, x) - z * rest;
  const T slope = static_cast<T>(1.4142135623730951) * density;
  return T(0.5) * std::erfc(x) - (slope == T(0) ? slope : slope * error);
}

// phi(z) and phi'(z). toy_activated_simd.cpp holds the same for vectors.
template <typename T>
CATAPULT_HOST_DEVICE ValueAndSlope<T> activate(Activation kind, T slope, T z) {
  switch (kind) {
    case Activation::kLeaky: {
      const T steep = z > T(0) ? T(1) : slope;
      return {z * steep, steep};
    }
    case Activation::kAbs:
      return {std::fabs(z), z > T(0) ? T(1) : z < T(0) ? T(-1) : T(0) * z};
    case Activation::kTanh: {
      const T e = std::exp(T(-2) * std::fabs(z)), inverse = T(1) / (T(1) + e);
      return {std::tanh(z), T(4) * e * inverse * inverse};
    }
    case Activation::kErf:
      return {std::erf(z), static_cast<T>(1.1283791670955126) * gaussian(z, T(1))};
    case Activation::kGelu: {
      const T density = static_cast<T>(0.3989422804014327) * gaussian(z, T(0.5));
      const T below = normal_below(z, density);
      return {z * below, below + z * density};
    }
    case Activation::kSoftplus: {
      const T e = std::exp(-std::fabs(z)), inverse = T(1) / (T(1) + e);
      return {std::fmax(z, T(0)) + std::log1p(e), (z > T(0) ? T(1) : e) * inverse};
    }
    case Activation::kSilu: {
      const T e = std::exp(-std::fabs(z)), inverse = T(1) / (T(1) + e);
      const T gate = (z > T(0) ? T(1) : e) * inverse;
      const T rest = (z > T(0) ? e : T(1)) * inverse;
      return {z * gate, gate + z * gate * rest};
    }
    default:
      return {z, T(1)};
  }
}

}  // namespace catapult
