// One step of the Lanczos recurrence with full reorthogonalisation, for an operator that is only
// known through its products: w = A q_step goes in, alpha, beta and the next basis vector come out.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

struct LanczosStepArgs {
  TensorView basis;         // (R, M, n) rows [0, rows) orthonormal; row `rows` is written
  TensorView alpha;         // (R, m) alpha[:, step] is written
  TensorView beta;          // (R, m) beta[:, step] is written
  TensorView w;             // (R, n) A q_step
  TensorView coefficients;  // (R, rows) out: the projections Q w; null data: not wanted
  TensorView workspace;     // float64, at least lanczos_step_workspace() entries
  int64_t step = 0;
  int64_t rows = 0;        // basis rows to orthogonalise against
  double breakdown = 0.0;  // a remainder of at most breakdown * ||A|| counts as zero
};

// Float64 entries of workspace for R replicas of size n and `rows` basis rows.
int64_t lanczos_step_workspace(int64_t replicas, int64_t n, int64_t rows, const Exec& exec);

void lanczos_step(const LanczosStepArgs& args, const Exec& exec);

void lanczos_step_cpu(const LanczosStepArgs& args, const Exec& exec);
void lanczos_step_cuda(const LanczosStepArgs& args, const Exec& exec);

}  // namespace catapult
