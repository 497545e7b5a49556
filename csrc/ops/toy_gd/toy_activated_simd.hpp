// The inner loops of toy_gd with an activation, one table per instruction set.
#pragma once

#include "core/cpu_isa.hpp"
#include "ops/toy_gd/toy_gd_simd.hpp"
#include "toy/toy_activation.hpp"

namespace catapult {

// One replica's weights in tiles as in ToyGdState, and what its hidden units say to every sample.
template <typename T>
struct ToyActivatedState {
  int64_t tiles;
  T* u;
  T* v;
  const T* live;  // (tiles, lanes) 1; 0 for the units that pad the last tile
  T* h;           // (tiles, samples, lanes) phi(z)
  T* g;           // the same, phi'(z)
  T* sums;        // (samples, lanes) partial sums of f
  T* f;           // (samples) sum over units of v phi(z)
  T* pull;        // (samples) step size / N * residual
  T q;            // |v|^2
  double u2;      // |U|^2 after a step
};

template <typename T>
struct ToyActivatedTable {
  int lanes;
  // h, g, f and q of the weights as they are.
  void (*look)(const ToyGdData<T>& data, ToyActivatedState<T>& state, Activation kind, T slope);
  // The weights one step along -pull, then as `look`, in one pass over the tiles; h and g must be
  // those of the old weights.
  void (*step)(const ToyGdData<T>& data, ToyActivatedState<T>& state, Activation kind, T slope);
  // out[a][b] (samples, samples) = inner[a][b] sum v^2 phi'_a phi'_b + sum phi_a phi_b.
  void (*kernel)(const ToyGdData<T>& data, const ToyActivatedState<T>& state, const double* inner,
                 double* out);
};

struct ToyActivatedTables {
  ToyActivatedTable<float> float32;
  ToyActivatedTable<double> float64;
};

CATAPULT_DECLARE_ISA_TABLES(ToyActivatedTables, toy_activated_simd);

}  // namespace catapult
