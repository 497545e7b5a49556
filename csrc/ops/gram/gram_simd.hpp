// What the CPU driver of gram asks of its SIMD code.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"
#include "ops/gram/gram_config.hpp"

namespace catapult {

template <typename T>
struct GramLayer {
  const T *a, *a2;  // (samples, d)
  const T *g, *g2;  // (samples * outputs, p)
  int64_t d, p;
  T scale, bias;
};

template <typename T>
struct GramProblem {
  const GramLayer<T>* layers;
  int64_t layer_count;
  int64_t rows, cols, outputs;  // rows = N1 * outputs
  bool symmetric;               // only entries with column <= row are computed, the rest mirrored
  T* out;                       // (rows, cols)
};

template <typename T>
struct GramKernels {
  int tile_rows, tile_cols, slack;
  // The block of out that starts at (row, col), of config.tile rows and columns at most.
  void (*block)(const GramProblem<T>&, const GramConfig&, int64_t row, int64_t col, T* scratch);
  // out[row] for first <= row < last of the diagonal.
  void (*diagonal)(const GramProblem<T>&, int64_t first, int64_t last);
};

struct GramSimd {
  GramKernels<float> f32;
  GramKernels<double> f64;

  template <typename T>
  const GramKernels<T>& of() const {
    if constexpr (sizeof(T) == 4) {
      return f32;
    } else {
      return f64;
    }
  }
};

CATAPULT_DECLARE_ISA_TABLES(GramSimd, gram_simd);

}  // namespace catapult
