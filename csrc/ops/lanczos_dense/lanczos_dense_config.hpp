// Sizes of one solve: basis rows, what shares the work, and where each buffer lies in a workspace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/lanczos_step/lanczos_step.hpp"

namespace catapult {

// What a solve keeps on every device. Offsets are in float64 entries from the start of its memory.
struct LanczosDenseLayout {
  int64_t n, k;
  int64_t padded;  // n rounded up to whole tiles of the product
  int64_t room;    // Lanczos steps before a restart; n steps end exactly
  int64_t keep;    // Ritz pairs that survive a restart
  int64_t basis, alpha, beta, locked, fresh, w, theta, residual, vectors, mixes, small, control;
  int64_t total;

  int64_t rows() const { return k + room + 1; }

  int64_t take(int64_t count, int64_t size) {
    const int64_t here = total;
    total += (count * size + 63) / 64 * 8;
    return here;
  }

  void set(int64_t n_in, int64_t k_in, int64_t tile, int64_t item_size) {
    n = n_in;
    k = k_in;
    padded = (n + tile - 1) / tile * tile;
    room = std::min(n, std::max<int64_t>(384, 2 * k + 128));
    keep = std::min(room, k + 64);
    total = 0;
    basis = take(rows() * n, item_size);
    alpha = take(rows(), item_size);
    beta = take(rows(), item_size);
    locked = take(k * n, item_size);
    fresh = take(keep * n, item_size);
    w = take(n, 8);
    theta = take(k, 8);
    residual = take(k, 8);
    vectors = take(keep * room, 8);
    mixes = take(keep * room, 8);
    small = take((keep + 4) * keep, 8);
    control = take(8 + k, 8);
  }
};

// Rows of a diagonal block, which the CPU stores dense and padded, so that no product needs a tail.
constexpr int64_t kLanczosDenseBlock = 16;
constexpr int kLanczosDenseMaxSlabs = 8;

// On the CPU.
struct LanczosDenseConfig : LanczosDenseLayout {
  int slabs;  // of rows with equal areas; threads share them when matrices are few
  int64_t slab_begin[kLanczosDenseMaxSlabs + 1];
  int64_t x, y, diagonal, ritz, last, work, step;
};

inline LanczosDenseConfig lanczos_dense_config(int64_t n, int64_t k, int64_t item_size) {
  LanczosDenseConfig c{};
  const int64_t block = kLanczosDenseBlock;
  c.set(n, k, block, item_size);
  // Slabs depend on n alone, and so does the order of every sum.
  c.slabs = n < 1024 ? 1 : kLanczosDenseMaxSlabs;
  for (int s = 0; s <= c.slabs; ++s) {
    const double at = std::sqrt(static_cast<double>(s) / c.slabs) * static_cast<double>(c.padded);
    c.slab_begin[s] = s == c.slabs ? c.padded : static_cast<int64_t>(at) / block * block;
  }
  c.x = c.take(c.padded, 8);  // wide enough for the float64 product of float32 data
  c.y = c.take(c.slabs * c.padded, 8);
  c.diagonal = c.take(c.padded * block, item_size);
  c.ritz = c.take(c.room, 8);
  c.last = c.take(c.room, 8);
  c.work = c.take(6 * c.room, 8);
  c.step = c.take(lanczos_step_workspace(1, n, c.rows() - 1, Exec{}), 8);
  return c;
}

constexpr int64_t kLanczosDenseMaxBlocks = 264;  // two per multiprocessor of an H200
constexpr int64_t kLanczosDenseStrip = 32;       // rows, and columns of a tile of the product
constexpr int64_t kLanczosDenseTeamFrom = 1024;  // smaller matrices are the work of one block

// On a GPU: blocks per matrix, matrices at once, columns of a block.
struct LanczosDenseDevice : LanczosDenseLayout {
  int64_t team, teams, chunk;
  int threads;
  int64_t sums, parts, pieces;
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
  c.set(n, k, kLanczosDenseStrip, item_size);
  c.threads = n <= 128 ? 64 : n <= 256 ? 128 : 256;
  const int64_t blocks = std::min(resident, kLanczosDenseMaxBlocks);
  const int64_t useful = n < kLanczosDenseTeamFrom ? 1 : n / 256;
  c.team = std::clamp<int64_t>(blocks / std::max<int64_t>(replicas, 1), 1, useful);
  c.teams = std::min(replicas, c.team == 1 ? kLanczosDenseMaxBlocks : blocks / c.team);
  c.chunk = (n + c.team - 1) / c.team;
  c.sums = c.take(2 * c.team, 8);
  c.parts = c.take(gram_schmidt_entries(c.team, c.rows()), 8);
  c.pieces = c.take(c.team * n, 8);
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
