#include <algorithm>

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/toy_gd/toy_gd.hpp"
#include "ops/toy_gd/toy_gd_config.hpp"
#include "ops/toy_gd/toy_gd_kernel.cuh"
#include "ops/toy_gd/toy_gd_registers.cuh"
#include "toy/toy_curvature_kernel.cuh"

namespace catapult {
namespace {

constexpr const char* kOp = "toy_gd";

ToyGdPlan plan_for(const ToyGdSizes& s, const Exec& exec) {
  const device::DeviceFacts facts = device::device_facts(exec, kOp);
  const ToyGdPlan plan = toy_gd_plan(s.replicas, s.width, s.inputs, s.samples, s.element_bytes,
                                     facts.shared_per_block, facts.multiprocessors);
  check(plan.blocks > 0, kOp, "the GPU kernel keeps 10 D + N numbers in ", facts.shared_per_block,
        " bytes of shared memory, got D = ", s.inputs, ", N = ", s.samples);
  return plan;
}

template <typename T>
void run(const ToyGdArgs& args, const Exec& exec, const ToyGdSizes& sizes, const ToyGdPlan& plan) {
  double* const grams = args.workspace.as<double>() + device::toy_gd_partials(plan, sizes.inputs);
  device::ToyGdParams<T> params = device::toy_gd_params<T>(args, sizes, plan, sizes.inputs);
  params.grams = grams;
  params.batches = static_cast<int>(toy_gd_batches(sizes.samples));
  params.lookers = params.batches == 1 ? 1 : plan.threads / device::kWarpSize;
  const auto kernel = plan.registers == 8    ? &device::toy_gd_registers_kernel<T, 8>
                      : plan.registers == 16 ? &device::toy_gd_registers_kernel<T, 16>
                      : plan.registers == 32 ? &device::toy_gd_registers_kernel<T, 32>
                                             : &device::toy_gd_kernel<T>;
  device::toy_gd_launch(kernel, kOp, plan, sizes.replicas, exec, params);
  if (args.records.curvature_every > 0)
    toy_curvature_cuda({args.records, args.x, static_cast<double>(sizes.width), grams, plan.blocks},
                       exec);
}

}  // namespace

void toy_curvature_cuda(const ToyCurvatureArgs& a, const Exec& exec) {
  const ToyRecords& r = a.records;
  const int64_t samples = a.x.size[0], inputs = a.x.size[1];
  const int64_t records = r.curvature.numel();
  const ToyCurvatureSizes sizes(samples, inputs, a.linear);
  const int64_t limited = toy_curvature_warps(records, sizes.each), bytes = 8 * sizes.each;
  const int64_t warps = limited > 0 ? 1 : std::min<int64_t>(kToyCurvatureShared / bytes, 4);
  double* const data = a.grams + records * a.blocks * sizes.stored();
  dispatch_float(a.x.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto blocks = [](int64_t items, int64_t size) {
      return dim3(static_cast<unsigned>(std::min<int64_t>((items + size - 1) / size, 1 << 16)));
    };
    if (a.linear)
      device::launch(&device::toy_curvature_data_kernel<T>,
                     {kOp, exec, blocks(sizes.data, 128), dim3(128)}, a.x.as<T>(),
                     static_cast<int>(samples), static_cast<int>(inputs), data);
    const device::ToyCurvatureParams<T> params{a.grams,
                                               data,
                                               data + sizes.data,
                                               r.diverged_at.as<int64_t>(),
                                               r.curvature.as<T>(),
                                               a.width,
                                               records,
                                               r.curvature.size[1],
                                               r.curvature_every,
                                               static_cast<int>(inputs),
                                               static_cast<int>(samples),
                                               static_cast<int>(a.blocks),
                                               a.linear};
    const auto kernel = limited > 0 ? &device::toy_curvature_kernel<T, false>
                                    : &device::toy_curvature_kernel<T, true>;
    device::launch(kernel,
                   {kOp, exec, blocks(limited > 0 ? limited : records, warps),
                    dim3(static_cast<unsigned>(device::kWarpSize * warps)),
                    static_cast<size_t>(limited > 0 ? 0 : warps * bytes)},
                   params);
  });
}

int64_t toy_gd_cuda_workspace(const ToyGdSizes& sizes, const Exec& exec) {
  const ToyGdPlan plan = plan_for(sizes, exec);
  return device::toy_gd_partials(plan, sizes.inputs) +
         toy_curvature_workspace(sizes.replicas * sizes.curvatures, plan.blocks, sizes.samples,
                                 sizes.inputs);
}

void toy_gd_cuda(const ToyGdArgs& args, const Exec& exec) {
  const ToyGdSizes sizes = toy_gd_sizes(args);
  const ToyGdPlan plan = plan_for(sizes, exec);
  dispatch_float(args.u.dtype, kOp,
                 [&](auto tag) { run<typename decltype(tag)::type>(args, exec, sizes, plan); });
}

}  // namespace catapult
