#include "ops/toy_gd/toy_gd.hpp"

#include <algorithm>

#include "ops/toy_gd/toy_gd_math.hpp"

namespace catapult {

void check_toy_problem(const char* op, const TensorView& x, const TensorView& y,
                       const TensorView& eta, int64_t replicas, Dtype dtype) {
  check(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, op, "needs float32 or float64, got ",
        dtype_name(dtype));
  check_dense(op, "x", x, 2, dtype);
  check(x.size[0] >= 1 && x.size[1] >= 1, op, "x must not be empty, got (", x.size[0], ", ",
        x.size[1], ")");
  check_dense(op, "y", y, 1, dtype);
  check_size(op, "y", y, 0, x.size[0]);
  check_dense(op, "eta", eta, 1, dtype);
  check_size(op, "eta", eta, 0, replicas);
}

void check_toy_records(const char* op, const ToyRecords& records, int64_t replicas, Dtype dtype) {
  check(records.steps >= 0, op, "steps must be >= 0, got ", records.steps);
  check(records.record_every >= 1, op, "record_every must be >= 1, got ", records.record_every);
  check(records.curvature_every >= 0, op, "curvature_every must be >= 0, got ",
        records.curvature_every);
  constexpr int64_t kMost = int64_t{1} << 62;  // the next step to record is at most twice as much
  const int64_t longest = std::max({records.steps, records.record_every, records.curvature_every});
  check(longest <= kMost, op, "steps and strides of records must be at most 2^62, got ", longest);
  const int64_t columns = records.steps / records.record_every + 1;
  check_dense(op, "loss", records.loss, 2, dtype);
  check_size(op, "loss", records.loss, 0, replicas);
  check_size(op, "loss", records.loss, 1, columns);
  check_dense(op, "weight_norm", records.weight_norm, 2, dtype);
  check_size(op, "weight_norm", records.weight_norm, 0, replicas);
  check_size(op, "weight_norm", records.weight_norm, 1, columns);
  check_dense(op, "diverged_at", records.diverged_at, 1, Dtype::kInt64);
  check_size(op, "diverged_at", records.diverged_at, 0, replicas);
  check_dense(op, "curvature", records.curvature, 2, dtype);
  check_size(op, "curvature", records.curvature, 0, replicas);
  check_size(op, "curvature", records.curvature, 1,
             records.curvature_every > 0 ? records.steps / records.curvature_every + 1 : 0);
}

int64_t toy_curvature_warps(int64_t records, int64_t each) {
  if (8 * each <= kToyCurvatureShared) return 0;
  return std::clamp<int64_t>((int64_t{1} << 25) / each, 1, std::min<int64_t>(records, 1 << 12));
}

int64_t toy_curvature_workspace(int64_t records, int64_t blocks, int64_t samples, int64_t inputs,
                                bool linear) {
  if (records == 0) return 0;
  const ToyCurvatureSizes sizes(samples, inputs, linear);
  return records * blocks * sizes.stored() + sizes.data +
         toy_curvature_warps(records, sizes.each) * sizes.each;
}

int64_t toy_gd_workspace(const ToyGdSizes& sizes, const Exec& exec) {
  return exec.on_cpu() || sizes.replicas == 0 ? 0 : toy_gd_cuda_workspace(sizes, exec);
}

void toy_gd(const ToyGdArgs& a, const Exec& exec) {
  constexpr const char* kOp = "toy_gd";
  const Dtype dtype = a.u.dtype;
  check_dense(kOp, "U", a.u, 3, dtype);
  const int64_t replicas = a.u.size[0], width = a.u.size[1];
  check(width >= 1, kOp, "U must have width >= 1, got ", width);
  check_dense(kOp, "v", a.v, 2, dtype);
  check_size(kOp, "v", a.v, 0, replicas);
  check_size(kOp, "v", a.v, 1, width);
  check_toy_problem(kOp, a.x, a.y, a.eta, replicas, dtype);
  check_size(kOp, "x", a.x, 1, a.u.size[2]);
  check_toy_records(kOp, a.records, replicas, dtype);
  check(a.activation.kind >= Activation::kLinear && a.activation.kind < Activation::kCount, kOp,
        "no activation has the number ", static_cast<int64_t>(a.activation.kind));
  if (replicas == 0) return;
  const int64_t wanted = toy_gd_workspace(toy_gd_sizes(a), exec);
  check_dense(kOp, "workspace", a.workspace, 1, Dtype::kFloat64);
  check(a.workspace.size[0] >= wanted, kOp, "workspace must hold ", wanted, " numbers, got ",
        a.workspace.size[0]);
  if (exec.on_cpu()) {
    toy_gd_cpu(a, exec);
  } else {
    toy_gd_cuda(a, exec);
  }
}

}  // namespace catapult
