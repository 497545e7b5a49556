// How a replica's vectors are cut up. Chunks depend on n alone, and partial sums are added in chunk
// order: results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace catapult {

struct LanczosStepConfig {
  int64_t chunk;        // columns handled at once by one thread
  int64_t chunks;       // per replica
  int64_t per_replica;  // float64 workspace entries of one replica
};

constexpr int64_t kLanczosStepChunk = 4096;

inline LanczosStepConfig lanczos_step_config(int64_t n, int64_t rows) {
  LanczosStepConfig config;
  config.chunk = kLanczosStepChunk;
  config.chunks = (n + config.chunk - 1) / config.chunk;
  // Totals of both passes, then one row of partial sums per chunk; each ends with a squared norm.
  config.per_replica = (2 + config.chunks) * (rows + 1);
  return config;
}

}  // namespace catapult
