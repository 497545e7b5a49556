#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/toy_gd/toy_gd.hpp"

namespace catapult {

void bind_toy_gd(pybind11::module_& m) {
  m.def("toy_gd_workspace", [](TensorView u, int64_t samples, int64_t curvatures, bool linear,
                               int device, int64_t stream, int threads) {
    const int64_t bytes = u.dtype == Dtype::kFloat32 ? 4 : 8;
    return toy_gd_workspace({u.size[0], u.size[1], u.size[2], samples, curvatures, bytes, linear},
                            {device, stream, threads});
  });
  m.def("toy_gd",
        [](TensorView u, TensorView v, TensorView x, TensorView y, TensorView eta, TensorView loss,
           TensorView weight_norm, TensorView diverged_at, TensorView curvature,
           TensorView workspace, int64_t steps, int64_t record_every, int64_t curvature_every,
           int64_t activation, double slope, int device, int64_t stream, int threads) {
          pybind11::gil_scoped_release no_gil;
          toy_gd({u,
                  v,
                  x,
                  y,
                  eta,
                  {loss, weight_norm, diverged_at, curvature, steps, record_every, curvature_every},
                  workspace,
                  {static_cast<Activation>(activation), slope}},
                 {device, stream, threads});
        });
}

}  // namespace catapult
