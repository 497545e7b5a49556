// Width-agnostic vectors over GCC/Clang vector extensions, for *_simd.cpp files only: each is
// compiled once per instruction set, so everything here sits in an anonymous namespace.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef CATAPULT_ISA
#error "core/simd.hpp belongs in a *_simd.cpp compiled through catapult_add_simd_source"
#endif

#define CATAPULT_CONCAT_(a, b) a##_##b
#define CATAPULT_CONCAT(a, b) CATAPULT_CONCAT_(a, b)
// The name of this instruction set's copy of an exported table: gram_simd -> gram_simd_avx2.
#define CATAPULT_ISA_SYMBOL(op) CATAPULT_CONCAT(op, CATAPULT_ISA)

#define CATAPULT_INLINE inline __attribute__((always_inline))

namespace catapult {
namespace {

#if defined(CATAPULT_VECTOR_BYTES)
constexpr int kVectorBytes = CATAPULT_VECTOR_BYTES;  // tests widen the vectors beyond the registers
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Architectural vector registers: the register tile of a micro-kernel has to fit.
#if defined(__AVX512F__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

template <typename T>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vec = typename VecType<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
CATAPULT_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));  // compiles to one unaligned load
  return v;
}

template <typename T>
CATAPULT_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <typename T>
CATAPULT_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // exact for every x, -0 and NaN included
}

// The first `count` lanes; the rest reads as zero, and is not touched by store_first.
template <typename T>
CATAPULT_INLINE Vec<T> load_first(const T* p, int count) {
  Vec<T> v{};
  __builtin_memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return v;
}

template <typename T>
CATAPULT_INLINE void store_first(T* p, Vec<T> v, int count) {
  __builtin_memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}

// Lane order, so that the sum is the same on every call.
template <typename T>
CATAPULT_INLINE T reduce_add(Vec<T> v) {
  T s = v[0];
  for (int i = 1; i < kLanes<T>; ++i) s += v[i];
  return s;
}

}  // namespace
}  // namespace catapult
