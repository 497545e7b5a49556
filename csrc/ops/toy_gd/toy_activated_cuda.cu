// PTX: ld.shared.v4

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/toy_gd/toy_activated.hpp"
#include "ops/toy_gd/toy_activated_config.hpp"
#include "ops/toy_gd/toy_activated_kernel.cuh"

namespace catapult {
namespace {

constexpr const char* kOp = "toy_gd";

ToyGdPlan plan_for(const ToyGdSizes& s, const Exec& exec) {
  const device::DeviceFacts facts = device::device_facts(exec, kOp);
  const ToyGdPlan plan =
      toy_activated_plan(s.replicas, s.width, s.inputs, s.samples, s.element_bytes,
                         facts.shared_per_block, facts.multiprocessors);
  check(plan.blocks > 0, kOp, "the GPU kernel keeps 10 N numbers in ", facts.shared_per_block,
        " bytes of shared memory, got N = ", s.samples);
  return plan;
}

// Doubles of workspace: those of the blocks that share a replica, these, and the kernels.
int64_t scratch_entries(const ToyGdPlan& plan, const ToyGdSizes& s) {
  const int64_t threads = plan.replicas_per_launch * plan.blocks * plan.threads;
  return (kToyActivatedScratch * s.samples * threads * s.element_bytes + 7) / 8;
}

template <typename T>
void run(const ToyGdArgs& args, const Exec& exec, const ToyGdSizes& sizes, const ToyGdPlan& plan) {
  device::ToyGdParams<T> params = device::toy_gd_params<T>(args, sizes, plan, sizes.samples);
  double* const scratch = params.partials + device::toy_gd_partials(plan, sizes.samples);
  double* const grams = scratch + scratch_entries(plan, sizes);
  params.scratch = reinterpret_cast<T*>(scratch);
  params.grams = grams;
  const auto kernel = plan.stage_x ? &device::toy_activated_kernel<T, true>
                                   : &device::toy_activated_kernel<T, false>;
  device::toy_gd_launch(kernel, kOp, plan, sizes.replicas, exec, params);
  if (args.records.curvature_every > 0)
    toy_curvature_cuda(
        {args.records, args.x, static_cast<double>(sizes.width), grams, plan.blocks, false}, exec);
}

}  // namespace

int64_t toy_activated_cuda_workspace(const ToyGdSizes& sizes, const Exec& exec) {
  const ToyGdPlan plan = plan_for(sizes, exec);
  return device::toy_gd_partials(plan, sizes.samples) + scratch_entries(plan, sizes) +
         toy_curvature_workspace(sizes.replicas * sizes.curvatures, plan.blocks, sizes.samples,
                                 sizes.inputs, false);
}

void toy_activated_cuda(const ToyGdArgs& args, const Exec& exec) {
  const ToyGdSizes sizes = toy_gd_sizes(args);
  const ToyGdPlan plan = plan_for(sizes, exec);
  dispatch_float(args.u.dtype, kOp,
                 [&](auto tag) { run<typename decltype(tag)::type>(args, exec, sizes, plan); });
}

}  // namespace catapult
