// R independent gradient descents of the two-layer linear network f(x) = v . U x / sqrt(W), all
// steps in one call: direct form, on the weights themselves.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

// What every form of the toy model records. A replica whose loss is not finite, or above the cut of
// toy_gd_math.hpp, stops there; its later records hold the values of its last step before that.
struct ToyRecords {
  TensorView loss;         // (R, steps / record_every + 1) out
  TensorView weight_norm;  // same shape, out: sqrt(|U|^2 + |v|^2)
  TensorView diverged_at;  // (R,) int64 out: the step whose loss is not acceptable, -1 for none
  TensorView curvature;    // (R, steps / curvature_every + 1) out; (R, 0) when curvature_every = 0
  int64_t steps = 0;
  int64_t record_every = 1;
  int64_t curvature_every = 0;
};

struct ToyGdArgs {
  TensorView u;    // (R, W, D) in and out
  TensorView v;    // (R, W) in and out
  TensorView x;    // (N, D)
  TensorView y;    // (N,)
  TensorView eta;  // (R,)
  ToyRecords records;
};

// Shared by the forms: shapes, dtypes and contiguity of the records and of the problem.
void check_toy_problem(const char* op, const TensorView& x, const TensorView& y,
                       const TensorView& eta, int64_t replicas, Dtype dtype);
void check_toy_records(const char* op, const ToyRecords& records, int64_t replicas, Dtype dtype);

void toy_gd(const ToyGdArgs& args, const Exec& exec);

void toy_gd_cpu(const ToyGdArgs& args, const Exec& exec);
void toy_gd_cuda(const ToyGdArgs& args, const Exec& exec);

}  // namespace catapult
