#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/tridiag_eigh/tridiag_eigh.hpp"

namespace catapult {

void bind_tridiag_eigh(pybind11::module_& m) {
  m.def("tridiag_eigh",
        [](TensorView alpha, TensorView beta, TensorView eigenvalues, TensorView first,
           TensorView last, int device, int64_t stream, int threads) {
          pybind11::gil_scoped_release no_gil;
          tridiag_eigh({alpha, beta, eigenvalues, first, last}, {device, stream, threads});
        });
}

}  // namespace catapult
