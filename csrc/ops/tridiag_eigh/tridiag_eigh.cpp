#include "ops/tridiag_eigh/tridiag_eigh.hpp"

namespace catapult {

void tridiag_eigh(const TridiagEighArgs& a, const Exec& exec) {
  constexpr const char* kOp = "tridiag_eigh";
  const Dtype dtype = a.alpha.dtype;
  check(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, kOp, "needs float32 or float64, got ",
        dtype_name(dtype));
  check_dense(kOp, "alpha", a.alpha, 2, dtype);
  check_dense(kOp, "beta", a.beta, 2, dtype);
  const int64_t replicas = a.alpha.size[0], m = a.alpha.size[1];
  check(m >= 1, kOp, "alpha must have at least one column, got ", m);
  check_size(kOp, "beta", a.beta, 0, replicas);
  check_size(kOp, "beta", a.beta, 1, m - 1);
  const TensorView* outputs[] = {&a.eigenvalues, &a.first, &a.last};
  for (const TensorView* out : outputs) {
    check_dense(kOp, "output", *out, 2, dtype);
    check_size(kOp, "output", *out, 0, replicas);
    check_size(kOp, "output", *out, 1, m);
  }
  if (replicas == 0) return;
  if (exec.on_cpu()) {
    tridiag_eigh_cpu(a, exec);
  } else {
    tridiag_eigh_cuda(a, exec);
  }
}

}  // namespace catapult
