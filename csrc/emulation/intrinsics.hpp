// CUDA's names for barriers, shuffles, votes and the arithmetic intrinsics the kernels use. Thin,
// because this is the part that sanitizers instrument.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "emulation/scheduler.hpp"

#define CATAPULT_EMU_HERE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define CATAPULT_EMU_PLACE \
  ::catapult::emulation::Place { file_, line_ }

// --- barriers ------------------------------------------------------------------------------------
inline void __syncthreads(CATAPULT_EMU_HERE) {
  if (::catapult::emulation::is_skipped(CATAPULT_EMU_PLACE)) return;
  ::catapult::emulation::note_site("__syncthreads", CATAPULT_EMU_PLACE);
  ::catapult::emulation::sync_block(0, CATAPULT_EMU_PLACE);
}
inline int __syncthreads_count(int p, CATAPULT_EMU_HERE) {
  return ::catapult::emulation::sync_block(p, CATAPULT_EMU_PLACE).sum;
}
inline int __syncthreads_and(int p, CATAPULT_EMU_HERE) {
  return ::catapult::emulation::sync_block(p, CATAPULT_EMU_PLACE).all;
}
inline int __syncthreads_or(int p, CATAPULT_EMU_HERE) {
  return ::catapult::emulation::sync_block(p, CATAPULT_EMU_PLACE).any;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CATAPULT_EMU_HERE) {
  if (::catapult::emulation::is_skipped(CATAPULT_EMU_PLACE)) return;
  ::catapult::emulation::note_site("__syncwarp", CATAPULT_EMU_PLACE);
  ::catapult::emulation::WarpExchange("__syncwarp", mask, nullptr, 0, CATAPULT_EMU_PLACE, true);
}
// Fences do nothing here: fibers share one memory order. docs/kernels.md lists them.
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- shuffles and votes --------------------------------------------------------------------------
namespace catapult::emulation {

template <typename T>
T shuffle(const char* what, unsigned mask, T value, unsigned source, Place place) {
  static_assert(sizeof(T) <= kExchangeBytes);
  const WarpExchange exchange(what, mask, &value, sizeof(T), place);
  T result;
  exchange.read(source, &result, sizeof(T));
  return result;
}

inline unsigned ballot(const char* what, unsigned mask, int predicate, Place place) {
  const WarpExchange exchange(what, mask, &predicate, sizeof(int), place);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    int vote = 0;
    if (exchange.participants() >> lane & 1) exchange.read(lane, &vote, sizeof(int));
    votes |= vote ? 1u << lane : 0u;
  }
  return votes;
}

}  // namespace catapult::emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CATAPULT_EMU_HERE) {
  const unsigned lane = ::catapult::emulation::here().lane, base = lane & ~unsigned(width - 1);
  return ::catapult::emulation::shuffle("__shfl_sync", mask, value,
                                        base | (unsigned(source) & unsigned(width - 1)),
                                        CATAPULT_EMU_PLACE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CATAPULT_EMU_HERE) {
  const unsigned lane = ::catapult::emulation::here().lane, other = lane ^ unsigned(lanes);
  const bool inside = (other & ~unsigned(width - 1)) <= (lane & ~unsigned(width - 1));
  return ::catapult::emulation::shuffle("__shfl_xor_sync", mask, value, inside ? other : lane,
                                        CATAPULT_EMU_PLACE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CATAPULT_EMU_HERE) {
  const unsigned lane = ::catapult::emulation::here().lane, at = lane & unsigned(width - 1);
  return ::catapult::emulation::shuffle("__shfl_down_sync", mask, value,
                                        at + delta < unsigned(width) ? lane + delta : lane,
                                        CATAPULT_EMU_PLACE);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CATAPULT_EMU_HERE) {
  const unsigned lane = ::catapult::emulation::here().lane, at = lane & unsigned(width - 1);
  return ::catapult::emulation::shuffle("__shfl_up_sync", mask, value,
                                        at >= delta ? lane - delta : lane, CATAPULT_EMU_PLACE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CATAPULT_EMU_HERE) {
  return ::catapult::emulation::ballot("__ballot_sync", mask, predicate, CATAPULT_EMU_PLACE);
}
inline int __any_sync(unsigned mask, int predicate, CATAPULT_EMU_HERE) {
  return ::catapult::emulation::ballot("__any_sync", mask, predicate, CATAPULT_EMU_PLACE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CATAPULT_EMU_HERE) {
  return ::catapult::emulation::ballot("__all_sync", mask, !predicate, CATAPULT_EMU_PLACE) == 0;
}
inline unsigned __activemask() { return ::catapult::emulation::active_lanes(); }

// --- arithmetic ----------------------------------------------------------------------------------
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float __int_as_float(int x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline int __float_as_int(float x) {
  int y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
inline float __uint_as_float(unsigned x) { return __int_as_float(int(x)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}

using std::isfinite;
using std::isinf;
using std::isnan;

#define CATAPULT_EMU_MIN_MAX(T)                    \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
CATAPULT_EMU_MIN_MAX(int)
CATAPULT_EMU_MIN_MAX(unsigned)
CATAPULT_EMU_MIN_MAX(long)
CATAPULT_EMU_MIN_MAX(unsigned long)
CATAPULT_EMU_MIN_MAX(long long)
CATAPULT_EMU_MIN_MAX(unsigned long long)
#undef CATAPULT_EMU_MIN_MAX
// As on a device, the number wins over NaN.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
