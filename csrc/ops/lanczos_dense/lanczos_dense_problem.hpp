// What a solve of lanczos_dense is given, its memory, and what its steps return, on every device.
#pragma once

#include <cstdint>

#include "ops/lanczos_dense/lanczos_dense.hpp"
#include "ops/lanczos_dense/lanczos_dense_config.hpp"

// A file compiles the solver for one kind of team only, and a GPU's functions are no host's. Large
// ones stay calls there: inlined, they take minutes to compile and more registers than there are.
#ifdef __CUDACC__
#define CATAPULT_TEAM __device__
#define CATAPULT_TEAM_CALL __attribute__((noinline)) __device__
#else
#define CATAPULT_TEAM
#define CATAPULT_TEAM_CALL
#endif

namespace catapult {

// All matrices of a call.
template <typename T>
struct LanczosDenseProblem {
  const T* a;       // (replicas, n, n)
  const T* v0;      // (replicas, n) or null
  T* eigenvalues;   // (replicas, k)
  T* eigenvectors;  // (replicas, k, n)
  T* errors;        // (replicas, k)
  int64_t* steps;   // (replicas,)
  double* exact;    // (replicas, k, 4) or null
  int64_t maxiter, seed;
  double tol, eps, squares;
  bool confirm;
};

template <typename T>
LanczosDenseProblem<T> lanczos_dense_problem(const LanczosDenseArgs& a, double eps) {
  return {a.a.as<T>(),
          a.v0.as<T>(),
          a.eigenvalues.as<T>(),
          a.eigenvectors.as<T>(),
          a.errors.as<T>(),
          a.steps.as<int64_t>(),
          a.exact.as<double>(),
          a.maxiter,
          a.seed,
          a.tol,
          eps,
          a.squares,
          a.confirm};
}

// The memory of one solve.
template <typename T>
struct LanczosDenseMemory {
  const LanczosDenseLayout& at;
  double* start;

  CATAPULT_TEAM T* items(int64_t offset) const { return reinterpret_cast<T*>(start + offset); }
  CATAPULT_TEAM T* row(int64_t i) const { return items(at.basis) + i * at.n; }
  CATAPULT_TEAM T* locked(int64_t i) const { return items(at.locked) + i * at.n; }
  CATAPULT_TEAM T* fresh(int64_t i) const { return items(at.fresh) + i * at.n; }
  CATAPULT_TEAM T* alpha() const { return items(at.alpha); }
  CATAPULT_TEAM T* beta() const { return items(at.beta); }
  CATAPULT_TEAM double* theta() const { return start + at.theta; }
  CATAPULT_TEAM double* residual() const { return start + at.residual; }
  CATAPULT_TEAM int64_t* control() const { return reinterpret_cast<int64_t*>(start + at.control); }
};

// Squared norms of a vector before and after it is made orthogonal.
struct LanczosDenseSquares {
  double before, left;
};

template <typename T>
struct LanczosDenseStep {
  T alpha, beta;
};

}  // namespace catapult
