// Register-tiled matrix products for *_simd.cpp files: packing, the micro-kernel, and the loop over
// the tiles of one cache block. The layout follows BLIS (Van Zee and van de Geijn 2015): operands
// are repacked into panels that the micro-kernel reads front to back.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/simd.hpp"

namespace catapult {
namespace {

// Register tile: 6 x 2 vectors on 16 registers, 14 x 2 on 32; the rest holds operands.
constexpr int kTileRows = (kVectorRegisters - 4) / 2;
template <typename T>
constexpr int kTileCols = 2 * kLanes<T>;

template <typename T>
struct TileSums {
  Vec<T> v[kTileRows][2];
};

// sums = sum_k a[k][0..rows) b[k][0..cols) over two packed panels.
template <typename T>
CATAPULT_INLINE void multiply_panels(int64_t depth, const T* a, const T* b, TileSums<T>& sums) {
  Vec<T> acc[kTileRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) acc[i][0] = acc[i][1] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<T> b0 = load(b), b1 = load(b + kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Vec<T> x = splat(a[i]);
      acc[i][0] += x * b0;
      acc[i][1] += x * b1;
    }
    a += kTileRows;
    b += kTileCols<T>;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    sums.v[i][0] = acc[i][0];
    sums.v[i][1] = acc[i][1];
  }
}

template <typename T>
CATAPULT_INLINE void add_tile(TileSums<T>& sums, const T* from, int64_t ld) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    sums.v[i][0] += load(from + i * ld);
    sums.v[i][1] += load(from + i * ld + kLanes<T>);
  }
}

template <typename T>
CATAPULT_INLINE void store_tile(const TileSums<T>& sums, T* to, int64_t ld) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    store(to + i * ld, sums.v[i][0]);
    store(to + i * ld + kLanes<T>, sums.v[i][1]);
  }
}

// Not std::min: a template of the library may be kept in this file's instruction set for everybody.
CATAPULT_INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

CATAPULT_INLINE constexpr int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// Lane j of the result is lane kIndex(j) of the pair a, b.
template <typename T, typename Index, size_t... J>
CATAPULT_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Index, std::index_sequence<J...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Index::at(int(J))...);
#else
  using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Lane Mask __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Mask{Index::at(int(J))...});
#endif
}

// Blocks of kBlock lanes change places between a and b: the low or the high half of each pair.
template <int kBlock, int kLanesOf, bool kHigh>
struct Exchanged {
  static constexpr int at(int j) {
    return j & kBlock ? j + (kHigh ? kLanesOf : kLanesOf - kBlock) : j + (kHigh ? kBlock : 0);
  }
};
// a0 b0 a1 b1 of every four lanes, or a2 b2 a3 b3: one instruction where exchanging takes two.
template <int kLanesOf, bool kHigh>
struct Interleaved {
  static constexpr int at(int j) {
    return j / 4 * 4 + j % 4 / 2 + (kHigh ? 2 : 0) + (j % 2 ? kLanesOf : 0);
  }
};

template <template <int, bool> class Pattern, typename T>
CATAPULT_INLINE void shuffle_rows(Vec<T>& a, Vec<T>& b) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>{};
  const Vec<T> low = a, high = b;
  a = shuffle<T>(low, high, Pattern<kLanes<T>, false>{}, lanes);
  b = shuffle<T>(low, high, Pattern<kLanes<T>, true>{}, lanes);
}

template <int kBlock>
struct ExchangedBy {
  template <int kLanesOf, bool kHigh>
  using Pattern = Exchanged<kBlock, kLanesOf, kHigh>;
};

template <typename T, int kBlock>
CATAPULT_INLINE void exchange_stage(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & kBlock))
      shuffle_rows<ExchangedBy<kBlock>::template Pattern, T>(rows[i], rows[i + kBlock]);
}

// Transposes kLanes x kLanes values in registers.
template <typename T>
CATAPULT_INLINE void transpose_lanes(Vec<T>* rows) {
  if constexpr (kLanes<T> > 8) exchange_stage<T, 8>(rows);
  if constexpr (kLanes<T> > 4) exchange_stage<T, 4>(rows);
  if constexpr (sizeof(T) == 8) {
    if constexpr (kLanes<T> > 2) exchange_stage<T, 2>(rows);
    exchange_stage<T, 1>(rows);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < kLanes<T>; i += 4) {
      // Rows 0 2 and 1 3 interleaved, then the results: columns 0 1 and 2 3 of the four rows.
      shuffle_rows<Interleaved, T>(rows[i], rows[i + 2]);
      shuffle_rows<Interleaved, T>(rows[i + 1], rows[i + 3]);
      shuffle_rows<Interleaved, T>(rows[i], rows[i + 1]);
      shuffle_rows<Interleaved, T>(rows[i + 2], rows[i + 3]);
    }
  }
}

// What packing reads: x[row][col] * factor + offset, rows contiguous.
template <typename T>
struct AffineMatrix {
  const T* data;
  int64_t ld;
  T factor = T(1), offset = T(0);

  CATAPULT_INLINE Vec<T> vec(int64_t row, int64_t col) const {
    return load(data + row * ld + col) * factor + offset;
  }
  CATAPULT_INLINE T at(int64_t row, int64_t col) const {
    return data[row * ld + col] * factor + offset;
  }
};

template <typename T>
struct PlainMatrix {
  const T* data;
  int64_t ld;

  CATAPULT_INLINE Vec<T> vec(int64_t row, int64_t col) const { return load(data + row * ld + col); }
  CATAPULT_INLINE T at(int64_t row, int64_t col) const { return data[row * ld + col]; }
};

// Elements past the last panel that pack_rows may write.
template <typename T>
constexpr int kPackSlack = kLanes<T>;

// kLanes values of k of one group of kLanes panel rows, of which `valid` exist.
template <int kWidth, typename T, typename Matrix>
CATAPULT_INLINE void pack_group(const Matrix& m, int64_t row, int valid, int64_t col, T* to) {
  constexpr int lanes = kLanes<T>;
  Vec<T> block[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) block[i] = i < valid ? m.vec(row + i, col) : Vec<T>{};
  transpose_lanes<T>(block);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store(to + i * kWidth, block[i]);
}

// Panels of kWidth matrix rows with the columns [col, col + depth) as contraction:
// to[panel][k][i] = m[row + panel * kWidth + i][col + k]; missing rows become zeros.
template <int kWidth, typename T, typename Matrix>
CATAPULT_INLINE void pack_rows(const Matrix& m, int64_t row, int64_t rows, int64_t col,
                               int64_t depth, T* to) {
  constexpr int lanes = kLanes<T>;
  constexpr int last_group = (kWidth - 1) / lanes * lanes;
  for (int64_t first = 0; first < rows; first += kWidth, to += kWidth * depth) {
    const int here = static_cast<int>(smaller(kWidth, rows - first));
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
      T* at = to + k * kWidth;
      const int64_t from = row + first;
      // The last group's spare lanes run into the next k: it goes first, and is overwritten there.
      if (here == kWidth) {
#pragma GCC unroll 4
        for (int i = last_group; i >= 0; i -= lanes)
          pack_group<kWidth>(m, from + i, lanes < kWidth - i ? lanes : kWidth - i, col + k, at + i);
      } else {
        for (int i = last_group; i >= 0; i -= lanes)
          pack_group<kWidth>(m, from + i, lanes < here - i ? lanes : here - i, col + k, at + i);
      }
    }
    for (; k < depth; ++k)
      for (int i = 0; i < kWidth; ++i)
        to[k * kWidth + i] = i < here ? m.at(row + first + i, col + k) : T(0);
  }
}

// Panels of kWidth matrix columns with the rows [row, row + depth) as contraction:
// to[panel][k][i] = m[row + k][col + panel * kWidth + i]; missing columns become zeros.
template <int kWidth, typename T, typename Matrix>
CATAPULT_INLINE void pack_cols(const Matrix& m, int64_t row, int64_t depth, int64_t col,
                               int64_t cols, T* to) {
  constexpr int lanes = kLanes<T>;
  constexpr int64_t kTogether = 8;  // rows that are read side by side, each from front to back
  for (int64_t start = 0; start < depth; start += kTogether) {
    const int64_t stop = smaller(start + kTogether, depth);
    for (int64_t first = 0; first < cols; first += kWidth) {
      const int64_t here = smaller(kWidth, cols - first);
      for (int64_t k = start; k < stop; ++k) {
        T* panel = to + first * depth + k * kWidth;
        int i = 0;
        if (here == kWidth) {
#pragma GCC unroll 4
          for (; i + lanes <= kWidth; i += lanes) store(panel + i, m.vec(row + k, col + first + i));
        }
        for (; i < kWidth; ++i) panel[i] = i < here ? m.at(row + k, col + first + i) : T(0);
      }
    }
  }
}

// Every register tile of one packed block: done(first row, first column, sums). Tiles for which
// wanted(row, column) is false are skipped.
template <typename T, typename Wanted, typename Done>
CATAPULT_INLINE void multiply_block(int64_t rows, int64_t cols, int64_t depth, const T* a,
                                    const T* b, const Wanted& wanted, const Done& done) {
  for (int64_t j = 0; j < cols; j += kTileCols<T>) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      if (!wanted(i, j)) continue;
      TileSums<T> sums;
      multiply_panels(depth, a + i * depth, b + j * depth, sums);
      done(i, j, sums);
    }
  }
}

}  // namespace
}  // namespace catapult
