// Workspace and tiles of ntk_matvec. Pure, so that tests can call them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace catapult {

// Where one vector of one replica keeps its intermediate results; offsets in elements.
struct NtkMatvecLayout {
  std::vector<int64_t> g;   // G_l (N, p_l)
  int64_t x[2] = {};        // X_l, alternating
  int64_t dw = 0, sum = 0;  // G_l' A_l (p_l, d_l) and the column sums of G_l, weight space only
  int64_t size = 0;
};

inline NtkMatvecLayout ntk_matvec_layout(int64_t samples, const std::vector<int64_t>& p,
                                         const std::vector<int64_t>& d,
                                         const std::vector<int64_t>& in_sample_space) {
  constexpr int64_t kAlign = 16;
  NtkMatvecLayout layout;
  const auto take = [&layout](int64_t elements) {
    const int64_t at = layout.size;
    layout.size += (elements + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  int64_t widest = 0, weights = 0, sums = 0;
  for (size_t l = 0; l < p.size(); ++l) {
    layout.g.push_back(take(samples * p[l]));
    widest = std::max(widest, p[l]);
    if (in_sample_space[l]) continue;
    weights = std::max(weights, p[l] * d[l]);
    sums = std::max(sums, p[l]);
  }
  for (int64_t& x : layout.x) x = take(samples * widest);
  layout.dw = take(weights);
  layout.sum = take(sums);
  return layout;
}

struct ProductConfig {
  int64_t rows = 0, cols = 0;  // one task's block of the result
  int64_t depth = 0;           // contraction length of one packed piece
};

// batch: products of this size that run at once; bytes: of one element.
inline ProductConfig product_config(int64_t rows, int64_t cols, int64_t batch, int tile_rows,
                                    int tile_cols, int bytes, int threads) {
  // The left block, rows x depth, stays in the L2 cache; a right panel and a left one in the L1.
  constexpr int64_t kRowBytes = 1024, kColBytes = 4096, kDepthBytes = 1024;
  constexpr int64_t kTasksPerThread = 2;
  const auto pieces = [](int64_t n, int64_t piece) { return (n + piece - 1) / piece; };
  const auto split = [&](int64_t n, int64_t parts, int64_t tile) {
    return std::max(pieces(pieces(n, parts), tile), int64_t{1}) * tile;
  };
  int64_t row_parts = std::max<int64_t>(1, pieces(rows * bytes, kRowBytes));
  int64_t col_parts = std::max<int64_t>(1, pieces(cols * bytes, kColBytes));
  const int64_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
  // Split the longer side of the blocks while threads would idle, down to a few register tiles.
  while (batch * row_parts * col_parts < wanted) {
    const int64_t block_rows = rows / (row_parts + 1), block_cols = cols / (col_parts + 1);
    if (cols / col_parts >= rows / row_parts && block_cols >= 4 * tile_cols) {
      ++col_parts;
    } else if (block_rows >= 4 * tile_rows) {
      ++row_parts;
    } else {
      break;
    }
  }
  return {split(rows, row_parts, tile_rows), split(cols, col_parts, tile_cols),
          kDepthBytes / bytes};
}

// Elements of scratch one block needs; slack as in core/gemm_tile.hpp.
inline int64_t product_scratch(const ProductConfig& config, int tile_rows, int tile_cols,
                               int slack) {
  return (config.rows + config.cols) * config.depth + tile_rows * tile_cols + 2 * slack;
}

}  // namespace catapult
