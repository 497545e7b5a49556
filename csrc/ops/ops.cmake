# The native operations, one line each.
catapult_add_op(gram SIMD CUDA)
catapult_add_op(lanczos_dense SIMD CUDA)
catapult_add_op(lanczos_step SIMD CUDA)
catapult_add_op(ntk_matvec SIMD CUDA)
catapult_add_op(toy_gd SIMD CUDA)
catapult_add_op(toy_gd_reduced SIMD CUDA)
catapult_add_op(toy_scalar SIMD CUDA)
catapult_add_op(tridiag_eigh CUDA)
