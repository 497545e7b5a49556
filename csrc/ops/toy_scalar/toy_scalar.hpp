// The one-sample toy model of any width, exactly, as two numbers per lane: h k = eta |x| f /
// sqrt(W) and h^2 + k^2 = eta lambda. With a = h k - b the residual, b the label, one step is
//   h' = h - a k,  k' = k - a h.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

struct ToyScalarArgs {
  TensorView h;          // (R,) in and out; a lane that diverged keeps its last accepted state
  TensorView k;          // (R,) in and out
  TensorView b;          // (R,) labels
  TensorView beta;       // (R,) heavy-ball momentum; null data: none
  TensorView peak;       // (R,) out: largest a^2 over the accepted steps
  TensorView peak_step;  // (R,) int64 out
  TensorView
      diverged_at;      // (R,) int64 out: first step with a^2 beyond the cut or not finite, or -1
  TensorView record_a;  // (R, steps / record_every + 1) out; (R, 0) when record_every = 0
  TensorView record_v;  // same shape, out: h^2 + k^2
  int64_t steps = 0;
  int64_t record_every = 0;
  bool early_exit = true;  // lanes that rounding has frozen leave early; not while recording
};

void toy_scalar(const ToyScalarArgs& args, const Exec& exec);

void toy_scalar_cpu(const ToyScalarArgs& args, const Exec& exec);
void toy_scalar_cuda(const ToyScalarArgs& args, const Exec& exec);

}  // namespace catapult
