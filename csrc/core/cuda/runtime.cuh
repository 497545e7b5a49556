// The only includer of the CUDA runtime, or, in the test-only module, of its emulation on the CPU.
#pragma once

#ifdef CATAPULT_EMULATED
#include "emulation/emulation.hpp"
// Dynamic shared memory of the block: CATAPULT_DYNAMIC_SMEM(float, tile) declares float* tile.
#define CATAPULT_DYNAMIC_SMEM(T, name) \
  T* const name = static_cast<T*>(::catapult::emulation::dynamic_shared())
#else
#include <cuda_runtime.h>
#define CATAPULT_DYNAMIC_SMEM(T, name)                                    \
  extern __shared__ __align__(128) unsigned char catapult_dynamic_smem[]; \
  T* const name = reinterpret_cast<T*>(catapult_dynamic_smem)
#endif

namespace catapult::device {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarpSize = 32;

// Every bounds check of device code goes through this, so that the mutation check can drop it:
// if (in_bounds(i < n)) ...
#ifdef CATAPULT_EMULATED
inline bool in_bounds(bool ok, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulation::note_site("in_bounds", {file, line});
  return ok || emulation::is_skipped({file, line});
}
#else
__device__ __forceinline__ bool in_bounds(bool ok) { return ok; }
#endif

}  // namespace catapult::device
