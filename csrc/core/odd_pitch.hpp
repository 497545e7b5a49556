// Rows of a matrix in shared memory lie an odd number of entries apart, so that lanes reading down
// a column meet no bank twice.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace catapult {

CATAPULT_HOST_DEVICE constexpr int64_t odd_pitch(int64_t columns) { return columns | 1; }

}  // namespace catapult
