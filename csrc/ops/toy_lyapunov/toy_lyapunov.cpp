#include "ops/toy_lyapunov/toy_lyapunov.hpp"

namespace catapult {

void toy_lyapunov(const ToyLyapunovArgs& a, const Exec& exec) {
  constexpr const char* kOp = "toy_lyapunov";
  const int64_t cases = a.mean.size[0];
  const TensorView* inputs[] = {&a.mean, &a.deviation, &a.beta};
  for (const TensorView* t : inputs) {
    check_dense(kOp, "mean, deviation or beta", *t, 1, Dtype::kFloat64);
    check_size(kOp, "mean, deviation or beta", *t, 0, cases);
  }
  check_dense(kOp, "growth", a.growth, 2, Dtype::kFloat64);
  check_size(kOp, "growth", a.growth, 0, cases);
  check(a.burn_in >= 0 && a.burn_in <= a.steps, kOp, "burn_in must be in [0, steps], got ",
        a.burn_in);
  check(a.first_path >= 0, kOp, "first_path must be >= 0, got ", a.first_path);
  check(a.noise >= 0 && a.noise <= 2, kOp, "noise must be 0, 1 or 2, got ", a.noise);
  if (a.growth.numel() == 0) return;
  if (exec.on_cpu()) {
    toy_lyapunov_cpu(a, exec);
  } else {
    toy_lyapunov_cuda(a, exec);
  }
}

}  // namespace catapult
