// Vectorised loads and stores, and asynchronous copies from global to shared memory.
#pragma once

#include <cstdint>

#include "core/cuda/runtime.cuh"

namespace catapult::device {

// N values of T moved by one instruction: N * sizeof(T) is 4, 8 or 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }
};

template <typename T>
constexpr int kPackWidth = 16 / static_cast<int>(sizeof(T));

__host__ __device__ inline bool is_aligned(const void* p, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

#ifdef CATAPULT_EMULATED
#define CATAPULT_EMU_CHECK_ALIGNED(p, bytes) \
  ::catapult::emulation::check_aligned(p, bytes, {__FILE__, __LINE__})
#else
#define CATAPULT_EMU_CHECK_ALIGNED(p, bytes)
#endif

// p must be aligned to the whole pack.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  CATAPULT_EMU_CHECK_ALIGNED(p, sizeof(Pack<T, N>));
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  CATAPULT_EMU_CHECK_ALIGNED(p, sizeof(Pack<T, N>));
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Copies Bytes (4, 8 or 16) to shared memory in the background; where !valid, zeros arrive and
// `from` is not read. The data is there after copy_wait() and a barrier.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared_to, const void* from, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#ifdef CATAPULT_EMULATED
  CATAPULT_EMU_CHECK_ALIGNED(shared_to, Bytes);
  if (valid) CATAPULT_EMU_CHECK_ALIGNED(from, Bytes);
  emulation::async_copy({shared_to, from, valid ? Bytes : 0u, valid ? 0u : Bytes});
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared_to));
  const int bytes = valid ? Bytes : 0;
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(Bytes),
                 "r"(bytes)
                 : "memory");
  }
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#ifdef CATAPULT_EMULATED
  emulation::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups, all but the newest Keep.
template <int Keep>
__device__ __forceinline__ void copy_wait() {
#ifdef CATAPULT_EMULATED
  emulation::AsyncCopy copy;
  while (emulation::async_next(Keep, &copy)) {
    if (copy.bytes) std::memcpy(copy.to, copy.from, copy.bytes);
    if (copy.zeros) std::memset(copy.to, 0, copy.zeros);
  }
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(Keep) : "memory");
#endif
}

}  // namespace catapult::device
