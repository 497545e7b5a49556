// The neural tangent kernels of R networks of dense layers from their factors:
//   Theta[(n,o),(m,q)] = sum_l (scale_l a_l[n].a2_l[m] + bias_l) (g_l[n,o].g2_l[m,q]).
#pragma once

#include <vector>

#include "core/exec.hpp"
#include "core/tensor_view.hpp"
#include "ops/gram/gram_config.hpp"

namespace catapult {

// Of float32 products on a GPU: FMA units, or TF32 tensor cores with one or three products. The CPU
// and float64 are always full.
enum class GramPrecision { kFull = 0, kTf32 = 1, kTf32x3 = 2 };

enum class GramOutputs { kAll = 0, kTrace = 1, kDiagonal = 2 };

struct GramArgs {
  // Of one network all tensors may lack the leading R, which gram() adds.
  std::vector<TensorView> a;   // L x (R, N1, d_l)
  std::vector<TensorView> g;   // L x (R, N1, O, p_l)
  std::vector<TensorView> a2;  // L x (R, N2, d_l), or empty: the symmetric kernel of a and g
  std::vector<TensorView> g2;  // L x (R, N2, O, p_l), or empty
  std::vector<double> scale;   // L
  std::vector<double> bias;    // L
  GramOutputs outputs = GramOutputs::kAll;
  GramPrecision precision = GramPrecision::kFull;
  TensorView out;  // kAll (R, N1*O, N2*O), kTrace (R, N1, N2), kDiagonal (R, N1*O)

  int64_t replicas() const { return out.size[0]; }
  bool symmetric() const { return a2.empty(); }
};

void gram(const GramArgs& args, const Exec& exec);

// The tiles the CPU takes for an output of rows x cols with elements of `bytes`, on the active ISA.
GramConfig gram_cpu_config(int64_t rows, int64_t cols, bool symmetric, int bytes, int threads);

void gram_cpu(const GramArgs& args, const Exec& exec);
void gram_cuda(const GramArgs& args, const Exec& exec);

}  // namespace catapult
