// A small matrix that all threads of a block read, copied to shared memory where it fits.
#pragma once

#include "core/cuda/runtime.cuh"
#include "core/odd_pitch.hpp"

namespace catapult::device {

template <typename T>
struct StagedRows {
  const T* x;
  int pitch;
};

// `from` (rows, columns) itself, or with `stage` its copy of odd pitch at `next`, which moves on
// behind it. To be followed by a barrier.
template <typename T>
__device__ StagedRows<T> stage_rows(const T* from, int rows, int columns, bool stage, T*& next) {
  if (!stage) return {from, columns};
  const int pitch = static_cast<int>(odd_pitch(columns));
  T* const to = next;
  for (int i = threadIdx.x; i < rows * columns; i += blockDim.x)
    to[i / columns * pitch + i % columns] = from[i];
  next += rows * pitch;
  return {to, pitch};
}

}  // namespace catapult::device
