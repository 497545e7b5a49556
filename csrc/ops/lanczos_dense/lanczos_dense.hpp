// The k largest eigenvalues of R explicit symmetric matrices, with their vectors and error bounds.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

struct LanczosDenseArgs {
  TensorView a;             // (R, n, n); only the lower triangle is read
  TensorView v0;            // (R, n) start vectors; null data: random
  TensorView eigenvalues;   // (R, k) out, descending
  TensorView eigenvectors;  // (R, k, n) out
  TensorView errors;        // (R, k) out, bounds of the absolute errors
  TensorView steps;         // (R,) int64 out, products with the matrix
  TensorView exact;         // CPU only, (R, k, 4) float64 out or null: eigenvalues, residual norms,
                            // the largest |Ritz value| met and a bound proved from above, or inf
  TensorView workspace;     // float64, at least lanczos_dense_workspace() entries
  double tol = 0.0;
  int64_t maxiter = 0;
  int64_t seed = 0;
  double squares = 0.0;  // CPU, k = 1: at least |A|_F^2, to prove a bound by; 0: no proof
  bool confirm = true;   // a few steps more, for callers that prove nothing; false: CPU, k = 1 only
};

// Float64 entries of workspace for matrices of `dtype`.
int64_t lanczos_dense_workspace(int64_t replicas, int64_t n, int64_t k, Dtype dtype,
                                const Exec& exec);

void lanczos_dense(const LanczosDenseArgs& args, const Exec& exec);

void lanczos_dense_cpu(const LanczosDenseArgs& args, const Exec& exec);
void lanczos_dense_cuda(const LanczosDenseArgs& args, const Exec& exec);

// The largest eigenvalue of each matrix with a proven error, on the CPU.
struct CertifiedTopArgs {
  TensorView a;          // (R, n, n)
  TensorView vectors;    // (R, n) out, unit length
  TensorView numbers;    // (R, 3) float64 out: eigenvalue, residual norm, error; NaN: not proved
  TensorView products;   // (R,) int64 out, with the matrix
  TensorView workspace;  // float64, at least certified_top_workspace() entries
  double tol = 0.0;
  int64_t maxiter = 0;
  int64_t seed = 0;
};

// Float64 entries of workspace for matrices of `dtype`.
int64_t certified_top_workspace(int64_t replicas, int64_t n, Dtype dtype, int threads);

void certified_top(const CertifiedTopArgs& args, int threads);

}  // namespace catapult
