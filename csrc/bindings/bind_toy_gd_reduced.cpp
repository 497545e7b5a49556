#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"

namespace catapult {

void bind_toy_gd_reduced(pybind11::module_& m) {
  m.def("toy_gd_reduced_workspace", [](TensorView w, int64_t samples, int64_t curvatures,
                                       int device, int64_t stream, int threads) {
    return toy_gd_reduced_workspace(w.size[0], w.size[1], samples, curvatures,
                                    {device, stream, threads});
  });
  m.def("toy_gd_reduced", [](TensorView w, TensorView s, TensorView q, TensorView x, TensorView y,
                             TensorView eta, TensorView loss, TensorView weight_norm,
                             TensorView diverged_at, TensorView curvature, TensorView workspace,
                             double width, int64_t steps, int64_t record_every,
                             int64_t curvature_every, int device, int64_t stream, int threads) {
    pybind11::gil_scoped_release no_gil;
    const ToyRecords records = {loss,  weight_norm,  diverged_at,    curvature,
                                steps, record_every, curvature_every};
    toy_gd_reduced({w, s, q, x, y, eta, width, records, workspace}, {device, stream, threads});
  });
}

}  // namespace catapult
