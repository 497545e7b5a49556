#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced_kernel.cuh"

namespace catapult {

void toy_gd_reduced_cuda(const ToyGdReducedArgs& args, const Exec& exec) {
  constexpr const char* kOp = "toy_gd_reduced";
  const int64_t replicas = args.w.size[0], inputs = args.w.size[1], samples = args.x.size[0];
  const int64_t limit = device::device_facts(exec, kOp).shared_per_block;
  const ToyRecords& r = args.records;
  dispatch_float(args.w.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const ToyReducedPlan plan = toy_reduced_plan(replicas, inputs, samples, sizeof(T), limit);
    check(plan.warps > 0, kOp, "the GPU kernel keeps 4 D + N numbers in ", limit,
          " bytes of shared memory, got D = ", inputs, ", N = ", samples);
    const int64_t blocks = (replicas + plan.warps - 1) / plan.warps;
    check(blocks <= INT32_MAX, kOp, "too many replicas for one launch: ", replicas);
    device::ToyReducedParams<T> params{};
    params.w = args.w.as<T>();
    params.s = args.s.as<T>();
    params.q = args.q.as<T>();
    params.x = args.x.as<T>();
    params.y = args.y.as<T>();
    params.eta = args.eta.as<T>();
    params.loss = r.loss.as<T>();
    params.weight_norm = r.weight_norm.as<T>();
    params.diverged_at = r.diverged_at.as<int64_t>();
    params.grams = args.workspace.as<double>();
    params.width = args.width;
    params.replicas = replicas;
    params.steps = r.steps;
    params.record_every = r.record_every;
    params.curvature_every = r.curvature_every;
    params.columns = r.loss.size[1];
    params.curvatures = r.curvature.size[1];
    params.inputs = static_cast<int>(inputs);
    params.samples = static_cast<int>(samples);
    params.resident = plan.resident;
    params.stage_x = plan.stage_x;
    device::launch(
        &device::toy_gd_reduced_kernel<T>,
        {kOp, exec, dim3(static_cast<unsigned>(blocks)),
         dim3(static_cast<unsigned>(32 * plan.warps)), static_cast<size_t>(plan.shared_bytes)},
        params);
  });
  if (r.curvature_every > 0)
    toy_curvature_cuda({r, args.x, args.width, args.workspace.as<double>(), 1}, exec);
}

}  // namespace catapult
