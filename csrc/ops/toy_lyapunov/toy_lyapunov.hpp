// Growth of heavy ball on a quadratic whose curvature is drawn again at every step:
//   x' = (1 + beta - mean - deviation z) x - beta y,  y' = x,   z of mean 0 and variance 1.
// Case r and path p share nothing but the draws z(p, t), which all cases of a path have in common.
#pragma once

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

enum class ToyLyapunovNoise : int64_t { kNormal = 0, kUniform = 1, kTwoPoint = 2 };

struct ToyLyapunovArgs {
  TensorView mean;       // (R,) learning rate times mean curvature
  TensorView deviation;  // (R,) learning rate times standard deviation of the curvature
  TensorView beta;       // (R,) heavy-ball momentum
  TensorView growth;     // (R, P) out: log |(x, y)| after the last step less that after burn_in
  int64_t steps = 0;
  int64_t burn_in = 0;
  int64_t first_path = 0;
  int64_t seed = 0;
  int64_t noise = 0;  // a ToyLyapunovNoise
};

void toy_lyapunov(const ToyLyapunovArgs& args, const Exec& exec);

void toy_lyapunov_cpu(const ToyLyapunovArgs& args, const Exec& exec);
void toy_lyapunov_cuda(const ToyLyapunovArgs& args, const Exec& exec);

}  // namespace catapult
