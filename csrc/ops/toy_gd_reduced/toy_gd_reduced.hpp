// The toy model of toy_gd in the closed state w = U'v, S = U'U, q = v.v: exact for the linear
// network, and its cost does not depend on the width, which is only a number here.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"
#include "ops/toy_gd/toy_gd.hpp"

namespace catapult {

struct ToyGdReducedArgs {
  TensorView w;    // (R, D) in and out
  TensorView s;    // (R, D, D) symmetric, in and out; the upper triangle is read
  TensorView q;    // (R,) in and out
  TensorView x;    // (N, D)
  TensorView y;    // (N,)
  TensorView eta;  // (R,)
  double width;
  ToyRecords records;
  TensorView workspace;  // float64, toy_gd_reduced_workspace() entries; unused on the CPU
};

// Float64 entries of workspace for a run on exec.device.
int64_t toy_gd_reduced_workspace(int64_t replicas, int64_t inputs, int64_t samples,
                                 int64_t curvatures, const Exec& exec);

void toy_gd_reduced(const ToyGdReducedArgs& args, const Exec& exec);

void toy_gd_reduced_cpu(const ToyGdReducedArgs& args, const Exec& exec);
void toy_gd_reduced_cuda(const ToyGdReducedArgs& args, const Exec& exec);

}  // namespace catapult
