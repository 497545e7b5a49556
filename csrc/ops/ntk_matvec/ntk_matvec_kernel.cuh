// The steps of a chain of products, for one item (one vector of one replica) each. Either one
// launch per step with a block per tile, or, where the items alone fill the GPU, one launch for the
// whole chain with a block per item: the same kernel.
#pragma once

#include "core/cuda/gemm_tile.cuh"

namespace catapult::device {

constexpr int kMatvecSteps = 12;  // of one launch; they have to fit the 4 KB of kernel parameters

// A matrix of each item, at data + replica * replica_stride + vector * vector_stride.
template <typename T>
struct ItemMatrix {
  T* data;
  int64_t replica_stride, vector_stride;
  int row_stride, col_stride;

  __device__ T* of(int replica, int vector) const {
    return data + replica * replica_stride + vector * vector_stride;
  }
};

// out = (sum over terms of (factor left + offset) right + 1 row_bias') o mask, left (rows, depth),
// right (depth, cols); or, with sums_of, out[0] = sum_factor times the column sums of sums_of.
template <typename T>
struct MatvecStep {
  struct Term {
    ItemMatrix<const T> left, right;
    T factor, offset;
    int depth;
  } terms[2];
  int term_count;
  int rows, cols;
  ItemMatrix<T> out;
  ItemMatrix<const T> mask, row_bias, sums_of;  // data null: none
  T sum_factor;
  int sum_rows;
};

template <typename T>
struct MatvecParams {
  MatvecStep<T> steps[kMatvecSteps];
  int step_count, vectors;
  int blocks_per_item;  // that share the tiles of an item; 1 where there are several steps
};

template <typename T>
__device__ inline void sum_columns(const MatvecStep<T>& step, int replica, int vector, int first,
                                   int stride) {
  const T* const from = step.sums_of.of(replica, vector);
  T* const to = step.out.of(replica, vector);
  for (int c = first * blockDim.x + threadIdx.x; c < step.cols; c += stride * blockDim.x) {
    T sum = 0;
    for (int r = 0; r < step.sum_rows; ++r)
      sum += from[int64_t{r} * step.sums_of.row_stride + int64_t{c} * step.sums_of.col_stride];
    to[c] = step.sum_factor * sum;
  }
}

template <typename Engine, typename T>
__device__ inline void compute_tile(const MatvecStep<T>& step, int replica, int vector, int row,
                                    int col, T* smem) {
  Engine engine;
#pragma unroll
  for (int e = 0; e < Engine::Shape::kElements; ++e) engine.sum[e] = T(0);
#pragma unroll 1
  for (int t = 0; t < step.term_count; ++t) {
    const auto& term = step.terms[t];
    engine.left = {term.factor, term.offset};
    multiply_tile(engine, smem,
                  TileSource<T>::strided(term.left.of(replica, vector), term.left.row_stride,
                                         term.left.col_stride, step.rows, term.depth),
                  TileSource<T>::strided(term.right.of(replica, vector), term.right.col_stride,
                                         term.right.row_stride, step.cols, term.depth),
                  row, col, term.depth);
  }
  T* const out = step.out.of(replica, vector);
  const T* const mask = step.mask.data ? step.mask.of(replica, vector) : nullptr;
  const T* const row_bias = step.row_bias.data ? step.row_bias.of(replica, vector) : nullptr;
#pragma unroll
  for (int e = 0; e < Engine::Shape::kElements; ++e) {
    const int64_t r = row + Engine::row(e), c = col + Engine::col(e);
    if (!in_bounds(r < step.rows) || !in_bounds(c < step.cols)) continue;
    T value = engine.sum[e];
    if (row_bias) value += row_bias[c];
    if (mask) value *= mask[r * step.mask.row_stride + c * step.mask.col_stride];
    out[r * step.out.row_stride + c * step.out.col_stride] = value;
  }
}

// Dynamic shared memory: Shape::kSharedSize elements.
template <typename Engine, int kBlocksPerProcessor>
__global__ void __launch_bounds__(Engine::Shape::kThreads, kBlocksPerProcessor)
    ntk_matvec_kernel(const MatvecParams<typename Engine::T> p) {
  using Shape = typename Engine::Shape;
  using T = typename Engine::T;
  CATAPULT_DYNAMIC_SMEM(T, smem);
  const int item = blockIdx.x / p.blocks_per_item, first = blockIdx.x % p.blocks_per_item;
  const int replica = item / p.vectors, vector = item % p.vectors;
  for (int s = 0; s < p.step_count; ++s) {
    const MatvecStep<T>& step = p.steps[s];
    if (s > 0) __syncthreads();  // this block wrote what the step reads
    if (step.sums_of.data) {
      sum_columns(step, replica, vector, first, p.blocks_per_item);
      continue;
    }
    const int across = (step.cols + Shape::kCols - 1) / Shape::kCols;
    const int tiles = (step.rows + Shape::kRows - 1) / Shape::kRows * across;
    for (int tile = first; tile < tiles; tile += p.blocks_per_item)
      compute_tile<Engine>(step, replica, vector, tile / across * Shape::kRows,
                           tile % across * Shape::kCols, smem);
  }
}

}  // namespace catapult::device
