// What the kernel of lanczos_dense is given.
#pragma once

#include <cstdint>

#include "ops/lanczos_dense/lanczos_dense_device.hpp"

namespace catapult::device {

template <typename T>
struct LanczosDenseParams {
  const T* a;       // (replicas, n, n)
  const T* v0;      // (replicas, n) or null
  T* eigenvalues;   // (replicas, k)
  T* eigenvectors;  // (replicas, k, n)
  T* errors;        // (replicas, k)
  int64_t* steps;   // (replicas,)
  double* memory;   // config.total for each team
  int* arrived;     // one per team, zero
  LanczosDenseDevice config;
  int64_t replicas, maxiter, seed;
  double tol, eps;
  bool copy;  // the matrix fits shared memory
};

}  // namespace catapult::device
