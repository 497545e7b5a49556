# The native operations, one line each.
catapult_add_op(gram SIMD)
catapult_add_op(lanczos_step SIMD)
catapult_add_op(tridiag_eigh CUDA)
