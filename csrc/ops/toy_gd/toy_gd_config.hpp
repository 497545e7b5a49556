// Problem -> tiles of the CPU kernel.
#pragma once

#include <cstdint>

namespace catapult {

// Tiles handled together, so that one load of zeta and of the sums serves several: as many as leave
// their rows in half of a 32 KiB first-level cache between the two sweeps over them.
inline int toy_gd_group(int64_t inputs, int lanes, int64_t element_bytes) {
  const int64_t tile_bytes = inputs * lanes * element_bytes;
  constexpr int64_t kBudget = 16 * 1024;
  return 4 * tile_bytes <= kBudget ? 4 : 2 * tile_bytes <= kBudget ? 2 : 1;
}

}  // namespace catapult
