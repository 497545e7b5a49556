#include "ops/toy_gd/toy_gd.hpp"

#include "ops/toy_gd/toy_activated.hpp"

namespace catapult {

int64_t toy_gd_workspace(const ToyGdSizes& sizes, const Exec& exec) {
  if (exec.on_cpu() || sizes.replicas == 0) return 0;
  return sizes.linear ? toy_gd_cuda_workspace(sizes, exec)
                      : toy_activated_cuda_workspace(sizes, exec);
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
  const bool linear = a.activation.linear();
  if (exec.on_cpu()) {
    linear ? toy_gd_cpu(a, exec) : toy_activated_cpu(a, exec);
  } else {
    linear ? toy_gd_cuda(a, exec) : toy_activated_cuda(a, exec);
  }
}

}  // namespace catapult
