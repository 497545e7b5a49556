#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/gram/gram.hpp"

namespace catapult {

namespace py = pybind11;

void bind_gram(py::module_& m) {
  m.def("gram", [](const py::list& a, const py::list& g, const py::list& a2, const py::list& g2,
                   std::vector<double> scale, std::vector<double> bias, int outputs, int precision,
                   TensorView out, int device, int64_t stream, int threads) {
    const GramArgs args{tensor_views(a),
                        tensor_views(g),
                        tensor_views(a2),
                        tensor_views(g2),
                        std::move(scale),
                        std::move(bias),
                        static_cast<GramOutputs>(outputs),
                        static_cast<GramPrecision>(precision),
                        out};
    py::gil_scoped_release no_gil;
    gram(args, {device, stream, threads});
  });
  m.def("gram_cpu_tile", [](int64_t rows, int64_t cols, bool symmetric, int bytes, int threads) {
    return gram_cpu_config(rows, cols, symmetric, bytes, threads).tile;
  });
}

}  // namespace catapult
