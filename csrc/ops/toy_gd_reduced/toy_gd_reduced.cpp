#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"

namespace catapult {

int64_t toy_gd_reduced_workspace(int64_t replicas, int64_t inputs, int64_t samples,
                                 int64_t curvatures, const Exec& exec) {
  return exec.on_cpu() ? 0 : toy_curvature_workspace(replicas * curvatures, 1, samples, inputs);
}

void toy_gd_reduced(const ToyGdReducedArgs& a, const Exec& exec) {
  constexpr const char* kOp = "toy_gd_reduced";
  const Dtype dtype = a.w.dtype;
  check_dense(kOp, "w", a.w, 2, dtype);
  const int64_t replicas = a.w.size[0], inputs = a.w.size[1];
  check_dense(kOp, "S", a.s, 3, dtype);
  check_size(kOp, "S", a.s, 0, replicas);
  check_size(kOp, "S", a.s, 1, inputs);
  check_size(kOp, "S", a.s, 2, inputs);
  check_dense(kOp, "q", a.q, 1, dtype);
  check_size(kOp, "q", a.q, 0, replicas);
  check(a.width >= 1.0 && a.width <= 1e18, kOp, "width must be in [1, 1e18], got ", a.width);
  check_toy_problem(kOp, a.x, a.y, a.eta, replicas, dtype);
  check_size(kOp, "x", a.x, 1, inputs);
  check_toy_records(kOp, a.records, replicas, dtype);
  if (replicas == 0) return;
  const int64_t wanted =
      toy_gd_reduced_workspace(replicas, inputs, a.x.size[0], a.records.curvature.size[1], exec);
  check_dense(kOp, "workspace", a.workspace, 1, Dtype::kFloat64);
  check(a.workspace.size[0] >= wanted, kOp, "workspace must hold ", wanted, " numbers, got ",
        a.workspace.size[0]);
  if (exec.on_cpu()) {
    toy_gd_reduced_cpu(a, exec);
  } else {
    toy_gd_reduced_cuda(a, exec);
  }
}

}  // namespace catapult
