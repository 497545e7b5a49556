// Theta V for R chains of L dense layers with element-wise activations, from frozen activations:
//   backward  G_L = V,  G_{l-1} = (sqrt(scale_l) G_l W_l) o slopes_{l-1}
//   forward   X_l = sqrt(scale_l) (X_{l-1} o slopes_{l-1}) W_l' + source_l,  result X_L
//   source_l  (scale_l A_l A_l' + bias_l) G_l                    sample space, from a cached A_l
//   A_l'
//             scale_l A_l (G_l' A_l)' + bias_l 1 1' G_l          weight space
#pragma once

#include <cstdint>
#include <vector>

#include "core/exec.hpp"
#include "core/tensor_view.hpp"
#include "ops/ntk_matvec/ntk_matvec_config.hpp"

namespace catapult {

struct NtkMatvecArgs {
  TensorView v;                     // (R, N*O, K)
  std::vector<TensorView> weights;  // L x (R, p_l, d_l)
  std::vector<TensorView> inputs;   // L x (R, N, d_l)
  std::vector<TensorView> slopes;   // L-1 x (R, N, p_l)
  std::vector<TensorView> grams;    // L x (R, N, N), or of no elements: weight space
  std::vector<double> scale, bias;  // L
  TensorView workspace;             // (ntk_matvec_workspace(...),)
  TensorView out;                   // (R, N*O, K)

  bool in_sample_space(size_t layer) const { return grams[layer].numel() > 0; }
};

void ntk_matvec(const NtkMatvecArgs& args, const Exec& exec);

void ntk_matvec_cpu(const NtkMatvecArgs& args, const Exec& exec);
void ntk_matvec_cuda(const NtkMatvecArgs& args, const Exec& exec);

}  // namespace catapult
