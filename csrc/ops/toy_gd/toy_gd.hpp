// R independent gradient descents of the two-layer network f(x) = v . phi(U x) / sqrt(W), all steps
// in one call: direct form, on the weights themselves.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"
#include "toy/toy_activation.hpp"
#include "toy/toy_records.hpp"

namespace catapult {

struct ToyGdArgs {
  TensorView u;    // (R, W, D) in and out
  TensorView v;    // (R, W) in and out
  TensorView x;    // (N, D)
  TensorView y;    // (N,)
  TensorView eta;  // (R,)
  ToyRecords records;
  TensorView workspace;  // float64, toy_gd_workspace() entries; unused on the CPU
  ToyActivation activation;
};

struct ToyGdSizes {
  int64_t replicas, width, inputs, samples, curvatures, element_bytes;
  bool linear;
};

inline ToyGdSizes toy_gd_sizes(const ToyGdArgs& a) {
  return {a.u.size[0],
          a.u.size[1],
          a.u.size[2],
          a.x.size[0],
          a.records.curvature.size[1],
          a.u.dtype == Dtype::kFloat32 ? 4 : 8,
          a.activation.linear()};
}

// Float64 entries of workspace for a run on exec.device.
int64_t toy_gd_workspace(const ToyGdSizes& sizes, const Exec& exec);

void toy_gd(const ToyGdArgs& args, const Exec& exec);

// The linear network; toy_activated.hpp has the others.
void toy_gd_cpu(const ToyGdArgs& args, const Exec& exec);
void toy_gd_cuda(const ToyGdArgs& args, const Exec& exec);
int64_t toy_gd_cuda_workspace(const ToyGdSizes& sizes, const Exec& exec);

}  // namespace catapult
