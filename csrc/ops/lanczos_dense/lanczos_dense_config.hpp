// Sizes of one solve: basis rows, slabs of the product, and where each buffer lies in a workspace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/lanczos_step/lanczos_step.hpp"

namespace catapult {

// Rows of a diagonal block, which is stored dense and padded, so that no product needs a tail.
constexpr int64_t kLanczosDenseBlock = 16;
constexpr int kLanczosDenseMaxSlabs = 8;

struct LanczosDenseConfig {
  int64_t n, k;
  int64_t padded;  // n rounded up to whole blocks
  int64_t room;    // Lanczos steps before a restart; n steps end exactly
  int64_t keep;    // Ritz pairs that survive a restart
  int slabs;       // of rows with equal areas; threads share them when matrices are few
  int64_t slab_begin[kLanczosDenseMaxSlabs + 1];

  // Offsets in float64 entries.
  int64_t basis, alpha, beta, locked, fresh, start, x, y, diagonal, ritz, last, work, vectors,
      small, step;
  int64_t total;
};

inline LanczosDenseConfig lanczos_dense_config(int64_t n, int64_t k, int64_t item_size) {
  LanczosDenseConfig c;
  const int64_t block = kLanczosDenseBlock;
  c.n = n;
  c.k = k;
  c.padded = (n + block - 1) / block * block;
  c.room = std::min(n, std::max<int64_t>(384, 2 * k + 128));
  c.keep = std::min(c.room, k + 64);
  // Slabs depend on n alone, and so does the order of every sum.
  c.slabs = n < 1024 ? 1 : kLanczosDenseMaxSlabs;
  for (int s = 0; s <= c.slabs; ++s) {
    const double at = std::sqrt(static_cast<double>(s) / c.slabs) * static_cast<double>(c.padded);
    c.slab_begin[s] = s == c.slabs ? c.padded : static_cast<int64_t>(at) / block * block;
  }

  int64_t at = 0;
  const auto take = [&](int64_t count, int64_t size) {
    const int64_t here = at;
    at += (count * size + 63) / 64 * 8;
    return here;
  };
  const int64_t rows = c.k + c.room + 1;
  c.basis = take(rows * n, item_size);
  c.alpha = take(rows, item_size);
  c.beta = take(rows, item_size);
  c.locked = take(k * n, item_size);
  c.fresh = take(c.keep * n, item_size);
  c.start = take(n, item_size);
  c.x = take(c.padded, 8);  // wide enough for the float64 product of float32 data
  c.y = take(c.slabs * c.padded, 8);
  c.diagonal = take(c.padded * block, item_size);
  c.ritz = take(c.room, 8);
  c.last = take(c.room, 8);
  c.work = take(6 * c.room, 8);
  c.vectors = take(c.keep * c.room, 8);
  c.small = take((c.keep + 4) * c.keep + c.room, 8);
  c.step = take(lanczos_step_workspace(1, n, rows - 1, Exec{}), 8);
  c.total = at;
  return c;
}

}  // namespace catapult
