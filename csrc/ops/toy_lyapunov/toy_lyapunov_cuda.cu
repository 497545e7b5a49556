#include "core/cuda/launch.cuh"
#include "ops/toy_lyapunov/toy_lyapunov.hpp"
#include "ops/toy_lyapunov/toy_lyapunov_kernel.cuh"

namespace catapult {

void toy_lyapunov_cuda(const ToyLyapunovArgs& args, const Exec& exec) {
  constexpr const char* kOp = "toy_lyapunov";
  constexpr int64_t kThreads = 128;
  const int64_t cases = args.growth.size[0], paths = args.growth.size[1];
  const int64_t groups = (cases + kToyLyapunovGroup - 1) / kToyLyapunovGroup;
  check(groups <= INT32_MAX / paths * kThreads, kOp,
        "too many cases and paths for one launch: ", cases, " x ", paths);
  const int64_t blocks = (groups * paths + kThreads - 1) / kThreads;
  const device::ToyLyapunovParams params{args.mean.as<double>(),
                                         args.deviation.as<double>(),
                                         args.beta.as<double>(),
                                         args.growth.as<double>(),
                                         cases,
                                         paths,
                                         args.steps,
                                         args.burn_in,
                                         args.first_path,
                                         args.seed,
                                         static_cast<ToyLyapunovNoise>(args.noise)};
  device::launch(
      &device::toy_lyapunov_kernel,
      {kOp, exec, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(kThreads))},
      params);
}

}  // namespace catapult
