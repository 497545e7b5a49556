#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/toy_scalar/toy_scalar.hpp"
#include "ops/toy_scalar/toy_scalar_kernel.cuh"

namespace catapult {

void toy_scalar_cuda(const ToyScalarArgs& args, const Exec& exec) {
  constexpr const char* kOp = "toy_scalar";
  constexpr int64_t kThreads = 128;
  const int64_t lanes = args.h.size[0];
  const int64_t blocks = (lanes + kThreads - 1) / kThreads;
  check(blocks <= INT32_MAX, kOp, "too many lanes for one launch: ", lanes);
  dispatch_float(args.h.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const device::ToyScalarParams<T> params{args.h.as<T>(),
                                            args.k.as<T>(),
                                            args.b.as<T>(),
                                            args.beta.as<T>(),
                                            args.peak.as<T>(),
                                            args.peak_step.as<int64_t>(),
                                            args.diverged_at.as<int64_t>(),
                                            args.record_a.as<T>(),
                                            args.record_v.as<T>(),
                                            lanes,
                                            args.steps,
                                            args.record_every,
                                            args.record_a.size[1],
                                            args.early_exit};
    device::launch(
        &device::toy_scalar_kernel<T>,
        {kOp, exec, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(kThreads))},
        params);
  });
}

}  // namespace catapult
