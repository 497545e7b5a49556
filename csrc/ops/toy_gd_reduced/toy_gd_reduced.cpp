#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"

namespace catapult {

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
  if (exec.on_cpu()) {
    toy_gd_reduced_cpu(a, exec);
  } else {
    toy_gd_reduced_cuda(a, exec);
  }
}

}  // namespace catapult
