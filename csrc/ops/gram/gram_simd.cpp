#include "ops/gram/gram_simd.hpp"

#include "core/gemm_tile.hpp"

namespace catapult {
namespace {

// Both products of one block are summed in these buffers, each `ld` wide.
template <typename T>
struct Buffers {
  T *total, *product, *inputs;  // sum over layers, G G' of a layer, scale A A' + bias of it
  T *left, *right;              // packed panels
  int64_t ld;
};

template <typename T>
struct Block {
  int64_t row, col, rows, cols;  // of the output
  bool on_diagonal;              // entries above the diagonal are not wanted

  // Does the register tile at (i, j) hold an entry on or below the diagonal?
  CATAPULT_INLINE bool wanted(int64_t i, int64_t j) const {
    return !on_diagonal || j <= i + kTileRows - 1;
  }
};

// x[row0...] y[col0...]' over the whole contraction in pieces; finish(i, j, sums) gets each
// complete register tile, `partial` holds the incomplete ones.
template <typename T, typename Wanted, typename Finish>
CATAPULT_INLINE void multiply(PlainMatrix<T> x, PlainMatrix<T> y, const Block<T>& block,
                              int64_t contraction, int64_t depth, const Buffers<T>& buffers,
                              T* partial, const Wanted& wanted, const Finish& finish) {
  for (int64_t k = 0; k < contraction || k == 0; k += depth) {
    const int64_t here = smaller(depth, contraction - k);
    pack_rows<kTileRows>(x, block.row, block.rows, k, here, buffers.left);
    pack_rows<kTileCols<T>>(y, block.col, block.cols, k, here, buffers.right);
    const bool first = k == 0, last = k + depth >= contraction;
    multiply_block<T>(block.rows, block.cols, here, buffers.left, buffers.right, wanted,
                      [&](int64_t i, int64_t j, TileSums<T>& sums) __attribute__((always_inline)) {
                        T* to = partial + i * buffers.ld + j;
                        if (!first) add_tile(sums, to, buffers.ld);
                        if (last) {
                          finish(i, j, sums);
                        } else {
                          store_tile(sums, to, buffers.ld);
                        }
                      });
  }
}

// inputs[n - n0][c] = scale a[n].a2[m] + bias, m the sample of column c of the block.
template <typename T>
void input_gram(const GramLayer<T>& layer, const GramProblem<T>& problem, const GramConfig& config,
                const Block<T>& block, const Buffers<T>& buffers) {
  const int64_t outputs = problem.outputs;
  const int64_t n0 = block.row / outputs, n1 = (block.row + block.rows - 1) / outputs + 1;
  const int64_t m0 = block.col / outputs, m1 = (block.col + block.cols - 1) / outputs + 1;
  const Block<T> samples{n0, m0, n1 - n0, m1 - m0, block.on_diagonal};
  T* plain = outputs == 1 ? buffers.inputs : buffers.product;
  multiply<T>(
      {layer.a, layer.d}, {layer.a2, layer.d}, samples, layer.d, config.depth, buffers, plain,
      [&](int64_t i, int64_t j) { return samples.wanted(i, j); },
      [&](int64_t i, int64_t j, TileSums<T>& sums) __attribute__((always_inline)) {
        T* to = plain + i * buffers.ld + j;
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r)
          for (int v = 0; v < 2; ++v)
            store(to + r * buffers.ld + v * kLanes<T>, sums.v[r][v] * layer.scale + layer.bias);
      });
  if (outputs == 1) return;
  for (int64_t n = 0; n < n1 - n0; ++n) {  // one column per flat column
    const T* from = plain + n * buffers.ld;
    T* to = buffers.inputs + n * buffers.ld;
    int64_t m = 0, o = block.col - m0 * outputs;
    for (int64_t c = 0; c < block.cols; ++c) {
      to[c] = from[m];
      if (++o == outputs) {
        o = 0;
        ++m;
      }
    }
    for (int64_t c = block.cols; c < round_up(block.cols, kTileCols<T>); ++c) to[c] = T(0);
  }
}

// total += inputs o (g g2'), the Hadamard product taken on each register tile.
template <typename T>
void add_layer(const GramLayer<T>& layer, const GramProblem<T>& problem, const GramConfig& config,
               const Block<T>& block, const Buffers<T>& buffers, bool first_layer) {
  const int64_t outputs = problem.outputs, ld = buffers.ld;
  const int64_t n0 = block.row / outputs, last_sample = (block.row + block.rows - 1) / outputs - n0;
  multiply<T>(
      {layer.g, layer.p}, {layer.g2, layer.p}, block, layer.p, config.depth, buffers,
      buffers.product, [&](int64_t i, int64_t j) { return block.wanted(i, j); },
      [&](int64_t i, int64_t j, TileSums<T>& sums) __attribute__((always_inline)) {
        const int64_t row = block.row + i;
        int64_t n = row / outputs - n0, o = row % outputs;
        T* to = buffers.total + i * ld + j;
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
          const T* input = buffers.inputs + smaller(n, last_sample) * ld + j;
          for (int v = 0; v < 2; ++v) {
            T* at = to + r * ld + v * kLanes<T>;
            Vec<T> term = sums.v[r][v] * load(input + v * kLanes<T>);
            if (!first_layer) term += load(at);
            store(at, term);
          }
          if (++o == outputs) {
            o = 0;
            ++n;
          }
        }
      });
}

// out[col...][row...] = total', in squares of kLanes.
template <typename T>
void write_mirrored(const T* total, int64_t ld, const Block<T>& block, T* out, int64_t out_ld) {
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < block.rows; i += lanes) {
    for (int64_t j = 0; j < block.cols; j += lanes) {
      T* to = out + (block.col + j) * out_ld + block.row + i;
      const int64_t rows = smaller(lanes, block.rows - i);
      const int64_t cols = smaller(lanes, block.cols - j);
      if (rows < lanes || cols < lanes) {
        for (int64_t c = 0; c < cols; ++c)
          for (int64_t r = 0; r < rows; ++r) to[c * out_ld + r] = total[(i + r) * ld + j + c];
        continue;
      }
      Vec<T> square[lanes];
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) square[r] = load(total + (i + r) * ld + j);
      transpose_lanes<T>(square);
#pragma GCC unroll 16
      for (int c = 0; c < lanes; ++c) store(to + c * out_ld, square[c]);
    }
  }
}

template <typename T>
void write_block(const GramProblem<T>& problem, const Block<T>& block, const Buffers<T>& buffers) {
  T* total = buffers.total;
  if (block.on_diagonal) {
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t c = r + 1; c < block.cols; ++c)
        total[r * buffers.ld + c] = total[c * buffers.ld + r];
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    const T* from = total + r * buffers.ld;
    __builtin_memcpy(problem.out + (block.row + r) * problem.cols + block.col, from,
                     static_cast<size_t>(block.cols) * sizeof(T));
  }
  if (problem.symmetric && !block.on_diagonal)
    write_mirrored(total, buffers.ld, block, problem.out, problem.cols);
}

template <typename T>
void compute_block(const GramProblem<T>& problem, const GramConfig& config, int64_t row,
                   int64_t col, T* scratch) {
  const Block<T> block{row, col, smaller(config.tile, problem.rows - row),
                       smaller(config.tile, problem.cols - col), problem.symmetric && row == col};
  const int64_t rows = config.tile + 2 * kTileRows, cols = config.tile + 2 * kTileCols<T>;
  Buffers<T> buffers;
  buffers.ld = cols;
  buffers.right = scratch;
  buffers.total = buffers.right + cols * config.depth + kPackSlack<T>;
  buffers.product = buffers.total + rows * cols;
  buffers.inputs = buffers.product + rows * cols;
  buffers.left = buffers.inputs + rows * cols;
  for (int64_t l = 0; l < problem.layer_count; ++l) {
    input_gram(problem.layers[l], problem, config, block, buffers);
    add_layer(problem.layers[l], problem, config, block, buffers, l == 0);
  }
  write_block(problem, block, buffers);
}

template <typename T>
CATAPULT_INLINE T dot(const T* x, const T* y, int64_t n) {
  constexpr int lanes = kLanes<T>;
  Vec<T> s[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes)
    for (int v = 0; v < 4; ++v) s[v] += load(x + i + v * lanes) * load(y + i + v * lanes);
  T total = reduce_add<T>((s[0] + s[1]) + (s[2] + s[3]));
  for (; i < n; ++i) total += x[i] * y[i];
  return total;
}

template <typename T>
void compute_diagonal(const GramProblem<T>& problem, int64_t first, int64_t last) {
  const int64_t outputs = problem.outputs;
  for (int64_t l = 0; l < problem.layer_count; ++l) {
    const GramLayer<T>& layer = problem.layers[l];
    T input = 0;
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / outputs;
      if (row == first || row % outputs == 0)
        input =
            layer.scale * dot(layer.a + n * layer.d, layer.a2 + n * layer.d, layer.d) + layer.bias;
      const T term = input * dot(layer.g + row * layer.p, layer.g2 + row * layer.p, layer.p);
      problem.out[row] = l == 0 ? term : problem.out[row] + term;
    }
  }
}

template <typename T>
constexpr GramKernels<T> kKernels = {kTileRows, kTileCols<T>, kPackSlack<T>, &compute_block<T>,
                                     &compute_diagonal<T>};

}  // namespace

const GramSimd CATAPULT_ISA_SYMBOL(gram_simd) = {kKernels<float>, kKernels<double>};

}  // namespace catapult
