// The inner loops of toy_lyapunov, one table per instruction set: a vector holds as many paths as
// it has lanes.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// A chunk of cases; `cases` is a multiple of kToyLyapunovGroup.
struct ToyLyapunovCases {
  int64_t cases;
  const double *mean, *deviation, *beta;  // (cases,)
  double *x, *y;                          // (cases, lanes) state over 2^exponent
  int64_t* exponent;                      // (cases, lanes)
};

struct ToyLyapunovSimd {
  int64_t lanes;
  // z: (kToyLyapunovSegment, lanes) draws from step 2 * first_pair on of paths first_path, ...
  void (*draw)(double* z, int64_t first_pair, int64_t first_path, int64_t seed, int64_t noise);
  // `steps` steps with the draws z (steps, lanes); leaves the larger entry in [1, 2).
  void (*advance)(const ToyLyapunovCases& cases, const double* z, int64_t steps);
};

CATAPULT_DECLARE_ISA_TABLES(ToyLyapunovSimd, toy_lyapunov_simd);

}  // namespace catapult
