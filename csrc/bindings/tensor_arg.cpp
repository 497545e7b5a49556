#include "bindings/tensor_arg.hpp"

#include <pybind11/gil_safe_call_once.h>

namespace catapult {
namespace {

namespace py = pybind11;

struct TorchDtypes {
  py::object float32, float64, int64;
};

const TorchDtypes& torch_dtypes() {
  // Never destroyed: the interpreter may be gone by then. The import may hand the GIL to another
  // thread, which would wait for ever at the lock of a plain static.
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<TorchDtypes> dtypes;
  return dtypes
      .call_once_and_store_result([] {
        const py::module_ torch = py::module_::import("torch");
        return TorchDtypes{torch.attr("float32"), torch.attr("float64"), torch.attr("int64")};
      })
      .get_stored();
}

Dtype dtype_of(py::handle tensor) {
  const py::object dtype = tensor.attr("dtype");
  const TorchDtypes& known = torch_dtypes();
  if (dtype.is(known.float32)) return Dtype::kFloat32;
  if (dtype.is(known.float64)) return Dtype::kFloat64;
  if (dtype.is(known.int64)) return Dtype::kInt64;
  throw py::type_error("catapult_ext._C: tensors must be float32, float64 or int64, got " +
                       py::str(dtype).cast<std::string>());
}

}  // namespace

TensorView tensor_view(py::handle tensor) {
  TensorView view;
  view.dtype = dtype_of(tensor);
  view.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
  const py::tuple shape = tensor.attr("shape");
  const py::tuple stride = tensor.attr("stride")();
  view.ndim = static_cast<int>(shape.size());
  check(view.ndim <= TensorView::kMaxDims, "_C", "tensors may have at most ", TensorView::kMaxDims,
        " dimensions, got ", view.ndim);
  for (int i = 0; i < view.ndim; ++i) {
    view.size[i] = shape[i].cast<int64_t>();
    view.stride[i] = stride[i].cast<int64_t>();
  }
  return view;
}

std::vector<TensorView> tensor_views(const py::list& tensors) {
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (py::handle tensor : tensors) views.push_back(tensor_view(tensor));
  return views;
}

}  // namespace catapult
