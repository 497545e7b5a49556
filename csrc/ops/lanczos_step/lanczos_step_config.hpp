// How a replica's vectors are cut up. On the CPU chunks depend on n alone, and partial sums are
// added in chunk order: results do not depend on the number of threads.
#pragma once

#include <algorithm>
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

// Squares of float64 vectors leave the range of a double below 1e-154 and above 1e154: outside the
// range in which they are exact the vector is scaled by a power of two first.
constexpr double kLanczosStepTiny = 1e-240;  // squared norms; eps^2 of it is still a normal number
constexpr double kLanczosStepHuge = 1e300;
constexpr double kLanczosStepUp = 0x1p600;
constexpr double kLanczosStepDown = 0x1p-600;

// On the device a team of blocks takes a replica; teams are larger than one only as far as all
// blocks are resident, because the blocks of a team wait for each other.
struct LanczosStepTeams {
  int64_t team;   // blocks per replica at a time
  int64_t teams;  // replicas at a time
  int64_t chunk;  // columns of a block
};

constexpr int64_t kLanczosStepDeviceChunk = 2048;
constexpr int64_t kLanczosStepMaxBlocks = 512;  // of teams of several blocks

inline LanczosStepTeams lanczos_step_teams(int64_t replicas, int64_t n, int64_t resident) {
  const int64_t blocks = std::min(resident, kLanczosStepMaxBlocks);
  const int64_t useful = n <= 2 * kLanczosStepDeviceChunk
                             ? 1
                             : (n + kLanczosStepDeviceChunk - 1) / kLanczosStepDeviceChunk;
  LanczosStepTeams c;
  c.team = std::clamp<int64_t>(blocks / std::max<int64_t>(replicas, 1), 1, useful);
  c.teams = c.team == 1 ? replicas : std::min(replicas, blocks / c.team);
  c.chunk = ((n + c.team - 1) / c.team + 3) / 4 * 4;  // so that all blocks may move 16 bytes
  return c;
}

// Float64 entries: partial sums of every block, and a counter for every team.
inline int64_t lanczos_step_device_workspace(int64_t replicas, int64_t rows) {
  return std::max(replicas, kLanczosStepMaxBlocks) * (2 * (rows + 1) + 1) + kLanczosStepMaxBlocks;
}

}  // namespace catapult
