// Run-time dtype -> template argument.
#pragma once

#include "core/tensor_view.hpp"

namespace catapult {

template <typename T>
struct TypeTag {
  using type = T;
};

// dispatch_float(dtype, "gram", [&](auto tag) { using T = typename decltype(tag)::type; ... })
template <typename F>
void dispatch_float(Dtype dtype, const char* op, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      f(TypeTag<float>{});
      return;
    case Dtype::kFloat64:
      f(TypeTag<double>{});
      return;
    default:
      check(false, op, "needs float32 or float64, got ", dtype_name(dtype));
  }
}

}  // namespace catapult
