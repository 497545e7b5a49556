// The inner loop of toy_scalar, one table per instruction set.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// State of the running lanes of one chunk, packed from the front. Arrays have room up to the next
// multiple of kToyScalarGranule; the lanes that fill it up stand still at zero.
template <typename T>
struct ToyScalarLanes {
  T *h, *k;
  T *b, *cut;
  T *beta, *mh, *mk;  // momentum and velocities; null: plain descent
  T* peak;
  T* rise;     // out: step of this segment (from 1) at which the peak rose last, 0 for none
  T* stop;     // out: step of this segment (from 1) at which the lane diverged, 0 for none
  T* settled;  // out: 1 where rounding has frozen the lane
};

// What a segment has found in any of its lanes.
struct ToyScalarNews {
  bool rises = false, stops = false, settles = false;
};

struct ToyScalarSimd {
  // Advances the first `count` lanes (rounded up to whole vectors) by `steps` steps.
  ToyScalarNews (*f32)(const ToyScalarLanes<float>& lanes, int64_t count, int64_t steps, bool look);
  ToyScalarNews (*f64)(const ToyScalarLanes<double>& lanes, int64_t count, int64_t steps,
                       bool look);
};

CATAPULT_DECLARE_ISA_TABLES(ToyScalarSimd, toy_scalar_simd);

}  // namespace catapult
