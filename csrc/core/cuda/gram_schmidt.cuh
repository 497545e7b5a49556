// Classical Gram-Schmidt of one vector against orthonormal rows, by a team of blocks that share its
// columns. The rows are read twice: once for the projections h, once to subtract them, measuring
// tile by tile what is left; a third read subtracts that, only where it exceeds a few eps (Daniel,
// Gragg, Kaufman, Stewart 1976: twice is enough). Sums run in double, in a fixed order.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/team.cuh"

namespace catapult::device {

constexpr int kGramSchmidtTile = 512;  // columns; some tens of rows of it fit the L1 cache

template <typename T>
struct GramSchmidt {
  const T* rows;  // (count, n), row i at rows + i * stride
  int64_t stride;
  int count;
  const T* in;           // (n)
  T* out;                // (n), the remainder; may not overlap rows or in
  int64_t begin, end;    // columns of this block
  double enough;         // relative size of a leftover that may stay
  double* parts;         // global, gram_schmidt_parts(team size, count) entries for the team
  double scaling = 1.0;  // of `in`, a power of two
};

inline __host__ __device__ int64_t gram_schmidt_parts(int64_t team, int64_t count) {
  return team * (2 * (count + 1) + 1);
}

// Shared memory. After the call h (count + 1) holds the projections and the squared norm of `in`,
// left (count + 1) what the first pass left of them, on every block.
struct GramSchmidtShared {
  double *tile, *h, *left, *sum, *scratch;

  static __host__ __device__ int64_t entries(int64_t count) {
    return kGramSchmidtTile + (3 * (count + 1) + 33) / 2 * 2;  // what follows may move 16 bytes
  }
  __device__ GramSchmidtShared(double* memory, int count)
      : tile(memory),
        h(memory + kGramSchmidtTile),
        left(h + count + 1),
        sum(left + count + 1),
        scratch(sum + count + 1) {}
};

// sum[i] += rows_i . tile, and sum[count] += tile . tile; a warp takes a row.
template <typename T>
__device__ void add_row_dots(const GramSchmidt<T>& g, int64_t at, int width,
                             const GramSchmidtShared& s) {
  const int lane = threadIdx.x % kWarpSize;
  for (int i = threadIdx.x / kWarpSize; i <= g.count; i += blockDim.x / kWarpSize) {
    const T* row = g.rows + i * g.stride + at;
    double dot = 0.0;
    if (i < g.count) {
#pragma unroll 4
      for (int j = lane; j < width; j += kWarpSize) dot += static_cast<double>(row[j]) * s.tile[j];
    } else {
      for (int j = lane; j < width; j += kWarpSize) dot += s.tile[j] * s.tile[j];
    }
    dot = warp_sum(dot);
    if (lane == 0) s.sum[i] += dot;
  }
}

// Entry j of x - sum_i c_i rows_i, rounded to T; x_j given.
template <typename T>
__device__ T subtract_rows(const GramSchmidt<T>& g, double value, const double* c, int64_t j) {
#pragma unroll 4
  for (int i = 0; i < g.count; ++i) value -= c[i] * static_cast<double>(g.rows[i * g.stride + j]);
  return static_cast<T>(value);
}

// One pass over this block's columns: fill(j) gives entry j of the vector whose dots with the rows
// are summed over the team into `total`.
template <typename T, typename Fill>
__device__ void team_row_dots(const GramSchmidt<T>& g, const GramSchmidtShared& s, Team& team,
                              double* parts, double* total, Fill fill) {
  const int count = g.count + 1;
  for (int i = threadIdx.x; i < count; i += blockDim.x) s.sum[i] = 0.0;
  for (int64_t at = g.begin; at < g.end; at += kGramSchmidtTile) {
    const int width = static_cast<int>(min(int64_t{kGramSchmidtTile}, g.end - at));
    for (int j = threadIdx.x; j < width; j += blockDim.x) s.tile[j] = fill(at + j);
    __syncthreads();
    add_row_dots(g, at, width, s);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) parts[team.rank * count + i] = s.sum[i];
  team.sync();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    double sum = parts[i];
    for (int b = 1; b < team.size; ++b) sum += parts[b * count + i];
    total[i] = sum;
  }
  __syncthreads();
}

// Writes out = in - rows' (rows in), orthogonal to the rows; returns its squared norm. The same
// value, h and left on every thread of the team.
template <typename T>
__device__ double orthogonalise(const GramSchmidt<T>& g, const GramSchmidtShared& s, Team& team) {
  double* second = g.parts + team.size * (g.count + 1);
  double* squares = second + team.size * (g.count + 1);
  team_row_dots(g, s, team, g.parts, s.h, [&](int64_t j) { return g.scaling * g.in[j]; });
  team_row_dots(g, s, team, second, s.left, [&](int64_t j) {
    const T value = subtract_rows(g, g.scaling * g.in[j], s.h, j);
    g.out[j] = value;
    return double(value);
  });
  double leftover = 0.0;
  for (int i = 0; i < g.count; ++i) leftover += s.left[i] * s.left[i];
  if (!(leftover > g.enough * g.enough * s.left[g.count])) return s.left[g.count];

  double part = 0.0;
  for (int64_t j = g.begin + threadIdx.x; j < g.end; j += blockDim.x) {
    const T value = subtract_rows(g, double(g.out[j]), s.left, j);
    g.out[j] = value;
    part += double(value) * double(value);
  }
  part = block_sum(part, s.scratch);
  if (threadIdx.x == 0) squares[team.rank] = part;
  team.sync();
  double total = 0.0;
  for (int b = 0; b < team.size; ++b) total += squares[b];
  return total;
}

}  // namespace catapult::device
