// Classical Gram-Schmidt of one vector against orthonormal rows, by a team of blocks that share its
// columns. The rows are read twice: once for the projections h, once to subtract them, measuring
// tile by tile what is left; a third read subtracts that, only where it exceeds a few eps (Daniel,
// Gragg, Kaufman, Stewart 1976: twice is enough). Sums run in double, in a fixed order.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/team.cuh"
#include "core/cuda/vec_io.cuh"

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

// How a pass moves the rows: one entry at a time, or, where base and stride allow, 16 bytes a lane
// in the dots and two columns a thread in the subtraction. A thread then asks for 64 bytes at once
// in both: 32.8 KB are on their way to a multiprocessor that runs the 16 warps of two blocks of
// lanczos_step; its share of the memory's rate and latency asks for 21 to 26.
template <typename T, bool kPacked>
struct GramSchmidtMoves {
  static constexpr int kDot = kPacked ? kPackWidth<T> : 1, kColumns = kPacked ? 2 : 1;
  static constexpr int kRowsAhead = kPacked ? 64 / (kColumns * static_cast<int>(sizeof(T))) : 4;
  using Columns = Pack<double, kColumns>;

  __device__ static bool fit(const GramSchmidt<T>& g) {
    return g.stride % kDot == 0 && g.begin % kDot == 0 && g.end % kDot == 0 &&
           is_aligned(g.rows, kDot * sizeof(T)) && is_aligned(g.in, kColumns * sizeof(T)) &&
           is_aligned(g.out, kColumns * sizeof(T));
  }
  // Where the tile holds column j: pairs of the columns that a lane reads together lie 32 pairs
  // apart, so that its reads of 16 bytes meet no bank twice.
  __device__ static int place(int j) {
    return kDot == 4 ? (j & ~127) + (j >> 1 & 1) * 64 + (j >> 2 & 31) * 2 + (j & 1) : j;
  }
};

// Entries j ... of the vector of a pass: of `in`, scaled.
template <typename Moves, typename T>
__device__ typename Moves::Columns scaled_input(const GramSchmidt<T>& g, int64_t j) {
  const auto x = load_pack<Moves::kColumns>(g.in + j);
  typename Moves::Columns value;
#pragma unroll
  for (int w = 0; w < Moves::kColumns; ++w) value[w] = g.scaling * x[w];
  return value;
}

// Entries j ... of value - sum_i c_i rows_i, rounded to T, which it writes to `out`.
template <typename Moves, typename T>
__device__ typename Moves::Columns subtract_rows(const GramSchmidt<T>& g,
                                                 typename Moves::Columns value, const double* c,
                                                 int64_t j) {
  const T* row = g.rows + j;
#pragma unroll(Moves::kRowsAhead)
  for (int i = 0; i < g.count; ++i) {
    const auto x = load_pack<Moves::kColumns>(row);
    row += g.stride;
#pragma unroll
    for (int w = 0; w < Moves::kColumns; ++w) value[w] -= c[i] * static_cast<double>(x[w]);
  }
  Pack<T, Moves::kColumns> rounded;
#pragma unroll
  for (int w = 0; w < Moves::kColumns; ++w) {
    rounded[w] = static_cast<T>(value[w]);
    value[w] = static_cast<double>(rounded[w]);
  }
  store_pack<Moves::kColumns>(g.out + j, rounded);
  return value;
}

// A lane's share of row . tile.
template <typename Moves, typename T>
__device__ __forceinline__ double dot_with_tile(const T* row, const double* tile, int width) {
  constexpr int kDot = Moves::kDot, kPair = kDot > 1 ? 2 : 1;
  double dot = 0.0;
#pragma unroll 4
  for (int j = kDot * (threadIdx.x % kWarpSize); j < width; j += kDot * kWarpSize) {
    const auto x = load_pack<kDot>(row + j);
#pragma unroll
    for (int w = 0; w < kDot; w += kPair) {
      const auto t = load_pack<kPair>(tile + Moves::place(j + w));
#pragma unroll
      for (int v = 0; v < kPair; ++v) dot += static_cast<double>(x[w + v]) * t[v];
    }
  }
  return dot;
}

// sum[i] += rows_i . tile, and sum[count] += tile . tile; a warp takes a row.
template <typename Moves, typename T>
__device__ void add_row_dots(const GramSchmidt<T>& g, int64_t at, int width,
                             const GramSchmidtShared& s) {
  const int lane = threadIdx.x % kWarpSize;
  for (int i = threadIdx.x / kWarpSize; i <= g.count; i += blockDim.x / kWarpSize) {
    double dot = 0.0;
    if (i < g.count) {
      dot = dot_with_tile<Moves>(g.rows + i * g.stride + at, s.tile, width);
    } else {
      for (int j = lane; j < width; j += kWarpSize) {
        const double t = s.tile[Moves::place(j)];
        dot += t * t;
      }
    }
    dot = warp_sum(dot);
    if (lane == 0) s.sum[i] += dot;
  }
}

// One pass over this block's columns: fill(j) gives entries j ... of the vector whose dots with the
// rows are summed over the team into `total`.
template <typename Moves, typename T, typename Fill>
__device__ void team_row_dots(const GramSchmidt<T>& g, const GramSchmidtShared& s, Team& team,
                              double* parts, double* total, Fill fill) {
  const int count = g.count + 1;
  for (int i = threadIdx.x; i < count; i += blockDim.x) s.sum[i] = 0.0;
  for (int64_t at = g.begin; at < g.end; at += kGramSchmidtTile) {
    const int width = static_cast<int>(min(int64_t{kGramSchmidtTile}, g.end - at));
    for (int j = Moves::kColumns * threadIdx.x; j < width; j += Moves::kColumns * blockDim.x)
      store_pack<Moves::kColumns>(s.tile + Moves::place(j), fill(at + j));
    __syncthreads();
    add_row_dots<Moves>(g, at, width, s);
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

// This block's part of the squared norm of `out` after what the first pass left is subtracted.
template <typename Moves, typename T>
__device__ double subtract_leftover(const GramSchmidt<T>& g, const GramSchmidtShared& s) {
  double part = 0.0;
  for (int64_t j = g.begin + Moves::kColumns * threadIdx.x; j < g.end;
       j += Moves::kColumns * blockDim.x) {
    const auto before = load_pack<Moves::kColumns>(g.out + j);
    typename Moves::Columns value;
#pragma unroll
    for (int w = 0; w < Moves::kColumns; ++w) value[w] = static_cast<double>(before[w]);
    value = subtract_rows<Moves>(g, value, s.left, j);
#pragma unroll
    for (int w = 0; w < Moves::kColumns; ++w) part += value[w] * value[w];
  }
  return part;
}

template <typename Moves, typename T>
__device__ double orthogonalise_by(const GramSchmidt<T>& g, const GramSchmidtShared& s,
                                   Team& team) {
  double* second = g.parts + team.size * (g.count + 1);
  double* squares = second + team.size * (g.count + 1);
  team_row_dots<Moves>(g, s, team, g.parts, s.h,
                       [&](int64_t j) { return scaled_input<Moves>(g, j); });
  team_row_dots<Moves>(g, s, team, second, s.left, [&](int64_t j) {
    return subtract_rows<Moves>(g, scaled_input<Moves>(g, j), s.h, j);
  });
  double leftover = 0.0;
  for (int i = 0; i < g.count; ++i) leftover += s.left[i] * s.left[i];
  if (!(leftover > g.enough * g.enough * s.left[g.count])) return s.left[g.count];

  const double part = block_sum(subtract_leftover<Moves>(g, s), s.scratch);
  if (threadIdx.x == 0) squares[team.rank] = part;
  team.sync();
  double total = 0.0;
  for (int b = 0; b < team.size; ++b) total += squares[b];
  return total;
}

// Writes out = in - rows' (rows in), orthogonal to the rows; returns its squared norm. The same
// value, h and left on every thread of the team.
template <typename T>
__device__ double orthogonalise(const GramSchmidt<T>& g, const GramSchmidtShared& s, Team& team) {
  using Packed = GramSchmidtMoves<T, true>;
  if (Packed::fit(g)) return orthogonalise_by<Packed>(g, s, team);
  return orthogonalise_by<GramSchmidtMoves<T, false>>(g, s, team);
}

}  // namespace catapult::device
