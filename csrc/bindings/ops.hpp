// One binding function per op, each in bind_<op>.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace catapult {

void bind_gram(pybind11::module_& m);
void bind_lanczos_dense(pybind11::module_& m);
void bind_lanczos_step(pybind11::module_& m);
void bind_ntk_matvec(pybind11::module_& m);
void bind_toy_gd(pybind11::module_& m);
void bind_toy_gd_reduced(pybind11::module_& m);
void bind_toy_lyapunov(pybind11::module_& m);
void bind_toy_scalar(pybind11::module_& m);
void bind_tridiag_eigh(pybind11::module_& m);

}  // namespace catapult
