#include "bindings/ops.hpp"
#include "bindings/tensor_arg.hpp"
#include "ops/lanczos_dense/lanczos_dense.hpp"

namespace catapult {

void bind_lanczos_dense(pybind11::module_& m) {
  m.def("lanczos_dense_workspace", [](TensorView a, int64_t k, int device, int64_t stream,
                                      int threads) {
    return lanczos_dense_workspace(a.size[0], a.size[1], k, a.dtype, {device, stream, threads});
  });
  m.def("lanczos_dense",
        [](TensorView a, std::optional<TensorView> v0, TensorView eigenvalues,
           TensorView eigenvectors, TensorView errors, TensorView steps, TensorView workspace,
           double tol, int64_t maxiter, int64_t seed, int device, int64_t stream, int threads) {
          pybind11::gil_scoped_release no_gil;
          lanczos_dense({a, v0.value_or(TensorView{}), eigenvalues, eigenvectors, errors, steps,
                         TensorView{}, workspace, tol, maxiter, seed},
                        {device, stream, threads});
        });
  m.def("certified_top_workspace", [](TensorView a, int, int64_t, int threads) {
    return certified_top_workspace(a.size[0], a.size[1], a.dtype, threads);
  });
  m.def("certified_top", [](TensorView a, TensorView vectors, TensorView numbers,
                            TensorView products, TensorView workspace, double tol, int64_t maxiter,
                            int64_t seed, int, int64_t, int threads) {
    pybind11::gil_scoped_release no_gil;
    certified_top({a, vectors, numbers, products, workspace, tol, maxiter, seed}, threads);
  });
}

}  // namespace catapult
