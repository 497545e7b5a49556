#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/ops.hpp"
#include "core/cpu_isa.hpp"
#include "core/error.hpp"
#include "core/interrupt.hpp"

// The emulated module is the same source under another name.
#ifndef CATAPULT_MODULE_NAME
#define CATAPULT_MODULE_NAME _C
#endif

namespace catapult {
namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["version"] = CATAPULT_VERSION;
  info["compiler"] = "g++ " __VERSION__;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef CATAPULT_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_architectures"] = CATAPULT_CUDA_ARCHITECTURES;
  py::list usable;
  for (Isa isa : usable_isas()) usable.append(isa_name(isa));
  info["usable_isas"] = usable;
  info["active_isa"] = isa_name(active_isa());
  return info;
}

// Runs the handlers of pending signals, which may raise; only on the main thread there are any.
bool signal_raised() {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

void translate_error(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Interrupted&) {  // the handler's exception is set
  } catch (const Error& error) {
    PyErr_SetString(error.kind() == ErrorKind::kValue ? PyExc_ValueError : PyExc_RuntimeError,
                    error.what());
  }
}

}  // namespace
}  // namespace catapult

// Operations keep no state between calls, so a free-threaded interpreter need not lock them.
PYBIND11_MODULE(CATAPULT_MODULE_NAME, m, pybind11::mod_gil_not_used()) {
  using namespace catapult;
  m.doc() = "Native kernels of catapult_ext; use catapult_ext.ops.";
  pybind11::register_exception_translator(&translate_error);
  signal_check = &signal_raised;
  m.def("build_info", &build_info);
  m.def("force_isa", &force_isa);
  bind_gram(m);
  bind_lanczos_dense(m);
  bind_lanczos_step(m);
  bind_ntk_matvec(m);
  bind_toy_gd(m);
  bind_toy_gd_reduced(m);
  bind_toy_lyapunov(m);
  bind_toy_scalar(m);
  bind_tridiag_eigh(m);
}
