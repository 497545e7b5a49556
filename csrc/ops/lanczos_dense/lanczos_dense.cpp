#include "ops/lanczos_dense/lanczos_dense.hpp"

#include <algorithm>

#include "ops/lanczos_dense/lanczos_dense_config.hpp"

namespace catapult {
namespace {
constexpr const char* kOp = "lanczos_dense";
}

int64_t lanczos_dense_workspace(int64_t replicas, int64_t n, int64_t k, Dtype dtype,
                                const Exec& exec) {
  const int64_t item_size = dtype == Dtype::kFloat32 ? 4 : 8;
  if (!exec.on_cpu()) return lanczos_dense_device_workspace(replicas, n, k, item_size);
  const int64_t solvers = std::min<int64_t>(replicas, std::max(exec.threads, 1));
  return solvers * lanczos_dense_config(n, k, item_size).total;
}

void lanczos_dense(const LanczosDenseArgs& a, const Exec& exec) {
  const Dtype dtype = a.a.dtype;
  check(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, kOp, "needs float32 or float64, got ",
        dtype_name(dtype));
  check_dense(kOp, "a", a.a, 3, dtype);
  check_dense(kOp, "eigenvalues", a.eigenvalues, 2, dtype);
  check_dense(kOp, "eigenvectors", a.eigenvectors, 3, dtype);
  check_dense(kOp, "errors", a.errors, 2, dtype);
  check_dense(kOp, "steps", a.steps, 1, Dtype::kInt64);
  check_dense(kOp, "workspace", a.workspace, 1, Dtype::kFloat64);
  const int64_t replicas = a.a.size[0], n = a.a.size[1], k = a.eigenvalues.size[1];
  check_size(kOp, "a", a.a, 2, n);
  check(k >= 1 && k <= n, kOp, "k must be in [1, ", n, "], got ", k);
  check(a.maxiter >= k, kOp, "maxiter must be at least k = ", k, ", got ", a.maxiter);
  check_size(kOp, "eigenvalues", a.eigenvalues, 0, replicas);
  check_size(kOp, "eigenvectors", a.eigenvectors, 0, replicas);
  check_size(kOp, "eigenvectors", a.eigenvectors, 1, k);
  check_size(kOp, "eigenvectors", a.eigenvectors, 2, n);
  check_size(kOp, "errors", a.errors, 0, replicas);
  check_size(kOp, "errors", a.errors, 1, k);
  check_size(kOp, "steps", a.steps, 0, replicas);
  if (a.v0.data != nullptr) {
    check_dense(kOp, "v0", a.v0, 2, dtype);
    check_size(kOp, "v0", a.v0, 0, replicas);
    check_size(kOp, "v0", a.v0, 1, n);
  }
  check(a.workspace.size[0] >= lanczos_dense_workspace(replicas, n, k, dtype, exec), kOp,
        "workspace is too small: ", a.workspace.size[0]);
  if (replicas == 0) return;
  if (exec.on_cpu()) {
    lanczos_dense_cpu(a, exec);
  } else {
    lanczos_dense_cuda(a, exec);
  }
}

}  // namespace catapult
