// What the forms of the toy model share: their records, the checks of their arguments, and the
// curvature records on CUDA.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

// What every form of the toy model records. A replica whose loss is not finite, or above the cut of
// toy_math.hpp, stops there; its later records hold the values of its last step before that.
struct ToyRecords {
  TensorView loss;         // (R, steps / record_every + 1) out
  TensorView weight_norm;  // same shape, out: sqrt(|U|^2 + |v|^2)
  TensorView diverged_at;  // (R,) int64 out: the step whose loss is not acceptable, -1 for none
  TensorView curvature;    // (R, steps / curvature_every + 1) out; (R, 0) when curvature_every = 0
  int64_t steps = 0;
  int64_t record_every = 1;
  int64_t curvature_every = 0;
};

// Shared by the forms: shapes, dtypes and contiguity of the records and of the problem.
void check_toy_problem(const char* op, const TensorView& x, const TensorView& y,
                       const TensorView& eta, int64_t replicas, Dtype dtype);
void check_toy_records(const char* op, const ToyRecords& records, int64_t replicas, Dtype dtype);

// On CUDA the forms store S and q at the curvature steps, or with an activation N W times the
// kernel and 0; this turns them into the curvatures.
struct ToyCurvatureArgs {
  const ToyRecords& records;
  TensorView x;
  double width;
  double* grams;   // (R, curvatures, blocks, order^2 + 1), followed by the rest of the workspace
  int64_t blocks;  // pieces of them to add up
  bool linear = true;
};

// A warp takes a curvature record, its `each` float64 entries of scratch in this much shared memory
// where they fit. Else these many warps have theirs in the workspace, at most 256 MiB.
constexpr int64_t kToyCurvatureShared = 48 * 1024;
int64_t toy_curvature_warps(int64_t records, int64_t each);
int64_t toy_curvature_workspace(int64_t records, int64_t blocks, int64_t samples, int64_t inputs,
                                bool linear = true);
void toy_curvature_cuda(const ToyCurvatureArgs& args, const Exec& exec);

}  // namespace catapult
