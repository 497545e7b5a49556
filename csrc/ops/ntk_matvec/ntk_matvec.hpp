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

// out = a b of float32 matrices, or out += a b, as 16-bit integers: each row of a and column of b
// is scaled so that sums of products fit 32 bits, and rounded. On the CPU.
struct Int16ProductArgs {
  TensorView a;          // (M, K), one stride of 1, or its packed_left
  TensorView b;          // (K, N), one stride of 1, or its packed_right
  TensorView mask;       // (M, N) that multiplies the result; null data: none
  TensorView out;        // (M, N)
  TensorView workspace;  // float32, at least int16_side_size() of b; empty where b is packed
  int64_t depth = 0;     // K
  bool add = false;      // to out
};

// Whether this processor multiplies 16-bit integers faster than float32.
bool int16_product_is_fast();

// Float32 entries of one side of products, as integers: `free` rows of a or columns of b.
int64_t int16_side_size(bool left, int64_t free, int64_t depth);

// One side (M, K) or (K, N) of many products, as integers.
void int16_pack(const TensorView& matrix, bool left, const TensorView& packed, int threads);

void int16_product(const Int16ProductArgs& args, int threads);

}  // namespace catapult
