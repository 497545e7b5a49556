# The native operations, one line each.
catapult_add_op(gram SIMD CUDA)
catapult_add_op(lanczos_dense SIMD CUDA)
target_sources(catapult_core PRIVATE
               "${PROJECT_SOURCE_DIR}/csrc/ops/lanczos_dense/certified_top_cpu.cpp")
catapult_add_simd_source(catapult_core
                         "${PROJECT_SOURCE_DIR}/csrc/ops/lanczos_dense/certified_top_simd.cpp")
catapult_add_op(lanczos_step SIMD CUDA)
catapult_add_op(ntk_matvec SIMD CUDA)
target_sources(catapult_core PRIVATE
               "${PROJECT_SOURCE_DIR}/csrc/ops/ntk_matvec/int16_product_cpu.cpp")
catapult_add_simd_source(catapult_core
                         "${PROJECT_SOURCE_DIR}/csrc/ops/ntk_matvec/int16_product_simd.cpp")
catapult_add_op(toy_gd SIMD CUDA)
target_sources(catapult_core PRIVATE "${PROJECT_SOURCE_DIR}/csrc/ops/toy_gd/toy_activated_cpu.cpp")
catapult_add_simd_source(catapult_core
                         "${PROJECT_SOURCE_DIR}/csrc/ops/toy_gd/toy_activated_simd.cpp")
if(CATAPULT_CUDA_ENABLED)
  target_sources(catapult_core PRIVATE "${PROJECT_SOURCE_DIR}/csrc/ops/toy_gd/toy_activated_cuda.cu")
endif()
catapult_add_op(toy_gd_reduced SIMD CUDA)
catapult_add_op(toy_lyapunov SIMD CUDA)
catapult_add_op(toy_scalar SIMD CUDA)
catapult_add_op(tridiag_eigh CUDA)
