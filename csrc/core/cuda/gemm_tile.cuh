// One block's tile of a matrix product: operands stream through shared memory in stages, the sums
// stay in registers. Engines differ in who multiplies: FMA units or tensor cores. The order of
// every sum is fixed, so results are the same on every run.
#pragma once

#include <cstdint>

#include "core/cuda/mma.cuh"
#include "core/cuda/runtime.cuh"
#include "core/cuda/vec_io.cuh"

namespace catapult::device {

// A tile of kRows x kCols computed by kDown x kAcross warps. Shared memory holds [row][k] and
// [column][k] of kDepth values at a pitch that keeps the fragment reads free of bank conflicts.
template <typename T_, int kRows_, int kCols_, int kDown_, int kAcross_>
struct TileShape {
  using T = T_;
  static constexpr int kRows = kRows_, kCols = kCols_, kDown = kDown_, kAcross = kAcross_;
  static constexpr int kThreads = kWarpSize * kDown * kAcross;
  static constexpr int kDepth = 16, kPitch = 20, kStages = 3;
  static constexpr int kStageSize = (kRows + kCols) * kPitch;
  static constexpr int kSharedSize = kStages * kStageSize;    // elements
  static constexpr int kElements = kRows * kCols / kThreads;  // sums of one thread
  static constexpr int kWarpRows = kRows / kDown, kWarpCols = kCols / kAcross;
};

// One operand: rows or columns of the result ("free") times the contraction.
template <typename T>
struct TileSource {
  const T* data;
  int64_t free_stride, k_stride;
  int count;    // of free indices
  bool packed;  // k_stride 1, and rows and depth allow 16-byte copies

  __host__ __device__ static TileSource strided(const T* data, int64_t free_stride,
                                                int64_t k_stride, int count, int depth) {
    constexpr int width = kPackWidth<T>;
    const bool packed =
        k_stride == 1 && free_stride % width == 0 && depth % width == 0 && is_aligned(data, 16);
    return {data, free_stride, k_stride, count, packed};
  }
  // The rows of a contiguous matrix of `depth` columns.
  __host__ __device__ static TileSource rows(const T* data, int count, int depth) {
    return strided(data, depth, 1, count, depth);
  }
};

// Written out, the copies make ptxas spill the sums of the large FMA tile on newer devices.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kCopiesTogether = 1;
#else
constexpr int kCopiesTogether = 16;
#endif

// Copies the k range [k, k + kDepth) of kFree free indices from `first` to shared memory; what lies
// outside reads as zero. A thread's copies lie a fixed step apart, so that each costs an addition.
template <int kFree, typename Shape, typename T>
__device__ __forceinline__ void load_packed(T* to, const TileSource<T>& from, int first, int k,
                                            int depth) {
  constexpr int width = kPackWidth<T>, per_row = Shape::kDepth / width;
  constexpr int kStep = Shape::kThreads / per_row;  // rows
  static_assert(Shape::kThreads % per_row == 0 && kFree % kStep == 0);
  const int at = threadIdx.x % per_row * width;
  const int i = threadIdx.x / per_row, left = from.count - first - i;
  const bool inside = in_bounds(k + at < depth);
  const T* source = from.data + (first + i) * from.free_stride + k + at;
  to += i * Shape::kPitch + at;
#pragma unroll(kCopiesTogether)
  for (int q = 0; q < kFree / kStep; ++q) {
    const bool valid = in_bounds(q * kStep < left) && inside;
    copy_async<16>(to + q * kStep * Shape::kPitch, valid ? source : from.data, valid);
    source += kStep * from.free_stride;
  }
}

template <int kFree, typename Shape, typename T>
__device__ __forceinline__ void load_side(T* to, const TileSource<T>& from, int first, int k,
                                          int depth) {
  if (from.packed) return load_packed<kFree, Shape>(to, from, first, k, depth);
  static_assert(Shape::kThreads % Shape::kDepth == 0 && Shape::kThreads % kFree == 0);
  const bool k_fast = from.k_stride <= from.free_stride;  // neighbours in memory go to neighbours
  int i = k_fast ? threadIdx.x / Shape::kDepth : threadIdx.x % kFree;
  int at = k_fast ? threadIdx.x % Shape::kDepth : threadIdx.x / kFree;
  const int step_i = k_fast ? Shape::kThreads / Shape::kDepth : 0;
  const int step_at = k_fast ? 0 : Shape::kThreads / kFree;
  const int64_t step = step_i * from.free_stride + step_at * from.k_stride;
  const int step_to = step_i * Shape::kPitch + step_at;
  to += i * Shape::kPitch + at;
  i += first;
  at += k;
  const T* source = from.data + i * from.free_stride + at * from.k_stride;
#pragma unroll 1
  for (int q = 0; q < kFree * Shape::kDepth / Shape::kThreads; ++q) {
    const bool valid = in_bounds(i < from.count) && in_bounds(at < depth);
    copy_async<sizeof(T)>(to, valid ? source : from.data, valid);
    source += step;
    to += step_to;
    i += step_i;
    at += step_at;
  }
}

// engine.sum += left right' for the tile at (row, col). The shared memory is free again on return.
template <typename Engine, typename T>
__device__ __forceinline__ void multiply_tile(Engine& engine, T* smem, const TileSource<T>& left,
                                              const TileSource<T>& right, int row, int col,
                                              int depth) {
  using Shape = typename Engine::Shape;
  const auto fetch = [&](int k, int stage) {
    T* to = smem + stage * Shape::kStageSize;
    if (k < depth) {
      load_side<Shape::kRows, Shape>(to, left, row, k, depth);
      load_side<Shape::kCols, Shape>(to + Shape::kRows * Shape::kPitch, right, col, k, depth);
    }
    copy_commit();  // also where nothing was asked for: copy_wait counts groups
  };
  constexpr int kAhead = Shape::kStages - 1;
#pragma unroll
  for (int piece = 0; piece < kAhead; ++piece) fetch(piece * Shape::kDepth, piece);
  int stage = 0;
#pragma unroll 1
  for (int k = 0; k < depth; k += Shape::kDepth) {
    copy_wait<kAhead - 1>();
    __syncthreads();  // the piece is there, and everybody has read the stage that is filled next
    fetch(k + kAhead * Shape::kDepth, stage == 0 ? kAhead : stage - 1);
    const T* a = smem + stage * Shape::kStageSize;
    engine.multiply(a, a + Shape::kRows * Shape::kPitch);
    stage = stage == kAhead ? 0 : stage + 1;
  }
  copy_wait<0>();
  __syncthreads();
}

// Left factors become x * factor + offset as they are read, where kAffine asks for it.
template <typename T, bool kAffine>
struct LeftTransform {
  T factor, offset;
  __device__ __forceinline__ T operator()(T x) const { return kAffine ? x * factor + offset : x; }
};

// FMA units. Thread (ty, tx) of a warp's 4 x 8 takes every kTy-th row and kTx-th column.
template <typename Shape_, bool kAffine = false>
struct FmaEngine {
  using Shape = Shape_;
  using T = typename Shape::T;
  static constexpr int kTy = 4 * Shape::kDown, kTx = 8 * Shape::kAcross;
  static constexpr int kI = Shape::kRows / kTy, kJ = Shape::kCols / kTx;
  T sum[Shape::kElements];
  LeftTransform<T, kAffine> left;

  __device__ static int ty() {
    return threadIdx.x / kWarpSize / Shape::kAcross * 4 + threadIdx.x % kWarpSize / 8;
  }
  __device__ static int tx() {
    return threadIdx.x / kWarpSize % Shape::kAcross * 8 + threadIdx.x % 8;
  }
  __device__ static int row(int e) { return ty() + kTy * (e / kJ); }
  __device__ static int col(int e) { return tx() + kTx * (e % kJ); }

  __device__ __forceinline__ void multiply(const T* a, const T* b) {
    constexpr int width = kPackWidth<T>;
    a += ty() * Shape::kPitch;
    b += tx() * Shape::kPitch;
#pragma unroll
    for (int k = 0; k < Shape::kDepth; k += width) {
      Pack<T, width> y[kJ];
#pragma unroll
      for (int j = 0; j < kJ; ++j) y[j] = load_pack<width>(b + j * kTx * Shape::kPitch + k);
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        Pack<T, width> x = load_pack<width>(a + i * kTy * Shape::kPitch + k);
#pragma unroll
        for (int w = 0; w < width; ++w) {
          x[w] = left(x[w]);
#pragma unroll
          for (int j = 0; j < kJ; ++j) sum[i * kJ + j] += x[w] * y[j][w];
        }
      }
    }
  }
};

// Where lane (g, t) = (lane / 4, lane % 4) of a warp's tile finds its operands.
template <typename Shape>
struct MmaPlace {
  int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
  int row = threadIdx.x / kWarpSize / Shape::kAcross * Shape::kWarpRows;
  int col = threadIdx.x / kWarpSize % Shape::kAcross * Shape::kWarpCols;
};

// TF32 tensor cores on float32 operands: rounded once, or split in two for near float32 accuracy.
template <typename Shape_, bool kSplit>
struct Tf32Engine {
  using Shape = Shape_;
  using T = float;
  static constexpr int kI = Shape::kWarpRows / 16, kJ = Shape::kWarpCols / 8;
  float sum[Shape::kElements];

  __device__ static int row(int e) {
    const MmaPlace<Shape> place;
    return place.row + e / 4 / kJ * 16 + place.g + e % 4 / 2 * 8;
  }
  __device__ static int col(int e) {
    const MmaPlace<Shape> place;
    return place.col + e / 4 % kJ * 8 + 2 * place.t + e % 2;
  }

  template <int kCount>
  __device__ __forceinline__ static void convert(const float (&x)[kCount], float (&high)[kCount],
                                                 float (&low)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (kSplit) {
        split_tf32(x[i], high[i], low[i]);
      } else {
        high[i] = to_tf32(x[i]);
      }
    }
  }

  __device__ __forceinline__ void multiply(const float* a, const float* b) {
    const MmaPlace<Shape> place;
    constexpr int pitch = Shape::kPitch;
    a += (place.row + place.g) * pitch + place.t;
    b += (place.col + place.g) * pitch + place.t;
#pragma unroll
    for (int k = 0; k < Shape::kDepth; k += 8) {
      float b_high[kJ][2], b_low[kJ][2];
#pragma unroll
      for (int j = 0; j < kJ; ++j) {
        const float* at = b + j * 8 * pitch + k;
        const float y[2] = {at[0], at[4]};
        convert(y, b_high[j], b_low[j]);
      }
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const float* at = a + i * 16 * pitch + k;
        const float x[4] = {at[0], at[8 * pitch], at[4], at[8 * pitch + 4]};
        float a_high[4], a_low[4];
        convert(x, a_high, a_low);
#pragma unroll
        for (int j = 0; j < kJ; ++j) {
          auto& d = reinterpret_cast<float (&)[4]>(sum[4 * (i * kJ + j)]);
          if constexpr (kSplit) {
            mma_3xtf32(d, a_high, a_low, b_high[j], b_low[j]);
          } else {
            mma_tf32(d, a_high, b_high[j]);
          }
        }
      }
    }
  }
};

// float64 tensor cores: full accuracy.
template <typename Shape_, bool kAffine = false>
struct F64Engine {
  using Shape = Shape_;
  using T = double;
  static constexpr int kI = Shape::kWarpRows / 8, kJ = Shape::kWarpCols / 8;
  double sum[Shape::kElements];
  LeftTransform<double, kAffine> left;

  __device__ static int row(int e) {
    const MmaPlace<Shape> place;
    return place.row + e / 2 / kJ * 8 + place.g;
  }
  __device__ static int col(int e) {
    const MmaPlace<Shape> place;
    return place.col + e / 2 % kJ * 8 + 2 * place.t + e % 2;
  }

  __device__ __forceinline__ void multiply(const double* a, const double* b) {
    const MmaPlace<Shape> place;
    constexpr int pitch = Shape::kPitch;
    a += (place.row + place.g) * pitch + place.t;
    b += (place.col + place.g) * pitch + place.t;
#pragma unroll
    for (int k = 0; k < Shape::kDepth; k += 4) {
      double y[kJ];
#pragma unroll
      for (int j = 0; j < kJ; ++j) y[j] = b[j * 8 * pitch + k];
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const double x = left(a[i * 8 * pitch + k]);
#pragma unroll
        for (int j = 0; j < kJ; ++j)
          mma_f64(reinterpret_cast<double (&)[2]>(sum[2 * (i * kJ + j)]), x, y[j]);
      }
    }
  }
};

}  // namespace catapult::device
