// The curvature of several replicas at once, one per SIMD lane.
#pragma once

#include <cstdint>

#include "core/cpu_isa.hpp"

namespace catapult {

// X' X / N = F' F, shared by all replicas. `first` holds where each row of F starts to be non-zero.
struct ToyCurvatureFactor {
  int64_t rows, inputs;
  const double* f;       // (rows, inputs)
  const int64_t* first;  // (rows)
};

struct ToyCurvatureTable {
  int lanes;
  // out[l] = top eigenvalue of F (S + q I) F'; NaN where S or q is not finite. Entry k of lane l
  // stands at [k * lanes + l]: gram (inputs, inputs) is destroyed, work holds
  // toy_curvature_lanes_work() entries per lane.
  void (*tops)(const ToyCurvatureFactor& factor, double* gram, const double* q, double* work,
               double* out);
};

inline int64_t toy_curvature_lanes_work(int64_t rows, int64_t inputs) {
  return rows * inputs + rows * rows + 4 * rows;
}

CATAPULT_DECLARE_ISA_TABLES(ToyCurvatureTable, toy_curvature_simd);

}  // namespace catapult
