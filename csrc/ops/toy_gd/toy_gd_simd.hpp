// The inner loops of toy_gd, one table per instruction set.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// The samples in the two layouts that the loops read, padded with zeros to whole vectors.
template <typename T>
struct ToyGdData {
  int64_t samples, inputs;
  int64_t padded_samples, padded_inputs;
  const T* by_input;   // (inputs, padded_samples)
  const T* by_sample;  // (samples, padded_inputs)
  const T* y;          // (padded_samples)
  T inverse_root_width;
};

// One replica's weights in tiles of `lanes` hidden units: tile i holds u[i][j][lane], v[i][lane].
// Hidden units beyond the width are zero and stay zero.
template <typename T>
struct ToyGdState {
  int64_t tiles, inputs;
  T* u;
  T* v;
  T* w;         // (inputs) w = U'v of the current step
  T* zeta;      // (padded_inputs) zeta = X'r / N of the current step
  T* residual;  // (padded_samples)
  T* sums;      // (inputs, lanes) partial sums of w
  T q;          // |v|^2
  T uz2;        // |U zeta|^2 of the step just made
};

template <typename T>
struct ToyGdTable {
  int lanes;
  // From w: the residuals, the loss (returned) and zeta.
  T (*residuals)(const ToyGdData<T>& data, ToyGdState<T>& state);
  // One step of size rate = eta / sqrt(W) along zeta, and w, q of the new weights, in one pass over
  // the tiles in groups of `group` (1, 2 or 4); `backward` visits them from the last to the first.
  void (*step)(ToyGdState<T>& state, T rate, int group, bool backward);
  // w and q of the weights as they are.
  void (*measure)(ToyGdState<T>& state);
  // S = U'U into gram (inputs, inputs).
  void (*gram)(const ToyGdState<T>& state, double* gram);
};

struct ToyGdTables {
  ToyGdTable<float> float32;
  ToyGdTable<double> float64;
};

CATAPULT_DECLARE_ISA_TABLES(ToyGdTables, toy_gd_simd);

}  // namespace catapult
