// The vector types and built-in coordinate types of CUDA C++.
#pragma once

#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define CATAPULT_EMU_VECTOR_TYPES(T, name)                                           \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CATAPULT_EMU_VECTOR_TYPES(float, float)
CATAPULT_EMU_VECTOR_TYPES(double, double)
CATAPULT_EMU_VECTOR_TYPES(int, int)
CATAPULT_EMU_VECTOR_TYPES(unsigned, uint)
#undef CATAPULT_EMU_VECTOR_TYPES
