// The product of a symmetric matrix, given by its lower triangle, by a team of blocks.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/team.cuh"
#include "core/cuda/vec_io.cuh"

// Large functions of this kernel stay calls: inlined, they take minutes to compile and more
// registers than there are.
#define CATAPULT_CALL __attribute__((noinline))

namespace catapult::device {

constexpr int kStrip = kWarpSize;

// Shared memory of one block. x, columns and rows are padded to whole strips.
template <typename Acc>
struct ProductShared {
  Acc *x, *columns, *rows;
  Acc* pieces;  // (2, warps, kStrip)
};

// One tile of 32 rows and columns: adds to each row's sum, returns what its column gains from
// above. Every entry below the diagonal is loaded once and used for both triangles.
template <typename T, typename Acc>
__device__ __forceinline__ Acc product_tile(const T* a, int64_t n, int64_t row, int64_t column,
                                            const Acc* x, Acc (&sum)[kStrip]) {
  const int lane = threadIdx.x % kWarpSize;
  const bool diagonal = row == column;
  const Acc xj = x[column + lane];
  Acc gain = Acc(0);
#pragma unroll
  for (int r = 0; r < kStrip; ++r) {
    const bool inside = in_bounds(row + r < n) && (!diagonal || lane <= r);
    const Acc entry = inside ? static_cast<Acc>(a[(row + r) * n + column + lane]) : Acc(0);
    sum[r] += entry * xj;
    gain += (diagonal && lane == r ? Acc(0) : entry) * x[row + r];
  }
  return gain;
}

// The same for a tile below the diagonal of which every row is there.
template <typename T, typename Acc>
__device__ __forceinline__ Acc whole_tile(const T* a, int64_t n, const Acc* x_rows, Acc xj,
                                          Acc (&sum)[kStrip]) {
  constexpr int width = kPackWidth<Acc>;
  Acc gain = Acc(0);
#pragma unroll
  for (int r = 0; r < kStrip; r += width) {
    const Pack<Acc, width> x = load_pack<width>(x_rows + r);
#pragma unroll
    for (int w = 0; w < width; ++w) {
      const Acc entry = static_cast<Acc>(*a);
      a += n;
      sum[r + w] += entry * xj;
      gain += entry * x[w];
    }
  }
  return gain;
}

// This block's share of A x: columns + rows. Strips of rows are dealt to the team back and forth,
// as their areas grow. Entry j of both results is always written by thread j % blockDim.x, so that
// a caller who reads it there needs no barrier.
template <typename T, typename Acc>
CATAPULT_CALL __device__ void symmetric_product(const T* a, int64_t n, int64_t padded,
                                                const Team& team, const ProductShared<Acc>& s) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int warps = blockDim.x / kWarpSize;
  for (int64_t i = threadIdx.x; i < padded; i += blockDim.x) s.columns[i] = s.rows[i] = Acc(0);
  __syncthreads();
  const int64_t strips = padded / kStrip;
  int turn = 0;
  for (int64_t round = 0; round * team.size < strips; ++round) {
    const int64_t place = round % 2 == 0 ? team.rank : team.size - 1 - team.rank;
    const int64_t strip = round * team.size + place, row = strip * kStrip;
    if (strip >= strips) continue;
    Acc sum[kStrip] = {};
    const bool whole = in_bounds(row + kStrip <= n);
    const T* from = a + row * n + warp * kStrip + lane;
    int64_t tile = warp;
#pragma unroll 1
    for (; tile < strip && whole; tile += warps) {
      const int64_t j = tile * kStrip + lane;
      s.columns[j] += whole_tile(from, n, s.x + row, s.x[j], sum);
      from += warps * kStrip;
    }
#pragma unroll 1
    for (; tile <= strip; tile += warps)
      s.columns[tile * kStrip + lane] += product_tile(a, n, row, tile * kStrip, s.x, sum);
    Acc* const pieces = s.pieces + (turn % 2) * warps * kStrip;
    pieces[warp * kStrip + lane] = warp_transpose_sum(sum);
    __syncthreads();
    if (warp == strip % warps) {
      Acc total = pieces[lane];
      for (int i = 1; i < warps; ++i) total += pieces[i * kStrip + lane];
      s.rows[row + lane] = total;
    }
    ++turn;
  }
}

}  // namespace catapult::device
