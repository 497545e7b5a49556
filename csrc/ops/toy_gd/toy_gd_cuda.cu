#include <algorithm>
#include <cmath>

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/toy_gd/toy_activated_kernel.cuh"
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
                                     s.linear, facts.shared_per_block, facts.multiprocessors);
  check(plan.blocks > 0, kOp, "the GPU kernel keeps ", s.linear ? "10 D + N" : "10 N",
        " numbers in ", facts.shared_per_block, " bytes of shared memory, got D = ", s.inputs,
        ", N = ", s.samples);
  return plan;
}

int64_t sums(const ToyGdSizes& s) { return s.linear ? s.inputs : s.samples; }

// Doubles of workspace, in this order.
int64_t partial_entries(const ToyGdPlan& plan, const ToyGdSizes& s) {
  return plan.blocks == 1 ? 0 : 2 * plan.replicas_per_launch * plan.blocks * (sums(s) + 2);
}
int64_t scratch_entries(const ToyGdPlan& plan, const ToyGdSizes& s) {
  const int64_t threads = plan.replicas_per_launch * plan.blocks * plan.threads;
  return s.linear ? 0 : (kToyGdScratch * s.samples * threads * s.element_bytes + 7) / 8;
}

template <typename T>
void run(const ToyGdArgs& args, const Exec& exec, const ToyGdSizes& sizes, const ToyGdPlan& plan) {
  const ToyRecords& r = args.records;
  double* const partials = args.workspace.as<double>();
  double* const scratch = partials + partial_entries(plan, sizes);
  double* const grams = scratch + scratch_entries(plan, sizes);
  device::ToyGdParams<T> params{};
  params.u = args.u.as<T>();
  params.v = args.v.as<T>();
  params.x = args.x.as<T>();
  params.y = args.y.as<T>();
  params.eta = args.eta.as<T>();
  params.loss = r.loss.as<T>();
  params.weight_norm = r.weight_norm.as<T>();
  params.diverged_at = r.diverged_at.as<int64_t>();
  params.partials = partials;
  params.grams = grams;
  params.scratch = reinterpret_cast<T*>(scratch);
  params.width = sizes.width;
  params.rows = plan.rows;
  params.steps = r.steps;
  params.record_every = r.record_every;
  params.curvature_every = r.curvature_every;
  params.columns = r.loss.size[1];
  params.curvatures = r.curvature.size[1];
  params.inputs = static_cast<int>(sizes.inputs);
  params.samples = static_cast<int>(sizes.samples);
  params.blocks = static_cast<int>(plan.blocks);
  params.sums = static_cast<int>(sums(sizes));
  params.batches = static_cast<int>(toy_gd_batches(sizes.samples));
  params.lookers = params.batches == 1 ? 1 : plan.threads / device::kWarpSize;
  params.inverse_samples = 1.0 / static_cast<double>(sizes.samples);
  params.inverse_root_width = static_cast<T>(1.0 / std::sqrt(static_cast<double>(sizes.width)));
  params.resident = plan.resident;
  params.stage_x = plan.stage_x;
  params.phi = args.activation;
  for (int64_t first = 0; first < sizes.replicas; first += plan.replicas_per_launch) {
    const int64_t count = std::min(plan.replicas_per_launch, sizes.replicas - first);
    params.first = first;
    const auto kernel = !sizes.linear          ? &device::toy_activated_kernel<T>
                        : plan.registers == 8  ? &device::toy_gd_registers_kernel<T, 8>
                        : plan.registers == 16 ? &device::toy_gd_registers_kernel<T, 16>
                        : plan.registers == 32 ? &device::toy_gd_registers_kernel<T, 32>
                                               : &device::toy_gd_kernel<T>;
    device::launch(kernel,
                   {kOp, exec, dim3(static_cast<unsigned>(count * plan.blocks)),
                    dim3(static_cast<unsigned>(plan.threads)),
                    static_cast<size_t>(plan.shared_bytes), plan.blocks > 1},
                   params);
  }
  if (r.curvature_every > 0)
    toy_curvature_cuda(
        {r, args.x, static_cast<double>(sizes.width), grams, plan.blocks, sizes.linear}, exec);
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
  return partial_entries(plan, sizes) + scratch_entries(plan, sizes) +
         toy_curvature_workspace(sizes.replicas * sizes.curvatures, plan.blocks, sizes.samples,
                                 sizes.inputs, sizes.linear);
}

void toy_gd_cuda(const ToyGdArgs& args, const Exec& exec) {
  const ToyGdSizes sizes = toy_gd_sizes(args);
  const ToyGdPlan plan = plan_for(sizes, exec);
  dispatch_float(args.u.dtype, kOp,
                 [&](auto tag) { run<typename decltype(tag)::type>(args, exec, sizes, plan); });
}

}  // namespace catapult
