// torch.Tensor -> TensorView without torch headers: data_ptr(), shape, stride() and dtype are read
// through Python. The tensors stay referenced by the calling frame during the native call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "core/exec.hpp"
#include "core/tensor_view.hpp"

namespace catapult {

TensorView tensor_view(pybind11::handle tensor);

// One entry per tensor of a Python list.
std::vector<TensorView> tensor_views(const pybind11::list& tensors);

}  // namespace catapult

namespace pybind11::detail {

template <>
struct type_caster<catapult::TensorView> {
  PYBIND11_TYPE_CASTER(catapult::TensorView, const_name("torch.Tensor"));
  bool load(handle source, bool) {
    value = catapult::tensor_view(source);
    return true;
  }
};

}  // namespace pybind11::detail
