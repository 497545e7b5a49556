// The inner loops of toy_gd_reduced, one table per instruction set: one replica per lane.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// Every array is lane-minor: entry k of lane l stands at [k * lanes + l]. `inputs` is D rounded up
// to even; the padding is zero and stays zero.
//
// S is stored by pairs of rows (see toy_packed_index) and lags one step: the S of the current step
// is s + held_zeta held_p' + held_p held_zeta'. So one sweep over S adds the last update and
// multiplies the new S by zeta.
template <typename T>
struct ToyReducedLanes {
  int64_t inputs;
  T* w;          // (inputs)
  T* zeta;       // (inputs)
  T* held_zeta;  // (inputs)
  T* held_p;     // (inputs)
  T* s_zeta;     // (inputs)
  T* s;          // (inputs (inputs + 1) / 2)
  T* q;
  T* trace;  // of S
  T* rate;   // eta / sqrt(W)
  T* cut;    // the largest loss that is accepted
  T* loss;
  T* norm;  // root of trace + q
};

// Place of S[i][j], i <= j < inputs, inputs even. Rows i, i + 1 (i even) are stored together: their
// 2 x 2 block on the diagonal, then S[i][j], S[i+1][j] for every j behind it.
inline int64_t toy_packed_index(int64_t i, int64_t j, int64_t inputs) {
  const int64_t row = i / 2 * 2, before = row * inputs - row * (row - 1) / 2;
  if (j < row + 2) return before + (i - row) + (j - row);
  return before + 3 + 2 * (j - row - 2) + (i - row);
}

// Rows of the data taken together: `count` of them (1, 4 or 8), zero outside first .. last - 1.
struct ToyReducedBlock {
  int64_t row, count, first, last;
};

template <typename T>
struct ToyReducedData {
  const ToyReducedBlock* blocks;
  int64_t block_count;
  const T* x;  // block after block, each (inputs, count), inputs even
  const T* y;  // (rows)
  T inverse_root_width;
  T inverse_samples;  // 1 / N of the loss
};

template <typename T>
struct ToyReducedTable {
  int lanes;
  // loss, norm and zeta = X' r / N of the current w; true where every lane's loss and norm are
  // acceptable (see ToyReplicaRecord).
  bool (*residuals)(const ToyReducedData<T>& data, const ToyReducedLanes<T>& state);
  // One step along zeta.
  void (*advance)(const ToyReducedLanes<T>& state);
};

struct ToyReducedTables {
  ToyReducedTable<float> float32;
  ToyReducedTable<double> float64;
};

CATAPULT_DECLARE_ISA_TABLES(ToyReducedTables, toy_gd_reduced_simd);

}  // namespace catapult
