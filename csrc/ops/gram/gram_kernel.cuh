// One block per tile of the result. Per layer the tile's input Gram goes to shared memory, the
// product of the derivatives stays in registers, and their Hadamard product is added to the tile's
// total, also in registers: nothing of a layer's size reaches global memory.
#pragma once

#include "core/cuda/gemm_tile.cuh"
#include "core/cuda/reduce.cuh"

namespace catapult::device {

constexpr int kGramLayers = 24;  // of one launch; more layers take more launches

template <typename T>
struct GramCudaLayer {
  const T *a, *a2, *g, *g2;
  int d, p;
  T scale, bias;
};

template <typename T>
struct GramParams {
  GramCudaLayer<T> layers[kGramLayers];
  int layer_count;
  int replicas;
  int tiles;       // of one replica
  int rows, cols;  // of one replica's out; of a diagonal both are its length
  int outputs;     // rows = samples * outputs
  int row_tiles, col_tiles;
  bool symmetric;   // tiles that touch the lower triangle only; the rest is mirrored
  bool accumulate;  // add to what earlier launches left in out
  T* out;           // (replicas, rows, cols)
};

// The factors of one layer of a replica.
template <typename T>
__device__ inline GramCudaLayer<T> layer_of(const GramParams<T>& p, int l, int64_t replica) {
  GramCudaLayer<T> layer = p.layers[l];
  layer.a += replica * (p.rows / p.outputs) * layer.d;
  layer.a2 += replica * (p.cols / p.outputs) * layer.d;
  layer.g += replica * p.rows * layer.p;
  layer.g2 += replica * p.cols * layer.p;
  return layer;
}

// Symmetric: row r of tiles has the first r * step + step columns of tiles, step = rows per column.
template <typename Shape, typename T>
__device__ inline void tile_of_block(const GramParams<T>& p, int block, int& row, int& col) {
  if (!p.symmetric) {
    row = block / p.col_tiles;
    col = block % p.col_tiles;
    return;
  }
  constexpr int step = Shape::kRows / Shape::kCols;
  const int64_t index = block / step;
  row = static_cast<int>((sqrt(8.0 * index + 1.0) - 1.0) / 2.0);
  while (int64_t{row} * (row + 1) / 2 > index) --row;
  while (int64_t{row + 1} * (row + 2) / 2 <= index) ++row;
  col = static_cast<int>(block - int64_t{step} * row * (row + 1) / 2);
}

// table[n][m] = scale a[n0 + n].a2[m0 + m] + bias for several outputs, where the samples of a tile
// are few: each warp takes 4 x 4 dot products at a time.
template <typename Shape, typename T>
__device__ inline void input_table(const GramCudaLayer<T>& layer, int n0, int n_count, int m0,
                                   int m_count, T* table) {
  constexpr int edge = 4;
  const int lane = threadIdx.x % kWarpSize, across = (m_count + edge - 1) / edge;
  const int groups = (n_count + edge - 1) / edge * across;
  for (int group = threadIdx.x / kWarpSize; group < groups; group += Shape::kThreads / kWarpSize) {
    const int n = group / across * edge, m = group % across * edge;
    T sum[edge][edge] = {};
    for (int k = lane; k < layer.d; k += kWarpSize) {
      T y[edge];
#pragma unroll
      for (int j = 0; j < edge; ++j)
        y[j] = layer.a2[int64_t{m0 + min(m + j, m_count - 1)} * layer.d + k];
#pragma unroll
      for (int i = 0; i < edge; ++i) {
        const T x = layer.a[int64_t{n0 + min(n + i, n_count - 1)} * layer.d + k];
#pragma unroll
        for (int j = 0; j < edge; ++j) sum[i][j] += x * y[j];
      }
    }
#pragma unroll
    for (int i = 0; i < edge; ++i) {
#pragma unroll
      for (int j = 0; j < edge; ++j) {
        const T total = warp_sum(sum[i][j]);
        if (lane == 0 && in_bounds(n + i < n_count) && in_bounds(m + j < m_count))
          table[(n + i) * m_count + m + j] = layer.scale * total + layer.bias;
      }
    }
  }
}

// Dynamic shared memory: Shape::kSharedSize + Shape::kRows * Shape::kCols elements. kSeveral: of
// several replicas; the pointers of one take registers, which the large tiles have none left of.
template <typename Engine, int kBlocksPerProcessor, bool kSeveral>
__global__ void __launch_bounds__(Engine::Shape::kThreads, kBlocksPerProcessor)
    gram_kernel(const GramParams<typename Engine::T> p) {
  using Shape = typename Engine::Shape;
  using T = typename Engine::T;
  CATAPULT_DYNAMIC_SMEM(T, smem);
  T* const inputs = smem + Shape::kSharedSize;
  int row, col;
  tile_of_block<Shape>(p, kSeveral ? blockIdx.x % p.tiles : blockIdx.x, row, col);
  row *= Shape::kRows;
  col *= Shape::kCols;
  if (col >= p.cols) return;
  const int n0 = row / p.outputs, m0 = col / p.outputs;
  const int n_count = (min(row + Shape::kRows, p.rows) - 1) / p.outputs - n0 + 1;
  const int m_count = (min(col + Shape::kCols, p.cols) - 1) / p.outputs - m0 + 1;

  // Where a row and a column of the tile find their sample in the table. In shared memory, because
  // the compiler would keep the indices of all elements in registers all along.
  __shared__ int row_place[Shape::kRows], col_place[Shape::kCols];
  for (int i = threadIdx.x; i < Shape::kRows; i += Shape::kThreads)
    row_place[i] = min((row + i) / p.outputs - n0, n_count - 1) * m_count;
  for (int i = threadIdx.x; i < Shape::kCols; i += Shape::kThreads)
    col_place[i] = min((col + i) / p.outputs - m0, m_count - 1);

  __shared__ GramCudaLayer<T> of_replica[kSeveral ? kGramLayers : 1];
  if constexpr (kSeveral) {
    for (int l = threadIdx.x; l < p.layer_count; l += Shape::kThreads)
      of_replica[l] = layer_of(p, l, blockIdx.x / p.tiles);
    __syncthreads();
  }
  T total[Shape::kElements] = {};
  for (int l = 0; l < p.layer_count; ++l) {
    const GramCudaLayer<T>& layer = kSeveral ? of_replica[l] : p.layers[l];
    Engine engine;
    // The barriers of multiply_tile complete the table.
    if (p.outputs != 1) input_table<Shape>(layer, n0, n_count, m0, m_count, inputs);
    // One output: first the input Gram by the same product, each thread keeping its own elements.
#pragma unroll 1
    for (int phase = p.outputs == 1 ? 0 : 1; phase < 2; ++phase) {
      const int depth = phase ? layer.p : layer.d;
#pragma unroll
      for (int e = 0; e < Shape::kElements; ++e) engine.sum[e] = T(0);
      multiply_tile(engine, smem, TileSource<T>::rows(phase ? layer.g : layer.a, p.rows, depth),
                    TileSource<T>::rows(phase ? layer.g2 : layer.a2, p.cols, depth), row, col,
                    depth);
      if (phase) break;
#pragma unroll
      for (int e = 0; e < Shape::kElements; ++e)
        inputs[e * Shape::kThreads + threadIdx.x] = layer.scale * engine.sum[e] + layer.bias;
    }
#pragma unroll
    for (int e = 0; e < Shape::kElements; ++e) {
      int at = e * Shape::kThreads + threadIdx.x;
      if (p.outputs != 1) at = row_place[Engine::row(e)] + col_place[Engine::col(e)];
      total[e] += inputs[at] * engine.sum[e];
    }
    if (p.outputs != 1) __syncthreads();  // the table is rewritten for the next layer
  }

  T* const out = kSeveral ? p.out + int64_t{p.rows} * p.cols * (blockIdx.x / p.tiles) : p.out;
#pragma unroll
  for (int e = 0; e < Shape::kElements; ++e) {
    const int r = row + Engine::row(e), c = col + Engine::col(e);
    if (!in_bounds(r < p.rows) || !in_bounds(c < p.cols)) continue;
    if (p.symmetric && c > r) continue;
    T* const to = out + int64_t{r} * p.cols + c;
    const T value = p.accumulate ? *to + total[e] : total[e];
    *to = value;
    if (p.symmetric && c < r) out[int64_t{c} * p.cols + r] = value;
  }
}

// One warp per flat row of a replica: out[row] = sum_l (scale a.a2 + bias) (g.g2).
template <typename T>
__global__ void gram_diagonal_kernel(const GramParams<T> p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t index = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarpSize;
  if (!in_bounds(index < int64_t{p.replicas} * p.rows)) return;
  const int64_t replica = index / p.rows;
  const int row = static_cast<int>(index % p.rows);
  const int64_t sample = row / p.outputs;
  const auto dot = [lane](const T* x, const T* y, int n) {
    T sum = 0;
    for (int i = lane; i < n; i += kWarpSize) sum += x[i] * y[i];
    return warp_sum(sum);
  };
  T total = 0;
  for (int l = 0; l < p.layer_count; ++l) {
    const GramCudaLayer<T> layer = layer_of(p, l, replica);
    const T input = dot(layer.a + sample * layer.d, layer.a2 + sample * layer.d, layer.d);
    const T output =
        dot(layer.g + int64_t{row} * layer.p, layer.g2 + int64_t{row} * layer.p, layer.p);
    total += (layer.scale * input + layer.bias) * output;
  }
  if (lane == 0) p.out[index] = p.accumulate ? p.out[index] + total : total;
}

}  // namespace catapult::device
