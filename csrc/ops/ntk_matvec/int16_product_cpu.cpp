// int16_product: float32 matrices multiplied as 16-bit integers with 32-bit sums.
#include <algorithm>

#include "core/parallel.hpp"
#include "core/scratch.hpp"
#include "ops/ntk_matvec/int16_product_simd.hpp"
#include "ops/ntk_matvec/ntk_matvec.hpp"

namespace catapult {
namespace {

constexpr const char* kOp = "int16_product";
constexpr int64_t kTogether = 64;  // rows or columns whose cache lines are read together, at most
constexpr int64_t kMostNumbers = int64_t{1} << 40;  // of a side: no size in bytes overflows

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t padded(int64_t n) { return divided(n, 64) * 64; }

const Int16Loops& loops() { return CATAPULT_SELECT_ISA(int16_product_simd); }

Int16Side side_of(const TensorView& t, int free) {
  return {t.as<float>(), t.size[free], t.size[1 - free], t.stride[free], t.stride[1 - free]};
}

int width_of(bool left) { return left ? loops().rows : loops().cols; }

// One side as integers: units, then panels.
struct Packed {
  float* units;
  int32_t* panels;
  int64_t width, each;

  Packed(float* work, bool left, int64_t free, int64_t depth)
      : units(work),
        panels(reinterpret_cast<int32_t*>(work + padded(free))),
        width(width_of(left)),
        each(int16_panel(width, depth)) {}
  const int32_t* panel(int64_t at) const { return panels + at / width * each; }
};

// Whole panels whose cache lines are read together.
int64_t group_of(bool left) { return kTogether / width_of(left) * width_of(left); }

// `count` rows or columns from `first` on, from `place` on.
void pack(const Int16Side& side, bool left, int64_t first, int64_t count, const Packed& to,
          int64_t place, int16_t* scratch) {
  (left ? loops().pack_left : loops().pack_right)(side, first, count, to.units + place,
                                                  to.panels + place / to.width * to.each, scratch);
}

void pack_all(const Int16Side& side, bool left, const Packed& to, int threads) {
  const int64_t group = group_of(left), groups = divided(side.free, group);
  const int team = usable_threads(threads_for(8.0 * side.free * side.depth, threads), groups);
  const Scratch scratch(team, int16_scratch(side.depth) * static_cast<int64_t>(sizeof(int16_t)));
  parallel_for(groups, team, [&](int64_t g) {
    const int64_t first = g * group;
    pack(side, left, first, std::min(group, side.free - first), to, first,
         scratch.piece<int16_t>(piece_index(team)));
  });
}

void check_side(int64_t free, int64_t depth) {
  check(free >= 0 && depth >= 0, kOp, "sizes must not be negative, got ", free, " and ", depth);
  check(free <= kMostNumbers && depth <= kMostNumbers / std::max<int64_t>(free, 1), kOp,
        "a side must have at most 2^40 numbers, got ", free, " times ", depth);
}

void check_matrix(const char* name, const TensorView& t) {
  check(t.ndim == 2, kOp, name, " must have 2 dimensions, got ", t.ndim);
  check(t.dtype == Dtype::kFloat32, kOp, name, " must be float32, got ", dtype_name(t.dtype));
  check(t.data != nullptr || t.numel() == 0, kOp, name, " has a null data pointer");
  check(t.stride[0] == 1 || t.stride[1] == 1, kOp, name, " must have a stride of 1");
}

void check_packed(const char* name, const TensorView& t, int64_t size) {
  check_dense(kOp, name, t, 1, Dtype::kFloat32);
  check(t.size[0] >= size, kOp, name, " must hold ", size, " numbers, got ", t.size[0]);
}

}  // namespace

bool int16_product_is_fast() { return has_int16_dot_products() && loops().tile_by_dot_products; }

int64_t int16_side_size(bool left, int64_t free, int64_t depth) {
  check_side(free, depth);
  const int64_t width = width_of(left);
  return padded(free) + divided(free, width) * int16_panel(width, depth);
}

void int16_pack(const TensorView& matrix, bool left, const TensorView& packed, int threads) {
  check_matrix("matrix", matrix);
  const Int16Side side = side_of(matrix, left ? 0 : 1);
  check_packed("packed", packed, int16_side_size(left, side.free, side.depth));
  pack_all(side, left, {packed.as<float>(), left, side.free, side.depth}, threads);
}

void int16_product(const Int16ProductArgs& args, int threads) {
  check_dense(kOp, "out", args.out, 2, Dtype::kFloat32);
  const int64_t rows = args.out.size[0], depth = args.depth, cols = args.out.size[1];
  check_side(rows, depth);
  check_side(cols, depth);
  const bool left_packed = args.a.ndim == 1, right_packed = args.b.ndim == 1;
  if (left_packed) {
    check_packed("a", args.a, int16_side_size(true, rows, depth));
  } else {
    check_matrix("a", args.a);
    check_size(kOp, "a", args.a, 0, rows);
    check_size(kOp, "a", args.a, 1, depth);
  }
  if (right_packed) {
    check_packed("b", args.b, int16_side_size(false, cols, depth));
  } else {
    check_matrix("b", args.b);
    check_size(kOp, "b", args.b, 0, depth);
    check_size(kOp, "b", args.b, 1, cols);
    check_packed("workspace", args.workspace, int16_side_size(false, cols, depth));
  }
  if (args.mask.data != nullptr) {
    check_dense(kOp, "mask", args.mask, 2, Dtype::kFloat32);
    check_size(kOp, "mask", args.mask, 0, rows);
    check_size(kOp, "mask", args.mask, 1, cols);
  }
  if (rows == 0 || cols == 0) return;
  threads = threads_for(2.0 * rows * cols * depth, threads);
  const Packed right((right_packed ? args.b : args.workspace).as<float>(), false, cols, depth);
  if (!right_packed) pack_all(side_of(args.b, 1), false, right, threads);
  const auto tile = int16_product_is_fast() ? loops().tile_by_dot_products : loops().tile;
  // some rows at a time, so that their integers stay in cache
  const int64_t high = group_of(true), groups = divided(rows, high);
  const int team = usable_threads(threads, groups);
  const int64_t integers = padded(int16_scratch(depth)) / 2;  // in places of 32 bits
  const Scratch scratch(team, (integers + int16_side_size(true, high, depth)) *
                                  static_cast<int64_t>(sizeof(int32_t)));
  parallel_for(groups, team, [&](int64_t group) {
    const int64_t first = group * high, count = std::min(high, rows - first);
    int32_t* const work = scratch.piece<int32_t>(piece_index(team));
    const Packed left = left_packed
                            ? Packed(args.a.as<float>(), true, rows, depth)
                            : Packed(reinterpret_cast<float*>(work + integers), true, high, depth);
    const int64_t place = left_packed ? first : 0;
    if (!left_packed)
      pack(side_of(args.a, 0), true, first, count, left, 0, reinterpret_cast<int16_t*>(work));
    for (int64_t col = 0; col < cols; col += right.width) {
      for (int64_t row = 0; row < count; row += left.width) {
        const int64_t at = (first + row) * cols + col;
        tile({left.panel(place + row), right.panel(col), depth, left.units + place + row,
              right.units + col, std::min(left.width, count - row),
              std::min(right.width, cols - col), args.add,
              args.mask.data != nullptr ? args.mask.as<float>() + at : nullptr,
              args.out.as<float>() + at, cols});
      }
    }
  });
}

}  // namespace catapult
