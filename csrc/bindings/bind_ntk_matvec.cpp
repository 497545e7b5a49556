#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/ntk_matvec/ntk_matvec.hpp"

namespace catapult {

namespace py = pybind11;

void bind_ntk_matvec(py::module_& m) {
  m.def("ntk_matvec",
        [](TensorView v, const py::list& weights, const py::list& inputs, const py::list& slopes,
           const py::list& grams, std::vector<double> scale, std::vector<double> bias,
           TensorView workspace, TensorView out, int device, int64_t stream, int threads) {
          const NtkMatvecArgs args{v,
                                   tensor_views(weights),
                                   tensor_views(inputs),
                                   tensor_views(slopes),
                                   tensor_views(grams),
                                   std::move(scale),
                                   std::move(bias),
                                   workspace,
                                   out};
          py::gil_scoped_release no_gil;
          ntk_matvec(args, {device, stream, threads});
        });
  // Elements for one vector of one replica.
  m.def("ntk_matvec_workspace",
        [](int64_t samples, const std::vector<int64_t>& p, const std::vector<int64_t>& d,
           const std::vector<int64_t>& in_sample_space, int, int64_t,
           int) { return ntk_matvec_layout(samples, p, d, in_sample_space).size; });
  m.def("int16_product_is_fast", [](int, int64_t, int) { return int16_product_is_fast(); });
  m.def("int16_side_size", [](bool left, int64_t free, int64_t depth, int, int64_t, int) {
    return int16_side_size(left, free, depth);
  });
  m.def("int16_pack",
        [](TensorView matrix, bool left, TensorView packed, int, int64_t, int threads) {
          py::gil_scoped_release no_gil;
          int16_pack(matrix, left, packed, threads);
        });
  m.def("int16_product",
        [](TensorView a, TensorView b, std::optional<TensorView> mask, TensorView out,
           TensorView workspace, int64_t depth, bool add, int, int64_t, int threads) {
          py::gil_scoped_release no_gil;
          int16_product({a, b, mask.value_or(TensorView{}), out, workspace, depth, add}, threads);
        });
}

}  // namespace catapult
