// Barrier over all blocks of a cooperative launch; every thread of the grid must reach it.
#pragma once

#include "core/cuda/runtime.cuh"
#ifndef CATAPULT_EMULATED
#include <cooperative_groups.h>
#endif

namespace catapult::device {

#ifdef CATAPULT_EMULATED
inline void grid_sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (emulation::is_skipped({file, line})) return;
  emulation::note_site("grid_sync", {file, line});
  emulation::sync_grid({file, line});
}
#else
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }
#endif

}  // namespace catapult::device
