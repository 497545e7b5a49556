#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/toy_lyapunov/toy_lyapunov.hpp"

namespace catapult {

void bind_toy_lyapunov(pybind11::module_& m) {
  m.def("toy_lyapunov", [](TensorView mean, TensorView deviation, TensorView beta,
                           TensorView growth, int64_t steps, int64_t burn_in, int64_t first_path,
                           int64_t seed, int64_t noise, int device, int64_t stream, int threads) {
    pybind11::gil_scoped_release no_gil;
    toy_lyapunov({mean, deviation, beta, growth, steps, burn_in, first_path, seed, noise},
                 {device, stream, threads});
  });
}

}  // namespace catapult
