#include "ops/toy_scalar/toy_scalar.hpp"

namespace catapult {

void toy_scalar(const ToyScalarArgs& a, const Exec& exec) {
  constexpr const char* kOp = "toy_scalar";
  const Dtype dtype = a.h.dtype;
  check(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, kOp, "needs float32 or float64, got ",
        dtype_name(dtype));
  check_dense(kOp, "h", a.h, 1, dtype);
  const int64_t lanes = a.h.size[0];
  const TensorView* floats[] = {&a.k, &a.b, &a.peak, &a.beta};
  for (const TensorView* t : floats) {
    if (t == &a.beta && t->data == nullptr) continue;
    check_dense(kOp, "k, b, beta or peak", *t, 1, dtype);
    check_size(kOp, "k, b, beta or peak", *t, 0, lanes);
  }
  const TensorView* steps[] = {&a.peak_step, &a.diverged_at};
  for (const TensorView* t : steps) {
    check_dense(kOp, "peak_step or diverged_at", *t, 1, Dtype::kInt64);
    check_size(kOp, "peak_step or diverged_at", *t, 0, lanes);
  }
  check(a.steps >= 0, kOp, "steps must be >= 0, got ", a.steps);
  check(a.record_every >= 0, kOp, "record_every must be >= 0, got ", a.record_every);
  const TensorView* records[] = {&a.record_a, &a.record_v};
  for (const TensorView* t : records) {
    check_dense(kOp, "record", *t, 2, dtype);
    check_size(kOp, "record", *t, 0, lanes);
    check_size(kOp, "record", *t, 1, a.record_every > 0 ? a.steps / a.record_every + 1 : 0);
  }
  if (lanes == 0) return;
  if (exec.on_cpu()) {
    toy_scalar_cpu(a, exec);
  } else {
    toy_scalar_cuda(a, exec);
  }
}

}  // namespace catapult
