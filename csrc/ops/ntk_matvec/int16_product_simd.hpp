// The inner loops of int16_product, one table per instruction set.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// One side of a product: `free` rows of the left one or columns of the right one, `depth` numbers
// each. A panel holds `width` of them, as pairs of neighbours along the depth, one after another.
struct Int16Side {
  const float* data;
  int64_t free, depth;
  int64_t free_stride, depth_stride;  // one of them is 1
};

// out (rows, cols) = mask o (the product of two panels + out with `add`).
struct Int16Tile {
  const int32_t *left, *right;
  int64_t depth;
  const float *left_units, *right_units;
  int64_t rows, cols;
  bool add;
  const float* mask;  // null: ones
  float* out;
  int64_t ld;  // of out and mask
};

struct Int16Loops {
  int rows, cols;  // of a tile: the widths of the panels of either side
  // Panels of [first, first + count), from a whole panel on: `units` receives what one of each is
  // worth, and `panels` int16_panel(width, depth) numbers a panel. `scratch`: int16_scratch().
  void (*pack_left)(const Int16Side& side, int64_t first, int64_t count, float* units,
                    int32_t* panels, int16_t* scratch);
  void (*pack_right)(const Int16Side& side, int64_t first, int64_t count, float* units,
                     int32_t* panels, int16_t* scratch);
  void (*tile)(const Int16Tile& tile);
  void (*tile_by_dot_products)(const Int16Tile& tile);  // by vpdpwssd; null where there is none
};

// Pairs of a panel, and the vector that the last one may run over.
constexpr int64_t int16_panel(int64_t width, int64_t depth) {
  return width * ((depth + 1) / 2) + 16;
}
constexpr int64_t int16_scratch(int64_t depth) { return 32 * 2 * ((depth + 1) / 2) + 64; }

CATAPULT_DECLARE_ISA_TABLES(Int16Loops, int16_product_simd);

}  // namespace catapult
