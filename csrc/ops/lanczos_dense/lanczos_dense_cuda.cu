// hot loop: ops/lanczos_dense/lanczos_dense_product.cuh

#include <limits>

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/lanczos_dense/lanczos_dense.hpp"
#include "ops/lanczos_dense/lanczos_dense_kernel.cuh"

namespace catapult {
namespace {

constexpr const char* kOp = "lanczos_dense";
constexpr int64_t kDouble = sizeof(double);

template <typename T>
void launch_dense(const LanczosDenseArgs& a, const Exec& exec) {
  const int64_t replicas = a.a.size[0], n = a.a.size[1], k = a.eigenvalues.size[1];
  const auto kernel = &device::lanczos_dense_kernel<T>;
  const int64_t most = device::device_facts(exec, kOp).shared_per_block;
  const int64_t item = sizeof(T);
  LanczosDenseDevice c = lanczos_dense_device(replicas, n, k, item, 1);
  const int64_t dots = device::GramSchmidtShared::entries(k + c.room);
  int64_t bytes = lanczos_dense_shared(c, dots) * kDouble;
  check(bytes <= most, kOp, "n = ", n, " and k = ", k, " need ", bytes,
        " bytes of shared memory, this GPU has ", most);
  // Half of the shared memory, so that two matrices share a multiprocessor.
  const bool copy = n < kLanczosDenseTeamFrom && bytes + n * n * item <= most / 2;
  if (copy) bytes += n * n * item;
  if (n >= kLanczosDenseTeamFrom)
    c = lanczos_dense_device(replicas, n, k, item,
                             device::resident_blocks(kernel, exec, c.threads, bytes, kOp));
  double* work = a.workspace.as<double>();
  const int64_t needed = c.teams * c.total + kLanczosDenseMaxBlocks;
  check(needed <= a.workspace.size[0], kOp, "workspace is too small: ", a.workspace.size[0]);
  if (c.team > 1) {
    const device::DeviceGuard guard(exec.device, kOp);
    device::check_cuda(cudaMemsetAsync(work, 0, static_cast<size_t>(c.teams) * sizeof(int),
                                       device::stream_of(exec)),
                       kOp, "clearing counters");
  }
  const device::LanczosDenseParams<T> params{
      lanczos_dense_problem<T>(a, std::numeric_limits<T>::epsilon()),
      work + kLanczosDenseMaxBlocks,
      reinterpret_cast<int*>(work),
      c,
      replicas,
      copy};
  device::launch(kernel,
                 {kOp, exec, dim3(static_cast<unsigned>(c.team * c.teams)),
                  dim3(static_cast<unsigned>(c.threads)), static_cast<size_t>(bytes), c.team > 1},
                 params);
}

}  // namespace

void lanczos_dense_cuda(const LanczosDenseArgs& args, const Exec& exec) {
  dispatch_float(args.a.dtype, kOp,
                 [&](auto tag) { launch_dense<typename decltype(tag)::type>(args, exec); });
}

}  // namespace catapult
