#include "toy/toy_records.hpp"

#include <algorithm>

#include "toy/toy_math.hpp"

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

}  // namespace catapult
