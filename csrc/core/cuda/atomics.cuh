// Atomics and flags between blocks. Sums of floats by atomics are not deterministic: an op that
// uses them says so and offers an ordered variant.
#pragma once

#include "core/cuda/runtime.cuh"

namespace catapult::device {

template <typename T>
__device__ __forceinline__ T atomic_add(T* p, T value) {
#ifdef CATAPULT_EMULATED
  T old, sum;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    sum = old + value;
  } while (!__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
#else
  return atomicAdd(p, value);
#endif
}

// T: int or unsigned.
template <typename T>
__device__ __forceinline__ T atomic_max(T* p, T value) {
#ifdef CATAPULT_EMULATED
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < value &&
         !__atomic_compare_exchange_n(p, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
#else
  return atomicMax(p, value);
#endif
}

// Publishes everything this thread wrote before: pairs with load_acquire in another block.
__device__ __forceinline__ void store_release(int* p, int value) {
#ifdef CATAPULT_EMULATED
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
#else
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}

// In the emulation each call lets the other threads run, so it may be polled in a loop.
__device__ __forceinline__ int load_acquire(int* p) {
#ifdef CATAPULT_EMULATED
  emulation::yield();
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
#else
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#endif
}

// Adds with release and acquire ordering: the last block to arrive sees what the others wrote.
__device__ __forceinline__ int add_acq_rel(int* p, int value) {
#ifdef CATAPULT_EMULATED
  return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
#else
  int old;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(p), "r"(value)
               : "memory");
  return old;
#endif
}

}  // namespace catapult::device
