// Lets g++ compile a .cu file and run its kernels on the CPU, one fiber per CUDA thread. Test-only:
// core/cuda/runtime.cuh includes it instead of the CUDA runtime where CATAPULT_EMULATED is defined.
#pragma once

// Standard headers first: the words below are taken from them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include "emulation/intrinsics.hpp"
#include "emulation/runtime_api.hpp"
#include "emulation/scheduler.hpp"
#include "emulation/types.hpp"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local

#define threadIdx (::catapult::emulation::here().thread)
#define blockIdx (::catapult::emulation::here().block)
#define blockDim (::catapult::emulation::here().block_dim)
#define gridDim (::catapult::emulation::here().grid_dim)
constexpr int warpSize = 32;
