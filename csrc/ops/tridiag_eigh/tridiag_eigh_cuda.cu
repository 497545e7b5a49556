#include <algorithm>

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/tridiag_eigh/tridiag_eigh.hpp"
#include "ops/tridiag_eigh/tridiag_eigh_kernel.cuh"

namespace catapult {

void tridiag_eigh_cuda(const TridiagEighArgs& args, const Exec& exec) {
  constexpr const char* kOp = "tridiag_eigh";
  const int64_t replicas = args.alpha.size[0], m = args.alpha.size[1];
  const int64_t bytes = 4 * m * int64_t{sizeof(double)};
  const int64_t most = device::device_facts(exec, kOp).shared_per_block;
  check(bytes <= most, kOp, "m must be at most ", most / 32, " on this GPU, got ", m);
  // Up to four matrices share a block, as long as that leaves room for several blocks.
  const int64_t warps = std::clamp<int64_t>(16 * 1024 / bytes, 1, 4);
  dispatch_float(args.alpha.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const device::TridiagEighParams<T> params{
        args.alpha.as<T>(), args.beta.as<T>(), args.eigenvalues.as<T>(), args.first.as<T>(),
        args.last.as<T>(),  replicas,          static_cast<int>(m)};
    device::launch(&device::tridiag_eigh_kernel<T>,
                   {kOp, exec, dim3(static_cast<unsigned>((replicas + warps - 1) / warps)),
                    dim3(static_cast<unsigned>(32 * warps)), static_cast<size_t>(warps * bytes)},
                   params);
  });
}

}  // namespace catapult
