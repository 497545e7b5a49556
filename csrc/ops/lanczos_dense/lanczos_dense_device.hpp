// How the device shares matrices out to blocks, and where each buffer lies.
#pragma once

#include <algorithm>
#include <cstdint>

namespace catapult {

constexpr int64_t kLanczosDenseMaxBlocks = 264;  // two per multiprocessor of an H200
constexpr int64_t kLanczosDenseStrip = 32;       // rows, and columns of a tile of the product
constexpr int64_t kLanczosDenseTeamFrom = 1024;  // smaller matrices are the work of one block

// Offsets are in float64 entries from the start of a team's memory.
struct LanczosDenseDevice {
  int64_t n, k, padded, room, keep;
  int64_t team, teams, chunk;  // blocks per matrix, matrices at once, columns of a block
  int threads;
  int64_t basis, alpha, beta, locked, fresh, w, theta, residual, vectors, mixes, small, control;
  int64_t sums, parts, pieces;
  int64_t total;
};

// Float64 entries of dynamic shared memory without the copy of the matrix: Gram-Schmidt (`dots`),
// Ritz values with their work, and the product's vectors.
inline int64_t lanczos_dense_shared(const LanczosDenseDevice& c, int64_t dots) {
  return dots + 8 * c.room + 3 * c.padded + 2 * (c.threads / 32) * kLanczosDenseStrip;
}

inline int64_t gram_schmidt_entries(int64_t team, int64_t count) {
  return team * (2 * (count + 1) + 1);
}

inline LanczosDenseDevice lanczos_dense_device(int64_t replicas, int64_t n, int64_t k,
                                               int64_t item_size, int64_t resident) {
  LanczosDenseDevice c{};
  c.n = n;
  c.k = k;
  c.padded = (n + kLanczosDenseStrip - 1) / kLanczosDenseStrip * kLanczosDenseStrip;
  c.room = std::min(n, std::max<int64_t>(384, 2 * k + 128));
  c.keep = std::min(c.room, k + 64);
  c.threads = n <= 128 ? 64 : n <= 256 ? 128 : 256;
  const int64_t blocks = std::min(resident, kLanczosDenseMaxBlocks);
  const int64_t useful = n < kLanczosDenseTeamFrom ? 1 : n / 256;
  c.team = std::clamp<int64_t>(blocks / std::max<int64_t>(replicas, 1), 1, useful);
  c.teams = std::min(replicas, c.team == 1 ? kLanczosDenseMaxBlocks : blocks / c.team);
  c.chunk = (n + c.team - 1) / c.team;

  const auto take = [&](int64_t count, int64_t size) {
    const int64_t here = c.total;
    c.total += (count * size + 63) / 64 * 8;
    return here;
  };
  const int64_t rows = k + c.room + 1;
  c.basis = take(rows * n, item_size);
  c.alpha = take(rows, item_size);
  c.beta = take(rows, item_size);
  c.locked = take(k * n, item_size);
  c.fresh = take(c.keep * n, item_size);
  c.w = take(n, 8);
  c.theta = take(k, 8);
  c.residual = take(k, 8);
  c.vectors = take(c.keep * c.room, 8);
  c.mixes = take(c.keep * c.room, 8);
  c.small = take((c.keep + 4) * c.keep, 8);
  c.control = take(8 + k, 8);
  c.sums = take(2 * c.team, 8);
  c.parts = take(gram_schmidt_entries(c.team, rows), 8);
  c.pieces = take(c.team * n, 8);
  return c;
}

// Enough for any device: a team of one block each, or all blocks in one team.
inline int64_t lanczos_dense_device_workspace(int64_t replicas, int64_t n, int64_t k,
                                              int64_t item_size) {
  const LanczosDenseDevice one = lanczos_dense_device(replicas, n, k, item_size, 1);
  int64_t total = std::min(replicas, kLanczosDenseMaxBlocks) * one.total;
  if (n >= kLanczosDenseTeamFrom)  // what the blocks of all teams add
    total += kLanczosDenseMaxBlocks * (gram_schmidt_entries(1, k + one.room + 1) + n + 64);
  return total + kLanczosDenseMaxBlocks;  // counters
}

}  // namespace catapult
