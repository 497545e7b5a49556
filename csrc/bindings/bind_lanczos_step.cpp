#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/lanczos_step/lanczos_step.hpp"

namespace catapult {

void bind_lanczos_step(pybind11::module_& m) {
  m.def("lanczos_step_workspace",
        [](int64_t replicas, int64_t n, int64_t rows, int device, int64_t stream, int threads) {
          return lanczos_step_workspace(replicas, n, rows, {device, stream, threads});
        });
  m.def("lanczos_step",
        [](TensorView basis, TensorView alpha, TensorView beta, TensorView w,
           std::optional<TensorView> coefficients, TensorView workspace, int64_t step, int64_t rows,
           double breakdown, int device, int64_t stream, int threads) {
          pybind11::gil_scoped_release no_gil;
          lanczos_step({basis, alpha, beta, w, coefficients.value_or(TensorView{}), workspace, step,
                        rows, breakdown},
                       {device, stream, threads});
        });
}

}  // namespace catapult
