// Problem -> tiles of gram on the CPU. Pure, so that tests can call it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace catapult {

struct GramConfig {
  int64_t tile = 0;   // rows and columns of one task's block of the output
  int64_t depth = 0;  // contraction length of one packed piece
};

// rows, cols: the output's size; tile_rows, tile_cols: the register tile; bytes: of one element.
inline GramConfig gram_config(int64_t rows, int64_t cols, bool symmetric, int tile_rows,
                              int tile_cols, int bytes, int threads) {
  // Three blocks of this edge (sums, one layer's sums, input Gram) share the L2 cache with the
  // packed panels; a larger edge repacks less.
  constexpr int64_t kEdgeBytes = 768, kDepthBytes = 1024;
  // Fewer tasks than this per thread leave threads idle at the end.
  constexpr int64_t kTasksPerThread = 4;
  GramConfig config;
  config.depth = kDepthBytes / bytes;
  const int64_t longest = std::max(rows, cols);
  int64_t pieces = (longest * bytes + kEdgeBytes - 1) / kEdgeBytes;
  const auto tasks = [&](int64_t n) {
    const int64_t edge = (longest + n - 1) / n;
    const int64_t r = (rows + edge - 1) / edge, c = (cols + edge - 1) / edge;
    return symmetric ? r * (r + 1) / 2 : r * c;
  };
  const int64_t smallest = 2 * std::max(tile_rows, tile_cols);
  while (threads > 1 && tasks(pieces) < kTasksPerThread * threads &&
         longest > smallest * (pieces + 1))
    ++pieces;
  const int64_t edge = (longest + pieces - 1) / std::max<int64_t>(pieces, 1);
  config.tile = std::max<int64_t>((edge + tile_cols - 1) / tile_cols * tile_cols, tile_cols);
  return config;
}

// Elements of scratch one task needs; slack as in core/gemm_tile.hpp.
inline int64_t gram_scratch(const GramConfig& config, int tile_rows, int tile_cols, int slack) {
  // A tile of `tile` flat rows can touch two samples more than it has whole ones.
  const int64_t rows = config.tile + 2 * tile_rows, cols = config.tile + 2 * tile_cols;
  return 3 * rows * cols + (rows + cols) * config.depth + 2 * slack;
}

}  // namespace catapult
