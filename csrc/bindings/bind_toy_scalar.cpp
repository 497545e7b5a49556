#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/toy_scalar/toy_scalar.hpp"

namespace catapult {

void bind_toy_scalar(pybind11::module_& m) {
  m.def("toy_scalar",
        [](TensorView h, TensorView k, TensorView b, std::optional<TensorView> beta,
           TensorView peak, TensorView peak_step, TensorView diverged_at, TensorView record_a,
           TensorView record_v, int64_t steps, int64_t record_every, bool early_exit, int device,
           int64_t stream, int threads) {
          pybind11::gil_scoped_release no_gil;
          toy_scalar({h, k, b, beta.value_or(TensorView{}), peak, peak_step, diverged_at, record_a,
                      record_v, steps, record_every, early_exit},
                     {device, stream, threads});
        });
}

}  // namespace catapult
