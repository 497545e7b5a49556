#include <limits>

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/lanczos_step/lanczos_step.hpp"
#include "ops/lanczos_step/lanczos_step_config.hpp"
#include "ops/lanczos_step/lanczos_step_kernel.cuh"

namespace catapult {
namespace {

constexpr const char* kOp = "lanczos_step";

template <typename T>
void launch_step(const LanczosStepArgs& a, const Exec& exec) {
  const int64_t replicas = a.basis.size[0], n = a.basis.size[2];
  const auto kernel = &device::lanczos_step_kernel<T>;
  const int64_t bytes =
      device::GramSchmidtShared::entries(a.rows) * static_cast<int64_t>(sizeof(double));
  const int64_t most = device::device_facts(exec, kOp).shared_per_block;
  check(bytes <= most, kOp, "rows must be at most ", most / 24 - 200, " on this GPU, got ", a.rows);
  const int64_t resident =
      device::resident_blocks(kernel, exec, device::kLanczosStepThreads, bytes, kOp);
  const LanczosStepTeams c = lanczos_step_teams(replicas, n, resident);
  double* work = a.workspace.as<double>();
  double* parts = work + kLanczosStepMaxBlocks;
  if (c.team > 1) {
    const device::DeviceGuard guard(exec.device, kOp);
    device::check_cuda(cudaMemsetAsync(work, 0, static_cast<size_t>(c.teams) * sizeof(int),
                                       device::stream_of(exec)),
                       kOp, "clearing counters");
  }
  const device::LanczosStepParams<T> params{a.basis.as<T>(),
                                            a.alpha.as<T>(),
                                            a.beta.as<T>(),
                                            a.w.as<T>(),
                                            a.coefficients.as<T>(),
                                            parts,
                                            reinterpret_cast<int*>(work),
                                            replicas,
                                            a.basis.size[1],
                                            n,
                                            a.alpha.size[1],
                                            a.beta.size[1],
                                            c.chunk,
                                            static_cast<int>(c.team),
                                            static_cast<int>(a.rows),
                                            static_cast<int>(a.step),
                                            a.breakdown,
                                            4.0 * std::numeric_limits<T>::epsilon()};
  device::launch(kernel,
                 {kOp, exec, dim3(static_cast<unsigned>(c.team * c.teams)),
                  dim3(device::kLanczosStepThreads), static_cast<size_t>(bytes), c.team > 1},
                 params);
}

}  // namespace

void lanczos_step_cuda(const LanczosStepArgs& args, const Exec& exec) {
  dispatch_float(args.basis.dtype, kOp,
                 [&](auto tag) { launch_step<typename decltype(tag)::type>(args, exec); });
}

}  // namespace catapult
