// Tensor-core products of one warp, with bodies for the emulation. All 32 lanes must take part.
//
// TF32, D (16 x 8) += A (16 x 8) B (8 x 8). With g = lane / 4 and t = lane % 4 a lane holds
//   a: A[g][t], A[g+8][t], A[g][t+4], A[g+8][t+4]      b: B[t][g], B[t+4][g]
//   d: D[g][2t], D[g][2t+1], D[g+8][2t], D[g+8][2t+1]
// float64, D (8 x 8) += A (8 x 4) B (4 x 8): a: A[g][t]; b: B[t][g]; d: D[g][2t], D[g][2t+1].
#pragma once

#include <cstdint>

#include "core/cuda/runtime.cuh"

namespace catapult::device {

// Rounded to the nearest TF32 (10 bits of mantissa), ties away from zero, as cvt.rna does.
__device__ __forceinline__ float to_tf32(float x) {
#ifdef CATAPULT_EMULATED
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  return __uint_as_float((bits + 0x1000u) & ~0x1fffu);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

#ifdef CATAPULT_EMULATED
namespace emulated {

struct Tf32Operands {
  float a[4], b[2];
};
struct F64Operands {
  double a, b;
};

// The tensor core reads the upper 19 bits of an operand only.
inline float truncated(float x) { return __uint_as_float(__float_as_uint(x) & ~0x1fffu); }

}  // namespace emulated
#endif

// a and b must have gone through to_tf32().
__device__ __forceinline__ void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#ifdef CATAPULT_EMULATED
  emulated::Tf32Operands mine, row[4], col[4];
  for (int i = 0; i < 4; ++i) mine.a[i] = emulated::truncated(a[i]);
  for (int i = 0; i < 2; ++i) mine.b[i] = emulated::truncated(b[i]);
  const emulation::WarpExchange all("mma_tf32", kFullMask, &mine, sizeof(mine),
                                    {__FILE__, __LINE__});
  const unsigned lane = emulation::here().lane, g = lane / 4, t = lane % 4;
  for (int j = 0; j < 2; ++j) {  // columns 2t and 2t + 1
    for (unsigned k = 0; k < 4; ++k) {
      all.read(4 * g + k, &row[k], sizeof(mine));
      all.read(4 * (2 * t + j) + k, &col[k], sizeof(mine));
    }
    for (int half = 0; half < 2; ++half) {  // rows g and g + 8
      float sum = d[2 * half + j];
      for (int k = 0; k < 4; ++k) sum += row[k].a[half] * col[k].b[0];
      for (int k = 0; k < 4; ++k) sum += row[k].a[half + 2] * col[k].b[1];
      d[2 * half + j] = sum;
    }
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

// x = high + low up to 2^-22 |x|, both TF32.
__device__ __forceinline__ void split_tf32(float x, float& high, float& low) {
  high = to_tf32(x);
  low = to_tf32(x - high);
}

// 3xTF32: near float32 accuracy from three products; the smallest terms are added first.
__device__ __forceinline__ void mma_3xtf32(float (&d)[4], const float (&a_high)[4],
                                           const float (&a_low)[4], const float (&b_high)[2],
                                           const float (&b_low)[2]) {
  mma_tf32(d, a_low, b_high);
  mma_tf32(d, a_high, b_low);
  mma_tf32(d, a_high, b_high);
}

__device__ __forceinline__ void mma_f64(double (&d)[2], double a, double b) {
#ifdef CATAPULT_EMULATED
  const emulated::F64Operands mine{a, b};
  const emulation::WarpExchange all("mma_f64", kFullMask, &mine, sizeof(mine),
                                    {__FILE__, __LINE__});
  const unsigned lane = emulation::here().lane, g = lane / 4, t = lane % 4;
  for (unsigned j = 0; j < 2; ++j)
    for (unsigned k = 0; k < 4; ++k) {
      emulated::F64Operands row, col;
      all.read(4 * g + k, &row, sizeof(row));
      all.read(4 * (2 * t + j) + k, &col, sizeof(col));
      d[j] += row.a * col.b;
    }
#else
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
#endif
}

}  // namespace catapult::device
