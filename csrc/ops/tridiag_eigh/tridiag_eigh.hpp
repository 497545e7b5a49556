// Eigenvalues of small symmetric tridiagonal matrices, with the first and last components of the
// eigenvectors: what Lanczos needs to judge convergence.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

struct TridiagEighArgs {
  TensorView alpha;        // (R, m) diagonals
  TensorView beta;         // (R, m - 1) off-diagonals
  TensorView eigenvalues;  // (R, m) out, ascending; NaN where the input is not finite
  TensorView first;        // (R, m) out, first components of the normalised eigenvectors
  TensorView last;         // (R, m) out, last components
};

void tridiag_eigh(const TridiagEighArgs& args, const Exec& exec);

void tridiag_eigh_cpu(const TridiagEighArgs& args, const Exec& exec);
void tridiag_eigh_cuda(const TridiagEighArgs& args, const Exec& exec);

}  // namespace catapult
