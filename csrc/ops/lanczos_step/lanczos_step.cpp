#include "ops/lanczos_step/lanczos_step.hpp"

#include "ops/lanczos_step/lanczos_step_config.hpp"

namespace catapult {
namespace {
constexpr const char* kOp = "lanczos_step";
}

int64_t lanczos_step_workspace(int64_t replicas, int64_t n, int64_t rows, const Exec& exec) {
  if (!exec.on_cpu()) return lanczos_step_device_workspace(replicas, rows);
  return replicas * lanczos_step_config(n, rows).per_replica;
}

void lanczos_step(const LanczosStepArgs& a, const Exec& exec) {
  const Dtype dtype = a.basis.dtype;
  check(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, kOp, "needs float32 or float64, got ",
        dtype_name(dtype));
  check_dense(kOp, "basis", a.basis, 3, dtype);
  check_dense(kOp, "alpha", a.alpha, 2, dtype);
  check_dense(kOp, "beta", a.beta, 2, dtype);
  check_dense(kOp, "w", a.w, 2, dtype);
  check_dense(kOp, "workspace", a.workspace, 1, Dtype::kFloat64);
  const int64_t replicas = a.basis.size[0], n = a.basis.size[2];
  check(n >= 1, kOp, "basis vectors must have at least one entry, got ", n);
  check(a.rows >= 1 && a.rows < a.basis.size[1], kOp, "rows must be in [1, ", a.basis.size[1] - 1,
        "], got ", a.rows);
  check(a.step >= 0 && a.step < a.rows, kOp, "step must be in [0, ", a.rows - 1, "], got ", a.step);
  const TensorView* scalars[] = {&a.alpha, &a.beta};
  for (const TensorView* t : scalars) {
    check_size(kOp, "alpha or beta", *t, 0, replicas);
    check(t->size[1] > a.step, kOp, "alpha and beta need more than ", a.step, " columns, got ",
          t->size[1]);
  }
  check_size(kOp, "w", a.w, 0, replicas);
  check_size(kOp, "w", a.w, 1, n);
  if (a.coefficients.data != nullptr) {
    check_dense(kOp, "coefficients", a.coefficients, 2, dtype);
    check_size(kOp, "coefficients", a.coefficients, 0, replicas);
    check_size(kOp, "coefficients", a.coefficients, 1, a.rows);
  }
  check(a.workspace.size[0] >= lanczos_step_workspace(replicas, n, a.rows, exec), kOp,
        "workspace is too small: ", a.workspace.size[0]);
  if (replicas == 0) return;
  if (exec.on_cpu()) {
    lanczos_step_cpu(a, exec);
  } else {
    lanczos_step_cuda(a, exec);
  }
}

}  // namespace catapult
