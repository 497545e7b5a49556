// The *_cuda entries of a build without CUDA: each says so.
#include "core/error.hpp"
#include "ops/gram/gram.hpp"
#include "ops/lanczos_dense/lanczos_dense.hpp"
#include "ops/lanczos_step/lanczos_step.hpp"
#include "ops/ntk_matvec/ntk_matvec.hpp"
#include "ops/toy_gd/toy_activated.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"
#include "ops/toy_lyapunov/toy_lyapunov.hpp"
#include "ops/toy_scalar/toy_scalar.hpp"
#include "ops/tridiag_eigh/tridiag_eigh.hpp"

namespace catapult {

#ifndef CATAPULT_CUDA_GRAM
void gram_cuda(const GramArgs&, const Exec&) { fail_without_cuda("gram"); }
#endif

#ifndef CATAPULT_CUDA_LANCZOS_DENSE
void lanczos_dense_cuda(const LanczosDenseArgs&, const Exec&) {
  fail_without_cuda("lanczos_dense");
}
#endif

#ifndef CATAPULT_CUDA_LANCZOS_STEP
void lanczos_step_cuda(const LanczosStepArgs&, const Exec&) { fail_without_cuda("lanczos_step"); }
#endif

#ifndef CATAPULT_CUDA_TOY_GD
void toy_gd_cuda(const ToyGdArgs&, const Exec&) { fail_without_cuda("toy_gd"); }
int64_t toy_gd_cuda_workspace(const ToyGdSizes&, const Exec&) { fail_without_cuda("toy_gd"); }
void toy_activated_cuda(const ToyGdArgs&, const Exec&) { fail_without_cuda("toy_gd"); }
int64_t toy_activated_cuda_workspace(const ToyGdSizes&, const Exec&) {
  fail_without_cuda("toy_gd");
}
void toy_curvature_cuda(const ToyCurvatureArgs&, const Exec&) { fail_without_cuda("toy_gd"); }
#endif

#ifndef CATAPULT_CUDA_TOY_GD_REDUCED
void toy_gd_reduced_cuda(const ToyGdReducedArgs&, const Exec&) {
  fail_without_cuda("toy_gd_reduced");
}
#endif

#ifndef CATAPULT_CUDA_NTK_MATVEC
void ntk_matvec_cuda(const NtkMatvecArgs&, const Exec&) { fail_without_cuda("ntk_matvec"); }
#endif

#ifndef CATAPULT_CUDA_TOY_LYAPUNOV
void toy_lyapunov_cuda(const ToyLyapunovArgs&, const Exec&) { fail_without_cuda("toy_lyapunov"); }
#endif

#ifndef CATAPULT_CUDA_TOY_SCALAR
void toy_scalar_cuda(const ToyScalarArgs&, const Exec&) { fail_without_cuda("toy_scalar"); }
#endif

#ifndef CATAPULT_CUDA_TRIDIAG_EIGH
void tridiag_eigh_cuda(const TridiagEighArgs&, const Exec&) { fail_without_cuda("tridiag_eigh"); }
#endif

}  // namespace catapult
