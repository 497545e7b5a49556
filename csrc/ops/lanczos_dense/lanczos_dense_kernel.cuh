// The whole solve of a batch of matrices in one launch: a team of blocks per matrix, every vector
// operation shared by the team, every decision taken by its first thread.
#pragma once

#include "core/cuda/gram_schmidt.cuh"
#include "ops/lanczos_dense/lanczos_dense_product.cuh"
#include "ops/lanczos_dense/lanczos_dense_solver.hpp"

namespace catapult::device {

template <typename T>
struct LanczosDenseParams {
  LanczosDenseProblem<T> problem;
  double* memory;  // config.total for each team
  int* arrived;    // one per team, zero
  LanczosDenseDevice config;
  int64_t replicas;
  bool copy;  // the matrix fits shared memory
};

// Sum of the absolute values of column j of the lower triangle. The sum over all columns is the
// largest entry up to a factor n^2.
template <typename T>
__device__ double column_size(const T* a, int64_t n, int64_t j) {
  double sum = 0.0;
  for (int64_t i = j; i < n; ++i) sum += fabs(static_cast<double>(a[i * n + j]));
  return sum;
}

// Shared memory of a block: that of Gram-Schmidt, Ritz values with their work, the product's
// vectors, and a copy of the matrix where it fits.
template <typename T>
struct LanczosDenseShared {
  GramSchmidtShared dots;
  double *ritz, *vectors;
  T* copy;

  __device__ LanczosDenseShared(double* smem, const LanczosDenseDevice& c)
      : dots(smem, static_cast<int>(c.k + c.room)),
        ritz(smem + GramSchmidtShared::entries(c.k + c.room)),
        vectors(ritz + 8 * c.room),
        copy(reinterpret_cast<T*>(vectors + 3 * c.padded + 2 * (blockDim.x / kWarpSize) * kStrip)) {
  }
};

// The Team of lanczos_dense_solver.hpp.
template <typename T>
class SolverBlocks {
 public:
  static constexpr bool kProves = false;
  const LanczosDenseMemory<T> memory;

  __device__ SolverBlocks(const LanczosDenseParams<T>& p, const LanczosDenseShared<T>& shared,
                          Team& blocks, double* start, int64_t replica)
      : memory{p.config, start},
        c_(p.config),
        eps_(p.problem.eps),
        shared_(shared),
        blocks_(blocks),
        begin_(min(c_.n, blocks.rank * c_.chunk)),
        end_(min(c_.n, begin_ + c_.chunk)),
        a_(p.problem.a + replica * c_.n * c_.n) {
    const T* const a = a_;
    if (p.copy) load_matrix();
    if (sizeof(T) == 8)
      half_ = lanczos_half_scale<T>(sum([&](int64_t j) { return column_size(a, c_.n, j); }));
  }

  __device__ bool first() const { return blocks_.rank == 0 && threadIdx.x == 0; }
  __device__ void sync() { blocks_.sync(); }
  __device__ int64_t products() const { return products_; }
  __device__ double unscaled(double value) const { return value / half_ / half_; }

  template <typename F>
  __device__ void columns(F f) const {
    for (int64_t j = begin_ + threadIdx.x; j < end_; j += blockDim.x) f(j);
  }

  template <typename F>
  __device__ double sum(F f) {
    double part = 0.0;
    columns([&](int64_t j) { part += f(j); });
    part = block_sum(part, shared_.dots.scratch);
    if (blocks_.size == 1) return part;
    double* const sums = memory.start + c_.sums;
    blocks_.sync();  // the last sums have been read
    if (threadIdx.x == 0) sums[blocks_.rank] = part;
    blocks_.sync();
    double total = 0.0;
    for (int b = 0; b < blocks_.size; ++b) total += sums[b];
    return total;
  }

  __device__ const T* multiply(const T* x) { return product<T>(x); }
  __device__ const double* multiply_wide(const T* x) { return product<double>(x); }

  CATAPULT_CALL __device__ LanczosDenseSquares orthogonal_row(const T* in, int64_t count) {
    const GramSchmidt<T> g{
        memory.row(0), c_.n,       static_cast<int>(count), in, memory.row(count), begin_,
        end_,          4.0 * eps_, memory.start + c_.parts};
    __syncthreads();  // a thread reads two columns, one of which another one has written
    const double left = orthogonalise(g, shared_.dots, blocks_);
    return {shared_.dots.h[count], left};
  }

  CATAPULT_CALL __device__ LanczosDenseStep<T> step(const T* w, int64_t at) {
    const LanczosDenseSquares squares = orthogonal_row(w, at + 1);
    const double length = sqrt(squares.left);
    const T diagonal = static_cast<T>(shared_.dots.h[at] + shared_.dots.left[at]);
    known_ = max(known_, fabs(static_cast<double>(diagonal)));
    const bool broke_down = length <= 10.0 * eps_ * max(known_, sqrt(squares.before));
    const T side = broke_down ? T(0) : static_cast<T>(length);
    known_ = max(known_, static_cast<double>(side));
    T* const next = memory.row(at + 1);
    const double factor = broke_down ? 0.0 : 1.0 / length;
    columns([&](int64_t j) { next[j] = static_cast<T>(broke_down ? 0.0 : next[j] * factor); });
    if (first()) {
      memory.alpha()[at] = diagonal;
      memory.beta()[at] = side;
    }
    return {diagonal, side};
  }

  CATAPULT_CALL __device__ void combine(const double* c, int64_t count, const T* rows, T* out) {
    columns([&](int64_t j) {
      double sum = 0.0;
      for (int64_t i = 0; i < count; ++i) sum += c[i] * static_cast<double>(rows[i * c_.n + j]);
      out[j] = static_cast<T>(sum);
    });
  }

 private:
  const LanczosDenseDevice& c_;
  const double eps_;
  const LanczosDenseShared<T>& shared_;
  Team& blocks_;
  const int64_t begin_, end_;  // this block's columns
  const T* a_;
  int64_t products_ = 0;
  double half_ = 1.0;   // the matrix is scaled by its square
  double known_ = 0.0;  // ||A|| from below

  // No barriers: those of the last solve and of the first product lie between.
  CATAPULT_CALL __device__ void load_matrix() {
    T* const to = shared_.copy;
    for (int64_t i = threadIdx.x / kWarpSize; i < c_.n; i += blockDim.x / kWarpSize)
      for (int64_t j = threadIdx.x % kWarpSize; j <= i; j += kWarpSize)
        to[i * c_.n + j] = a_[i * c_.n + j];
    a_ = to;
  }

  // A x on this block's columns.
  template <typename Acc>
  CATAPULT_CALL __device__ Acc* product(const T* x) {
    Acc* at = reinterpret_cast<Acc*>(shared_.vectors);
    const ProductShared<Acc> s{at, at + c_.padded, at + 2 * c_.padded, at + 3 * c_.padded};
    const Acc half = static_cast<Acc>(half_);
    blocks_.sync();  // x is complete
    for (int64_t i = threadIdx.x; i < c_.padded; i += blockDim.x)
      s.x[i] = in_bounds(i < c_.n) ? static_cast<Acc>(x[i]) * half : Acc(0);
    symmetric_product(a_, c_.n, c_.padded, blocks_, s);
    ++products_;
    Acc* const w = reinterpret_cast<Acc*>(memory.start + c_.w);
    if (blocks_.size == 1) {
      columns([&](int64_t j) { w[j] = (s.columns[j] + s.rows[j]) * half; });
      return w;
    }
    Acc* const pieces = reinterpret_cast<Acc*>(memory.start + c_.pieces);
    for (int64_t j = threadIdx.x; j < c_.n; j += blockDim.x)
      pieces[blocks_.rank * c_.n + j] = s.columns[j] + s.rows[j];
    blocks_.sync();
    columns([&](int64_t j) {
      Acc sum = pieces[j];
      for (int b = 1; b < blocks_.size; ++b) sum += pieces[b * c_.n + j];
      w[j] = sum * half;
    });
    return w;
  }
};

template <typename T>
__global__ void __launch_bounds__(256, 1)
    lanczos_dense_kernel(const __grid_constant__ LanczosDenseParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(double, smem);
  const LanczosDenseDevice& c = p.config;
  const int size = static_cast<int>(c.team);
  const int index = blockIdx.x / size, teams = gridDim.x / size;
  Team blocks{static_cast<int>(blockIdx.x % size), size, p.arrived + index};
  const LanczosDenseShared<T> shared(smem, c);
  double* const memory = p.memory + index * c.total;
  const RitzPairs ritz{shared.ritz, shared.ritz + c.room, memory + c.vectors,
                       shared.ritz + 2 * c.room};
  for (int64_t replica = index; replica < p.replicas; replica += teams) {
    SolverBlocks<T> team(p, shared, blocks, memory, replica);
    LanczosDenseSolver<T, SolverBlocks<T>>(p.problem, team, ritz, replica).solve();
  }
}

}  // namespace catapult::device
